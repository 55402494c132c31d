"""``make pictures``: the pictures of README and docs, of what they show as it is now.

The demo runs in a terminal of tmux, whose screen is drawn while it streams; then ``unskew ui`` shows what it left to
Chromium. Needs both, and nothing from elsewhere.
"""

import contextlib
import io
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import click
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.support.servers.valkey import quiet_port

COLUMNS, LINES = 110, 24
WIDTH = 1200
HOUSEHOLD = 2070
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; }} pre {{ margin: 0; padding: 16px; color: {foreground};
font: 14px/1.35 ui-monospace, "DejaVu Sans Mono", monospace; width: max-content; }} {stylesheet}</style>
<pre><code>{code}</code></pre>"""


def missing() -> list[str]:
    """Return the programs that are needed and not there."""
    return [name for name in ("chromium", "tmux") if shutil.which(name) is None]


class Shown(NamedTuple):
    """A running ``unskew ui``: its address, its Redis and the demo's folder."""

    address: str
    redis_url: str
    root: Path


@contextlib.contextmanager
def showing(root: Path) -> Iterator[Shown]:
    """Run ``unskew ui`` on a demo's folder; yield once its pages have all figures."""
    port = quiet_port()
    command = [sys.executable, "-m", "unskew", "ui", str(root), "--listen", str(port), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stdout.readline() for _ in range(4)]
        assert f"Open http://127.0.0.1:{port}" in said[0]
        heard = ""
        while "have the figures" not in heard:
            heard = process.stderr.readline()
            assert heard, "it ended"
        yield Shown(f"http://127.0.0.1:{port}/", said[1].split()[-1], root)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def of_catalog(browser: Browser, address: str, folder: Path) -> None:
    """Draw the first page in light colours, and the page of an entity in dark ones."""
    entity = f"entity?view={quote('household_purchases@1')}&key.household_id={HOUSEHOLD}"
    for name, path, scheme, height in (("catalog", "", "light", 800), ("entity", entity, "dark", 1300)):
        context = browser.new_context(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        answer = page.goto(address + path)
        if answer is None or not answer.ok:
            raise click.ClickException(f"{address + path}: {page.inner_text('main')}")
        page.screenshot(path=folder / f"{name}.png")
        context.close()


def of_demo(browser: Browser, output: Path, path: Path, rows: int | None = None) -> None:
    """Run the demo to its end, and draw its terminal when it was stopped half-way and has gone on."""
    command = [
        sys.executable,
        "-m",
        "unskew",
        "demo",
        "--output",
        str(output),
        *([] if rows is None else ["--rows", str(rows)]),
    ]
    server = f"unskew-pictures-{quiet_port()}"
    tmux = ["tmux", "-L", server]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    # The end stays on the screen until somebody has read it.
    shell = f"COLORTERM=truecolor {shlex.join(command)}; echo ended with $?; read _"
    subprocess.run([*tmux, "-f", "/dev/null", "new-session", "-d", "-s", "demo", *size, shell], check=True)
    try:
        half = ""
        while "ended with" not in (screen := _screen(tmux)):
            after = screen.partition("Stopped half-way")[2]
            if "events/s" in after and "100%" not in after:
                half = screen.replace(f"{output.parent}/", "")
            time.sleep(0.5)
        if "ended with 0" not in screen or not half:
            raise click.ClickException(f"the demo did not end well:\n{screen}")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    _draw(browser, half, path)


def _screen(tmux: list[str]) -> str:
    return subprocess.run(
        [*tmux, "capture-pane", "-p", "-e", "-t", "demo"], check=True, capture_output=True, text=True
    ).stdout


def _draw(browser: Browser, screen: str, path: Path) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip()))
    html = console.export_html(theme=MONOKAI, code_format=_TERMINAL)
    page = browser.new_page()
    page.set_content(html)
    page.locator("pre").screenshot(path=path)
    page.close()


@click.command()
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("docs/pictures"), show_default=True
)
@click.option("--rows", type=int, help="Number of the demo's basket lines; all if left out.")
def pictures(output: Path, rows: int | None) -> None:
    """Make the pictures of README and docs anew."""
    if lacking := missing():
        raise click.ClickException(f"the pictures need {' and '.join(lacking)}: install them")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        root = Path(folder) / "demo-output"
        of_demo(browser, root, output / "demo.png", rows)
        with showing(root) as ui:
            of_catalog(browser, ui.address, output)
        browser.close()
    click.echo(f"demo.png, catalog.png and entity.png are in {output}")


if __name__ == "__main__":
    pictures()

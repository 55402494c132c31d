"""What outsiders can put into records, keys, topics, files and Redis is printed, and never obeyed, by any command."""

import json
import logging
import re
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import polars as pl
import pytest
import redis
from click.testing import CliRunner, Result

from tests.monitoring.test_audit import CLOCK as END
from tests.monitoring.test_audit import DEFINITIONS as CLICKS
from tests.monitoring.test_audit import EVENTS
from tests.offline.test_compaction import rows, write
from tests.support.plans import DAY, HOUR, MINUTE, Wanted, sliding, view
from tests.support.updates import closing, ledger_after
from tests.support.written import write_archive, write_log
from unskew.cli import main, screen
from unskew.cli.dead_letters import _print
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.features.printing import printable, printable_json
from unskew.features.registry import describe
from unskew.offline.dead_letters import Wanted as WantedLetters
from unskew.offline.dead_letters import as_json, find, letters, read_mended
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA, DeadLetterTable
from unskew.sinks.tables.layout import published_files
from unskew.sinks.tables.parquet import encode

# Colours, the window's title, the C1 form of "clear the screen", text from right to left, no width, a forged line of
# output, and Rich's markup and emoji.
HOSTILE = "a\x1b[31m\x1b]0;t\x07\x9b2J\u202e\u200b\u2028\r\nerror: forged [bold red]b[/] [/] :smile: \x00"
SEEN = "[bold red]b[/] [/] :smile:"
NAME = HOSTILE.replace("/", "").replace("\x00", "")


def refuse_control(text: str) -> None:
    """Fail if a terminal would obey anything in the text, or a line of it is forged."""
    found = [one for one in text if one not in "\n\t" and not one.isprintable()]
    assert not found, [unicodedata.name(one, hex(ord(one))) for one in found]
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]


def unskew(*arguments: object, code: int = 0, **environment: str) -> Result:
    result = CliRunner(env=environment).invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    refuse_control(result.stdout)
    refuse_control(result.stderr)
    return result


def test_every_character_is_printed_or_escaped():
    for one in [*map(chr, range(0x300)), *"\u061c\u200e\u202e\u2066\ufeff\u2028\ud800\U000e0001"]:
        shown = printable(one)
        assert shown.isprintable()
        assert shown == one or re.fullmatch(r"\\([nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", shown)
        for indent in (None, 2):
            text = printable_json({"é" + one: one}, indent=indent)
            assert json.loads(text) == {"é" + one: one}
            assert text.replace("\n", "").isprintable()
            assert "é" in text


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """Hostile letters, in a hostile folder."""
    root = tmp_path / f"dead {NAME}"
    row = dict.fromkeys(DEAD_LETTER_SCHEMA) | {
        "topic": HOSTILE,
        "partition": 0,
        "offset": 7,
        "arrival": EVENTS["_arrival"][0],
        "view": HOSTILE,
        "reason": HOSTILE,
        "kind": HOSTILE,
        "key": HOSTILE.encode(),
        "value": json.dumps({HOSTILE: HOSTILE}).encode(),
        "headers": [{"name": HOSTILE, "value": HOSTILE.encode()}],
        "n_headers": 1,
    }
    table = DeadLetterTable(root, NAME, "p0", None)
    table.append(pl.DataFrame([row], schema=DEAD_LETTER_SCHEMA))
    table.snapshot()
    table.settle()
    return root


def test_dead_letters(dead, tmp_path):
    definitions = tmp_path / "definitions.py"
    definitions.write_text(CLICKS)
    place = f"{HOSTILE}/0/7".replace("\0", "")
    more = ("--dead-letters", dead)

    listed = unskew("dead-letters", "list", *more).output
    shown = unskew("dead-letters", "show", "--output", tmp_path / NAME, *more, "--reason", "error").output
    for_the_group = tmp_path / "group.jsonl"
    unskew("dead-letters", "show", "--output", for_the_group, *more, "--topic", NAME, "--umask", "027")
    missing = unskew("dead-letters", "show", place, *more, code=1).stderr
    refused = unskew("dead-letters", "replay", "--reason", "error", "--definitions", definitions, *more, code=1).stderr

    assert listed.count("[bold red]b[/]") >= 4
    assert "written to" in shown
    assert SEEN in missing
    assert SEEN in refused
    assert [stat.filemode(path.stat().st_mode) for path in (tmp_path / NAME, for_the_group)] == [
        "-rw-------",
        "-rw-r-----",
    ]
    # The whole letter is in the file, where a terminal obeys nothing either.
    (letter,) = letters(dead, find(dead, WantedLetters()))
    written = (tmp_path / NAME).read_text(encoding="utf-8")
    refuse_control(written)
    assert written == as_json(letter, {HOSTILE: HOSTILE}) + "\n"
    assert read_mended(tmp_path / NAME)[0].letter.headers == letter.headers


def test_a_letter_is_shown_with_its_headers(dead, capsys):
    (letter,) = letters(dead, find(dead, WantedLetters()))
    _print(letter, {HOSTILE: HOSTILE})

    shown = capsys.readouterr().out
    refuse_control(shown)
    assert f"header {printable(HOSTILE)}" in shown
    assert shown.count(SEEN) >= 5


@pytest.fixture
def logged(tmp_path: Path) -> tuple[object, ...]:
    """Options for a hostile log and its archive, in hostile folders."""
    definitions = tmp_path / "definitions.py"
    definitions.write_text(CLICKS)
    clicks = load(definitions).views["clicks"]
    events = EVENTS.with_columns(user=pl.lit(HOSTILE), at="_event_time")
    write_log(tmp_path / NAME, clicks, events, END)
    write_archive(tmp_path / f"archive {NAME}", clicks, events)
    return "--definitions", definitions, "--log", tmp_path / NAME


def test_log_audit_and_compact(logged, tmp_path):
    log = tmp_path / NAME
    archive = tmp_path / f"archive {NAME}"

    head = unskew("log", "head", "clicks", *logged).output
    stats = unskew("log", "stats", "clicks", *logged).output
    agreed = unskew("audit", *logged, "--archive", archive, "--offline", "--samples", 20).output
    write(archive / NAME, rows(0), rows(1), rows(2), rows(3, day=1))
    published_files(archive / NAME)[1].path.write_bytes(b"")
    compacted = unskew("compact", "--log", log, "--archive", archive, "--min-files", 2, code=1)
    (archive / "stream" / "day=2017-03-25" / f"{NAME}-1-2.parquet").mkdir(parents=True)
    audited = unskew("audit", *logged, "--archive", archive, "--offline", "--samples", 20, code=1).stderr
    path = published_files(log / "clicks" / "v1")[0].path
    path.write_bytes(path.read_bytes()[:-1])
    damaged = unskew("log", "head", "clicks", *logged, code=1).stderr
    unknown = unskew("log", "head", HOSTILE.replace("\0", ""), *logged, code=1).stderr

    assert "\\u001b" in head
    assert "bold red" in head
    assert "rows" in stats
    assert agreed.endswith("identical\n")
    for said in (compacted.stderr, audited, damaged, unknown):
        assert said.startswith("error: ")
        assert SEEN.replace("/", "") in said.replace("/", "")


def test_an_audit_shows_the_entity_that_differs(logged, tmp_path):
    path = published_files(tmp_path / NAME / "clicks" / "v1")[0].path
    metadata = {name: text for name, text in pl.read_parquet_metadata(path).items() if name.startswith("unskew.")}
    more = pl.read_parquet(path, hive_partitioning=False, glob=False).with_columns(pl.col("count") + 1)
    path.write_bytes(encode(more, metadata))

    shown = unskew(
        "audit", *logged, "--archive", tmp_path / f"archive {NAME}", "--offline", "--samples", 200, code=1
    ).output

    assert re.search(r"count is \d+ in the log, and \d+ by the recount", shown)
    assert SEEN in shown


@pytest.fixture
def in_redis(redis_client: redis.Redis, redis_url: str) -> dict[str, str]:
    """The environment of a pipeline whose registry somebody else has written."""
    plan = view(
        Wanted("last", "last", sliding(DAY, HOUR), "x", of="string"),
        Wanted("n", "count", sliding(5 * MINUTE, MINUTE)),
        name="visits",
    )
    registry = describe(Plan(streams={}, views={"visits": plan}))
    (found,) = registry["views"]
    found |= {"description": HOSTILE, "owner": HOSTILE, "topic": HOSTILE, "where": HOSTILE}
    writer = RedisWriter(redis_client, "shop", "nightly")
    writer.publish_registry(json.dumps({**registry, "views": [found]}))
    writer.expect({plan.id: [f"h0 {HOSTILE}"]})
    writer.add(closing(plan, DAY * 17_000, [{"key": "a", "last": HOSTILE, "n": 1, "_at": 0, "_until": DAY * 18_000}]))
    writer.add(ledger_after(closing(plan, DAY * 17_000, since_us=0), [0, 2, 2], [], worst_us=1, duplicates=1))
    writer.flush(0)
    return {"UNSKEW_REDIS_URL": redis_url, "UNSKEW_PREFIX": "shop", "UNSKEW_PIPELINE": "nightly"}


def test_get_and_describe_live(in_redis):
    got = unskew("get", "visits", "a", **in_redis).output
    value = json.loads(unskew("get", "visits:last", "a", "--json", **in_redis).output)
    live = unskew("describe", "--live", **in_redis).output
    as_json_ = json.loads(unskew("describe", "--live", "--json", **in_redis).output)
    other = unskew("get", "visits", HOSTILE.replace("\0", ""), **in_redis).output
    unknown = unskew("get", f"visits:{HOSTILE}".replace("\0", ""), "a", code=1, **in_redis).stderr

    assert "bold red" in got
    assert value["features"] == {"last": HOSTILE}
    assert SEEN in " ".join(live.split())
    assert HOSTILE.split(maxsplit=1)[0] in as_json_["views"][0]["waiting"][0]
    assert SEEN in other
    assert SEEN in unknown


def test_check_and_describe(tmp_path):
    path = tmp_path / f"{NAME}.py"
    path.write_text(CLICKS.replace('"clicks", entity', f'"clicks", owner={HOSTILE!r}, description={HOSTILE!r}, entity'))
    unskew("check", path)
    described = unskew("describe", path).output
    registry = json.loads(unskew("describe", "--json", path).output)
    path.write_text(CLICKS.replace('"clicks", entity', f"{HOSTILE!r}, entity"))
    fault = unskew("check", path, code=1).stderr

    assert SEEN in described
    assert registry["views"][0]["owner"] == HOSTILE
    assert SEEN in fault


def test_errors_and_log_lines_of_a_run(tmp_path):
    (tmp_path / "definitions.py").write_text(CLICKS)
    (tmp_path / NAME).write_text("a file where the state should be")
    program = (
        "import logging, sys; from unskew.cli import main, screen; screen.escape_log_lines();"
        f"logging.getLogger('unskew.run').warning('of %s', {HOSTILE!r}); main(sys.argv[1:])"
    )
    command = ["run", "--apply", "--definitions", "definitions.py", "--idle", "none", "--log", "l", "--archive", "a"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *command, "--state", NAME],
        cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    refuse_control(ended.stderr)
    first, *_, last = ended.stderr.splitlines()
    assert first == f"of {printable(HOSTILE)}"
    assert last.startswith("error: a\\x1b[31m")


def test_log_lines_with_a_traceback_keep_its_lines_and_escape_each():
    with pytest.raises(ValueError, match="forged") as found:
        int(HOSTILE)
    record = logging.LogRecord("unskew", logging.ERROR, "f", 1, HOSTILE, None, found._excinfo)
    text = screen.Printable().format(record)

    refuse_control(text.replace("\nerror: forged", "\n"))
    assert text.startswith(printable(HOSTILE))
    assert len(text.splitlines()) > 3


def test_commands_print_through_the_screen_alone():
    found = [
        f"{path.name}:{number}"
        for path in sorted(Path(screen.__file__).parent.glob("*.py"))
        # The demo prints its own data only.
        if path.name not in {"screen.py", "demo.py"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"click\.echo\(|\bConsole\(|(?<![\w.])print\(|sys\.std(out|err)\.write", line)
    ]

    assert found == []

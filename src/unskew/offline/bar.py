"""A progress bar for joins that take long, in a terminal or a notebook."""

from collections.abc import Iterator
from contextlib import contextmanager

from unskew.features.errors import RequestError
from unskew.offline.join import Progress


@contextmanager
def shown(progress: Progress | bool) -> Iterator[Progress]:  # noqa: FBT001 - True is a kind of progress here
    """Yield the function to report progress to.

    ``progress``: that function; or True for a bar on standard error, if that is a terminal or a notebook, which goes
    when the work ends; or False for none.
    """
    if not isinstance(progress, bool):
        if not callable(progress):
            raise RequestError(f"progress is True, False or a function, not {progress!r:.80}")
        yield progress
        return
    if not progress:
        yield lambda _what, _done, _all: None
        return
    from rich.console import Console  # noqa: PLC0415 - only who looks at a bar pays for it
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    console = Console(stderr=True)
    with Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal or console.is_jupyter),
    ) as bar:
        task = bar.add_task("", rows="")

        def report(what: str, done: int, n_all: int) -> None:
            bar.update(task, description=what, completed=done, total=n_all, rows=f"{done:,} rows")

        yield report

"""Every command: its help fits a terminal, and whatever it is given wrongly ends in an error, never in a traceback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from unskew.cli import main

DEFINITIONS = Path(__file__).parents[2] / "examples" / "complete_journey"
VIEW = "household_purchases"
AWAY = ("--redis-url", "redis://127.0.0.1:1/0")
DEFINED = ("--definitions", str(DEFINITIONS))
RUN = ("run", *DEFINED, "--idle", "none", "--log", "l", "--archive", "a", "--state", "s", *AWAY)
REPLAY = ("dead-letters", "replay", *DEFINED, "--dead-letters", "folder")
TRAIN = ("train", "labels.csv", "-f", VIEW, "-o", "out.parquet", *DEFINED, "--log", "folder")
WIDTH = 80
# A valid start of each command, to which one wrong thing is added.
VALID: dict[tuple[str, ...], tuple[str, ...]] = {
    ("demo",): (),
    ("warm",): (),
    ("check",): (),
    ("describe",): ("--live", *AWAY),
    ("plan",): (str(DEFINITIONS), "--log", "folder/log", *AWAY),
    ("init",): ("folder/new",),
    ("dev",): (str(DEFINITIONS),),
    ("ui",): ("folder",),
    ("apply",): (str(DEFINITIONS), "--log", "folder/log", "--yes", *AWAY),
    ("promote",): (f"{VIEW}@1", "--log", "folder/log", *AWAY),
    ("rollback",): ("1", "--log", "folder/log", *AWAY),
    ("registry",): (),
    ("registry", "log"): ("--log", "folder/log"),
    ("registry", "show"): ("--log", "folder/log"),
    ("registry", "diff"): ("1", "2", "--log", "folder/log"),
    ("doctor",): ("--bootstrap-servers", "127.0.0.1:1", *AWAY),
    ("run",): RUN[1:],
    ("produce",): ("page_views", "events.jsonl", *DEFINED, "--bootstrap-servers", "127.0.0.1:1"),
    ("lineage",): (VIEW, *DEFINED),
    ("search",): ("spend", *DEFINED),
    ("catalog",): ("--output", "folder/site", *DEFINED),
    ("get",): (VIEW, "1", *AWAY),
    ("serve",): AWAY,
    ("train",): TRAIN[1:],
    ("log",): (),
    ("log", "head"): (VIEW, *DEFINED, "--log", "folder"),
    ("log", "tail"): (VIEW, *DEFINED, "--log", "folder"),
    ("log", "stats"): (VIEW, *DEFINED, "--log", "folder"),
    ("dead-letters",): (),
    ("dead-letters", "list"): ("--dead-letters", "folder"),
    ("dead-letters", "show"): ("--dead-letters", "folder", "a/0/1"),
    ("dead-letters", "replay"): (*REPLAY[2:], "--topic", "a"),
    ("compact",): ("--log", "folder"),
    ("publish",): ("--log", "folder"),
    ("export",): (),
    ("export", "feast"): ("repo", *DEFINED, "--log", "folder"),
    ("import",): (
        "transactions",
        str(DEFINITIONS),
        *DEFINED,
        *("--archive", "folder", "--state", "folder", "--delay", "0s"),
    ),
    ("backfill",): (VIEW, *DEFINED, "--log", "folder", "--archive", "folder", "--state", "folder"),
    ("materialize",): (
        *("--until", "2026-01-31T00:00:00Z", *DEFINED),
        *("--log", "folder", "--archive", "folder", "--state", "folder", *AWAY),
    ),
    ("diff",): (str(DEFINITIONS), str(DEFINITIONS), "--archive", "folder"),
    ("value",): (VIEW, "--log", "folder"),
    ("rehydrate",): (*DEFINED, "--state", "folder", *AWAY),
    ("purge",): (f"{VIEW}@1", *AWAY),
    ("retain",): (*DEFINED, "--log", "folder", "--keep-log", "400d"),
    ("erase",): (
        *("household", "1", *DEFINED, *AWAY),
        *("--log", "folder", "--archive", "folder", "--state", "folder"),
    ),
    ("monitor",): ("--log", "folder", "--once"),
    ("baseline",): (VIEW, "--log", "folder", "-o", "out.json"),
    ("completion",): ("bash",),
    ("audit",): (*DEFINED, "--log", "folder", "--archive", "folder", *AWAY),
}
# An empty text is a topic or a reason that no letter has.
MAY_BE_EMPTY = {"--topic", "--reason", "--drop", "-m"}


def commands(
    group: click.Group = main, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str, status: tuple[int, ...] = (1, 2)) -> str:
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), (arguments, result.output, result.exception)
    assert result.exit_code in status, (arguments, result.output)
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, (arguments, result.output)
    assert "Traceback" not in result.output
    assert "fault of unskew" not in result.output
    return errors[0]


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("neither definitions nor a letter")
    Path("events.jsonl").write_text("{}")
    Path("labels.csv").write_text("household_id,event_timestamp\n1,2017-03-01T00:00:00Z\n")


def test_every_command_has_a_valid_start_here() -> None:
    assert set(VALID) == {path for path, _ in commands()}


LISTING = {("log", "head"), ("log", "tail"), ("registry", "log"), ("dead-letters", "list")}
SHOWING = {("check",), ("describe",), ("plan",), ("doctor",), ("lineage",), ("search",), ("get",), ("value",)} | {
    *(("registry", "show"), ("registry", "diff"), ("log", "stats"), ("dead-letters", "show")),
    *(("diff",), ("monitor",), ("audit",)),
}


def test_what_lists_takes_json_and_a_number_of_rows_is_called_alike_everywhere() -> None:
    options = {
        path: {opt: option for option in command.params if isinstance(option, click.Option) for opt in option.opts}
        for path, command in commands()
    }

    assert {path for path, known in options.items() if "--json" in known} == LISTING | SHOWING
    assert {path for path in LISTING if "-n" not in options[path]} == set()
    assert {
        path for path, known in options.items() if "-n" in known and known["-n"] is not known.get("--rows")
    } == set()


@pytest.mark.parametrize("path", [(), *VALID], ids=" ".join)
def test_help_fits_a_terminal(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=WIDTH)

    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > WIDTH] == []
    # click cuts the summaries of commands that are too long for a line.
    assert "..." not in shown.output.partition("Commands:\n")[2].partition("\n\n")[0].replace("[ARGS]...", "")


@pytest.mark.parametrize("path", VALID, ids=" ".join)
def test_an_unknown_option_and_a_missing_argument_are_usage_errors(path: tuple[str, ...]) -> None:
    assert "--nope" in refused(*path, "--nope", status=(2,))
    command = dict(commands())[path]
    if any(parameter.required for parameter in command.params):
        assert "Missing" in refused(*path, status=(2,))


@pytest.mark.parametrize("path", VALID, ids=" ".join)
def test_an_empty_text_is_refused_as_each_argument(path: tuple[str, ...]) -> None:
    for parameter in dict(commands())[path].params:
        flag = isinstance(parameter, click.Option) and parameter.is_flag
        option = parameter.opts[-1]
        if flag or option in MAY_BE_EMPTY:
            continue
        if isinstance(parameter, click.Option):
            said = refused(*path, *VALID[path], option, "")
            # An address that cannot be read may hold a password, so nothing of it is shown.
            assert option == "--redis-url" or parameter.opts[0] in said or option in said or "''" in said, said
        elif path != ("get",):
            refused(*path, "", *(text for text in VALID[path] if text not in {VIEW, f"{VIEW}@1", "a/0/1"}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "file"), "file: definition files are"),
        (("check", "/dev/null"), "/dev/null: it is neither a file nor a folder"),
        (("check", "folder"), "folder: the folder has no"),
        (("describe", "nowhere"), "nowhere: there is no such file or folder"),
        (("log", "head", "nope", *DEFINED, "--log", "folder"), "there is no view 'nope'; views are"),
        (("log", "head", VIEW, *DEFINED, "--log", "file"), "file: it is not a folder; give the folder"),
        (("log", "stats", VIEW, *DEFINED, "--log", "nowhere"), "nowhere: there is no such folder; give the folder"),
        (
            ("registry", "log", "--log", "nowhere/log"),
            "nothing was applied yet to nowhere/registry; unskew apply writes",
        ),
        (("monitor", "--log", "nowhere", "--once"), "nowhere: there is no such folder; give the folder"),
        (("monitor", "--log", "folder", "--once"), "folder holds no log of any view"),
        (("monitor", "--log", "folder", "--baseline", "file"), "file is not a baseline"),
        (("monitor", "--log", "folder", "--every", "10ms"), "--every 10ms: give a second or more"),
        (("monitor", "--log", "folder", "--served", "nowhere"), "nowhere: there is no such folder"),
        (("serve", *AWAY, "--host-name", "https://features.example:6566"), "give it without a scheme and a port"),
        (("serve", *AWAY, "--host-name", "two names"), "'two names' is not the name of a host"),
        (("monitor", "--log", "folder", "--metrics", "here"), "--metrics 'here': give HOST:PORT"),
        (("baseline", VIEW, "--log", "folder", "-o", "file"), "file is there already"),
        (("baseline", VIEW, "--log", "folder", "-o", "nowhere/out.json"), "there is no folder"),
        (("baseline", VIEW, "--log", "folder", "-o", "out.json", "--at", "now"), "--at now: "),
        (("audit", *DEFINED, "--log", "file", "--archive", "folder", "--offline"), "file: it is not a folder"),
        (("audit", *DEFINED, "--log", "folder", "--archive", "nowhere"), "nowhere: there is no such folder"),
        (("compact", "--log", "file"), "file: there is no such folder"),
        (("compact", "nope", "--log", "folder"), "folder holds no view 'nope'"),
        (("publish", "--log", "file"), "file: it is not a folder; give the folder"),
        (("publish", "nope", "--log", "folder"), "folder holds no view 'nope'"),
        (("export", "feast", "repo", "--log", "folder"), "folder holds no log of any view"),
        (("export", "feast", "file", *DEFINED, "--log", "folder"), "file: File exists; correct the path"),
        (("export", "feast", "repo", *DEFINED, "--log", "s3://b/log"), "--log s3://b/log: Feast reads every file"),
        (("export", "feast", "repo", *DEFINED, "--log", "folder", "--project", "_a"), "--project '_a': use letters"),
        (("export", "feast", "repo", *DEFINED, "--log", "folder", "--server", "here"), "--server 'here': give the"),
        (("dead-letters", "list", "--dead-letters", "file"), "file: there is no such folder"),
        (("dead-letters", "list", "--dead-letters", "folder", "--since", "x"), "--since: 'x' is not an instant"),
        (("dead-letters", "show", "", "--dead-letters", "folder"), "there is no dead letter ''"),
        ((*REPLAY, "folder"), "folder: [Errno 21] Is a directory"),
        ((*REPLAY, "file"), "file, line 1 is not a letter"),
        (("rehydrate", *DEFINED, "--state", "file", *AWAY), "file: it is not a folder; name another --state"),
        (("rehydrate", "--running", *DEFINED, *AWAY), "--running and --definitions exclude each other"),
        (("rehydrate", "--running", "--expire-after", "1d", *AWAY), "--running and --expire-after exclude each other"),
        (("purge", "nope", *AWAY), "'nope' is not a view version"),
        ((*RUN, "--cluster", "h:1", "--process", "1"), "--process 1: --cluster names 1 process, counted from 0;"),
        ((*RUN, "--cluster", "h:1,h:2", "--process", "2"), "--process 2: --cluster names 2 processes, counted from 0;"),
        (
            ("backfill", *VALID["backfill",], "--process", "1"),
            "--process 1: give the addresses of all processes with --cluster",
        ),
        (("backfill", *VALID["backfill",], "--cluster", "here"), "--cluster 'here': give host:port of every process"),
        ((*RUN, "--epoch", "soon"), "--epoch: 'soon' is not a duration"),
        ((*RUN, "--scrub", "soon"), "--scrub: 'soon' is not a duration"),
        ((*RUN, "--end", "folder"), "--end 'folder': [Errno 21] Is a directory"),
        (("demo", "--output", "file"), "Directory 'file' is a file"),
        (("lineage", "household_purchase", *DEFINED), "did you mean 'household_purchases@1"),
        (("lineage", VIEW, "--kind", "viev", *DEFINED), "--kind 'viev' is not known; did you mean 'view'?"),
        (("lineage", VIEW, "--dot", "--json", *DEFINED), "exclude each other"),
        (("lineage", VIEW, "--models", "nowhere", *DEFINED), "nowhere: there is no such folder"),
        (("lineage", VIEW, "--log", "nowhere"), "nowhere: there is no such folder; give the folder"),
        (("search", "spend", "--log", "folder"), "folder holds no log of any view"),
        (("search", "spend", *AWAY), "Redis: Error 111 connecting to 127.0.0.1:1"),
        (("nope",), "there is no command 'nope'"),
        (("get", VIEW, "1", *AWAY), "Redis: Error 111 connecting to 127.0.0.1:1"),
    ],
    ids=lambda each: "" if isinstance(each, str) else " ".join(each)[:60],
)
def test_a_wrong_argument_ends_in_one_line_that_says_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_path_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "views.yaml").write_text("name: v")
    (tmp_path / "views.py").write_text("x = 1")
    (tmp_path / "closed").mkdir(0o700)
    for path in (tmp_path / "views.yaml", tmp_path / "views.py"):
        path.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    program = (
        "import contextlib, encodings.utf_8_sig, io, os, sys; from unskew.cli import main\n"
        # Modules are imported when they are needed, and the other user may not be allowed to read them.
        "with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()): main(['check', 'nowhere'])\n"
        "os.setuid(65534); main(sys.argv[1:])"
    )
    for name in ("views.yaml", "views.py", "closed", "closed/views.yaml"):
        ended = subprocess.run(
            [sys.executable, "-c", program, "check", name],
            cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode in {1, 2}
        assert not ended.stdout
        (error,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
        assert name in error
        assert "is not readable" in error or "ermission denied" in error
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    ("lack", "said"),
    [
        (MemoryError("Unable to allocate 92.8 MiB"), "there is not enough memory: Unable to allocate 92.8 MiB; give"),
        (MemoryError(), "there is not enough memory: the system gives no more; give"),
        (RuntimeError("can't start new thread"), "the system starts no more threads: give"),
    ],
    ids=["memory", "memory, without words", "threads"],
)
def test_a_lack_of_memory_is_no_fault_of_the_program(monkeypatch, lack, said, is_wrapped):
    """The engine of the flow raises an error of its own, from that of the step that failed."""

    def check(*_, **__) -> None:
        if is_wrapped:
            raise RuntimeError("error calling on_batch") from lack
        raise lack

    monkeypatch.setattr(main.get_command(click.Context(main), "check"), "callback", check)
    result = invoke("check", ".")

    assert result.exit_code == 1
    assert f"error: {said}" in result.output
    assert "fault of unskew" not in result.output

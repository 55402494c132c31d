import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.features.definitions.test_load import PYTHON, SCHEMA
from unskew.cli import COMMANDS, main


@pytest.fixture
def purchases(tmp_path):
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "transaction.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "purchases.py").write_text(PYTHON)
    return tmp_path / "purchases.py"


def unskew(*arguments: object, **environment: str):
    return CliRunner(env=environment).invoke(main, [str(each) for each in arguments])


def test_help_names_every_command_without_importing_one():
    code = (
        "import sys\nfrom unskew.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "assert not {m for m in sys.modules if m.partition('.')[0] in ('bytewax', 'redis', 'confluent_kafka', 'rich')}"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_check_prints_a_line_for_each_view_with_its_fingerprints(purchases):
    result = unskew("check", purchases)

    assert result.exit_code == 0
    assert result.stdout.startswith("ok  user_purchases@1  3 features   state ")


def test_check_takes_the_paths_from_the_environment(purchases):
    assert unskew("check", UNSKEW_DEFINITIONS=str(purchases)).exit_code == 0
    assert unskew("check").exit_code == 2


def test_check_says_what_was_found_in_the_place_of_views(purchases):
    beside = purchases.with_name("views_in_a_list.py")
    beside.write_text(PYTHON.replace("user_purchases = FeatureView(", "VIEWS = [0]\nVIEWS[0] = FeatureView("))
    entities, nothing = (beside.with_name(f"{name}.py") for name in ("entities", "nothing"))
    entities.write_text("from unskew import Entity\nuser = Entity('user', key='user')\n")
    nothing.write_text("from unskew import Entity\nENTITIES = [Entity('user', key='user')]\n")
    hint = "in a Python file, what is only in a list or made in a function is not read: give it a name of its own"

    assert unskew("check", beside).stdout.startswith(f"ok, but there are no views, only streams transactions; {hint}")
    assert unskew("check", entities).stdout.startswith(f"ok, but there are no views, only entities; {hint}")
    assert hint in unskew("check", nothing).stderr


def test_check_prints_every_fault_and_no_traceback(purchases):
    purchases.write_text(PYTHON.replace('"amount"', '"amont"'))
    result = unskew("check", purchases)

    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [
        number
        for number, line in enumerate(purchases.read_text().splitlines(), 1)
        if line.lstrip().startswith("Feature(")
    ]
    said = "value: the stream has no column 'amont'; did you mean 'amount'?"
    assert result.stderr.splitlines() == [
        f"error: {purchases}:{lines[1]}: user_purchases.spend_30d: {said}",
        f"error: {purchases}:{lines[2]}: user_purchases.avg_amount_today: {said}",
        "2 faults",
    ]
    found = unskew("check", purchases, "--json")
    assert found.exit_code == 1
    assert [(one["file"], one["line"]) for one in json.loads(found.stdout)["faults"]] == [
        (str(purchases), lines[1]),
        (str(purchases), lines[2]),
    ]


def test_check_warns_of_a_value_that_an_enum_does_not_have_and_succeeds(purchases):
    purchases.write_text(PYTHON.replace("status = 'completed'", "status = 'complete'"))
    shown, found = unskew("check", purchases), unskew("check", purchases, "--json")

    assert (shown.exit_code, found.exit_code) == (0, 0)
    assert "status is compared with 'complete', which its enum does not have; did you mean 'completed'?" in shown.stderr
    (view,) = json.loads(found.stdout)["views"]
    assert (view["id"], view["features"], view["serves"]) == ("user_purchases@1", 3, True)
    assert any(one["line"] for one in json.loads(found.stdout)["warnings"] if "complete'" in one["text"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_unskew(shell):
    script = unskew("completion", shell).stdout

    assert f"_UNSKEW_COMPLETE={shell}_complete" in script
    assert "_unskew_completion" in script


@pytest.mark.parametrize(("typed", "found"), [("ret", {"retain"}), ("log st", {"stats"}), ("get --js", {"--json"})])
def test_commands_and_options_are_completed_and_completing_commands_imports_none(typed, found):
    words = f"unskew {typed}"
    code = (
        "import sys\nfrom unskew.cli import main\nimport atexit\n"
        "atexit.register(lambda: print('imported', 'unskew.cli.get' in sys.modules, 'numpy' in sys.modules))\n"
        "main(prog_name='unskew')"
    )
    more = {"_UNSKEW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **more},  # noqa: TID251
    )

    *lines, imported = shown.stdout.splitlines()
    assert {line.partition(",")[2] for line in lines} == found
    assert imported == "imported False False" or " " in typed


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("words", ["unskew nosuch ", "unskew log nosuch ", "unskew registry nosuch x", "unskew -x "])
def test_completing_after_what_there_is_not_prints_no_error(shell, words):
    asked = {"_UNSKEW_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}

    done = process_of({**os.environ, **asked})  # noqa: TID251

    assert (done.returncode, done.stderr) == (0, "")


def process_of(environment, *arguments, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, "-c", "from unskew.cli import main; main(prog_name='unskew')", *map(str, arguments)],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check", "describe", "describe --json", "--help", "log --help", "completion bash"])
def test_output_that_cannot_be_written_is_one_error_and_a_reader_that_goes_is_none(command, unbuffered, purchases):
    words = [*command.split(), *([purchases] if command.startswith(("check", "describe")) else [])]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}  # noqa: TID251
    with Path("/dev/full").open("w") as full:
        done = process_of(environment, *words, stdout=full)
    from_nobody, to_nobody = os.pipe()
    os.close(from_nobody)
    gone = process_of(environment, *words, stdout=to_nobody)
    os.close(to_nobody)

    assert (done.returncode, gone.stderr) == (1, "")
    (said,) = (line for line in done.stderr.splitlines() if not line.startswith("warning: "))
    assert said == (
        "error: standard output cannot be written: No space left on device; make room there, or send it elsewhere"
    )


@pytest.mark.parametrize("command", ["check", "describe"])
def test_what_definitions_print_is_no_part_of_what_a_command_prints(command, purchases):
    purchases.write_text(f"print('reading', flush=True)\n{PYTHON}")

    result = unskew(command, "--json", purchases)

    assert json.loads(result.stdout)["views"]
    assert "reading\n" in result.stderr


def test_describe_shows_views_entities_windows_hops_and_owners(purchases):
    shown = unskew("describe", purchases).stdout

    for part in (
        "user_purchases@1",
        "user_id string",
        "growth-ml-team",
        "30d",
        "2h",
        "day in Europe/Berlin",
        "mean(amount)",
    ):
        assert part in shown


def test_check_and_describe_show_services_with_the_versions_that_they_read(purchases):
    services = purchases.with_name("services.yaml")
    services.write_text(
        "service: {name: checkout, features: ['user_purchases:spend_30d'], owner: risk, tags: {tier: '1'}}"
    )

    assert "ok  checkout          1 feature    service\n" in unskew("check", purchases, services).stdout
    shown = unskew("describe", purchases, services).stdout
    for part in ("service checkout", "owner risk", "tags tier=1", "user_purchases:spend_30d", "user_purchases@1"):
        assert part in shown


def test_describe_json_is_the_registry(purchases):
    registry = json.loads(unskew("describe", "--json", purchases).stdout)

    assert [view["name"] for view in registry["views"]] == ["user_purchases"]


def test_interrupt_ends_with_130_and_no_traceback(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "unskew", "check", str(tmp_path / "slow.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_unknown_command_suggests_the_nearest():
    result = unskew("chek")

    assert result.exit_code == 2
    assert "there is no command 'chek'; did you mean 'check'?" in result.stderr


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert unskew("--version").stdout == f"unskew {project['version']}\n", "the installation is outdated: make install"

import json
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
    assert result.stderr.splitlines() == [
        "error: user_purchases.spend_30d: value: the stream has no column 'amont'; did you mean 'amount'?",
        "error: user_purchases.avg_amount_today: value: the stream has no column 'amont'; did you mean 'amount'?",
        "2 faults",
    ]


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
    (tmp_path / "slow.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "unskew", "check", str(tmp_path / "slow.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_unknown_command_suggests_the_nearest():
    result = unskew("chek")

    assert result.exit_code == 2
    assert "there is no command 'chek'; did you mean 'check'?" in result.stderr


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert unskew("--version").stdout == f"unskew {project['version']}\n", "the installation is outdated: make install"

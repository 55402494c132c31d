"""The examples on the demo's output, on a pipeline that ran through real servers: training, as a script and as a
notebook, and serving.
"""

import datetime as dt
import importlib
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient

from unskew.demo import journey
from unskew.demo.embedded import EmbeddedBroker
from unskew.demo.pacing import paced
from unskew.demo.page_views import page_views
from unskew.demo.topics import Topic
from unskew.features.definitions.load import load
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
HOME = ROOT / "examples" / "complete_journey"
N_HOUSEHOLDS = 200
N_PARTITIONS = 2
FORTNIGHT = dt.timedelta(days=14)
AT = dt.datetime(2017, 3, 1, tzinfo=dt.UTC)


def example(name: str) -> ModuleType:
    """A script of the example, as a module."""
    sys.path.insert(0, str(HOME))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HOME))


@pytest.fixture(scope="module")
def lines() -> pl.DataFrame:
    """The purchases of some households over the whole year."""
    return journey.transactions().filter(pl.col("household_id") <= N_HOUSEHOLDS)


@pytest.fixture(scope="module")
def output(lines: pl.DataFrame, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``unskew demo`` leaves it: log, archive and state of a pipeline that has ended."""
    root = tmp_path_factory.mktemp("demo-output")
    topics = [
        Topic(name="transactions", schema=journey.schema("transaction"), frame=lines, n_partitions=N_PARTITIONS),
        Topic(
            name="page_views",
            schema=journey.schema("page_view"),
            frame=page_views(lines, seed=journey.SEED),
            n_partitions=N_PARTITIONS,
        ),
    ]
    with EmbeddedBroker({topic.name: N_PARTITIONS for topic in topics}) as broker:
        deployment = Deployment(
            bootstrap=broker.bootstrap,
            redis_url=redis_server,
            log=root / "log",
            archive=root / "archive",
            dead_letters=root / "dead_letters",
            state=root / "state",
            idle="none",
            ends={topic.name: topic.end_offsets() for topic in topics},
            prefix="test-train",
            epoch_s=1.0,
        )
        with paced(broker.bootstrap, {topic.name: topic.chunks() for topic in topics}, group="test-train-main"):
            run(load(HOME), deployment, stop=threading.Event())
    return root


def test_the_script_trains_scores_and_draws(output):
    done = subprocess.run(
        [sys.executable, HOME / "train.py", output], check=False, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    first, honest, leaking, drawn, equal = done.stdout.splitlines()
    assert "labels on 46 Mondays" in first
    assert drawn == f"{output / 'leakage.png'} shows it"
    offline, served = (float(text.split()[-1]) for text in honest.split(","))
    assert offline == served > 0.7
    offline, served = (float(text.split()[-1]) for text in leaking.split(","))
    assert offline > served + 0.03
    assert (output / "leakage.png").read_bytes().startswith(b"\x89PNG")
    assert "households read from Redis with exact values: their 7 inputs and scores equal those of the log" in equal


def test_the_notebook_runs_from_top_to_bottom(output):
    notebook = nbformat.read(HOME / "train.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 'Path("demo-output")' in code[0].source
    code[0].source = code[0].source.replace('Path("demo-output")', f"Path({str(output)!r})")

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()

    assert any("image/png" in each.get("data", {}) for cell in code for each in cell.outputs)
    assert "equal to the last bit" in str(code[-2].outputs)


def test_the_script_that_serves_reads_the_same_in_three_ways(output, lines):
    done = subprocess.run(
        [sys.executable, HOME / "serve.py", output], check=False, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    *table, said = done.stdout.splitlines()
    (nobody,) = ([cell.strip() for cell in line.strip("│").split("┆")] for line in table if line.startswith("│ 0 "))
    assert nobody[:6] == ["0", "0", "0.0", "null", "0", "0"]
    n_read = lines["household_id"].n_unique() + 1
    assert said == (
        f"{n_read:,} households read by the SDK, by its async twin and over HTTP: all 5 features, their statuses and their "
        "instants are the same"
    )


@pytest.mark.parametrize("change", [
    lambda values, _: values.update(spend=[-0.0]),
    lambda values, _: values.update(spend=[0]),
    lambda values, _: values.update(spend=[None]),
    lambda _, told: told.update(purchases=[(AT, "default", False)]),
    lambda _, told: told.update(purchases=[(AT, "present", True)]),
    lambda _, told: told.update(purchases=[(AT + dt.timedelta(microseconds=1), "present", False)]),
])  # fmt: skip
def test_the_script_that_serves_ends_with_an_error_where_one_reads_otherwise(change):
    serve = example("serve")
    expected, another = (({"spend": [0.0]}, {"purchases": [(AT, "present", False)]}) for _ in range(2))

    serve.refuse_difference(expected, {"HTTP": another})
    change(*another)
    with pytest.raises(SystemExit, match="HTTP reads other values, statuses or instants than the SDK"):
        serve.refuse_difference(expected, {"the async twin": expected, "HTTP": another})


def test_labels_say_whether_the_household_bought_within_14_days(output, lines):
    labels = example("train").monday_labels(output / "archive")

    bought_at: dict[int, list[dt.datetime]] = {}
    for household, us in lines.filter(pl.col("quantity") > 0).select("household_id", "event_time").iter_rows():
        bought_at.setdefault(household, []).append(dt.datetime.fromtimestamp(us / 1e6, dt.UTC))
    last = max(max(times) for times in bought_at.values())
    mondays, monday = [], dt.datetime(2017, 2, 6, tzinfo=dt.UTC)
    while monday <= last - FORTNIGHT:
        mondays.append(monday)
        monday += dt.timedelta(days=7)
    assert labels.height == len(mondays) * len(bought_at)
    for household, at, bought in labels.iter_rows():
        assert at in mondays
        assert bought == any(at <= time < at + FORTNIGHT for time in bought_at[household]), (household, at)


@pytest.mark.parametrize("script", ["train.py", "serve.py"])
def test_a_folder_without_a_demo_is_named(script, tmp_path):
    done = subprocess.run(
        [sys.executable, HOME / script, tmp_path / "nothing"], check=False, capture_output=True, text=True
    )

    assert done.returncode == 2
    assert "does not hold the output of a demo: run unskew demo first" in done.stderr

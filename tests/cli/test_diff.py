"""``unskew diff``: definitions on disk, an archive on disk, and what a person reads."""

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from tests.support.terminal import WIDTHS, broken, cells, in_terminal, wider
from tests.support.written import write_archive
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.keys import shard_of

T0 = 1_490_400_000_000_000
MINUTE = 60_000_000
SCHEMA = {
    "type": "record",
    "name": "purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "amount", "type": "double"},
    ],
}
DEFINITIONS = """
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

user = Entity("user", key="user")
stream = Stream("purchases", topic="purchases", schema="purchase.avsc", event_time="at", owner="shop"{partitioned})
spend = FeatureView("spend", version={version}, entity=user, stream=stream, owner="shop", features=[
    Feature("count", agg.count(), Sliding("{window}")),
    Feature("mean", agg.mean("amount"), Sliding("10min"){default}),
    Feature("a_feature_with_a_rather_long_name_of_more_than_forty_letters", agg.sum("amount"), Sliding("{window}")),
    Feature("{last}", agg.last("amount"), Sliding("10min")),
])
second = FeatureView("{second}", entity=user, stream=stream, owner="shop", features=[
    Feature("n", agg.count(), Sliding("10min")),
])
"""
OLD = {"version": 1, "window": "10min", "default": "", "last": "last", "second": "other", "partitioned": ""}


def definitions(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "purchase.avsc").write_text(json.dumps(SCHEMA))
    text = DEFINITIONS
    for name, value in {**OLD, **changes}.items():
        text = text.replace(f"{{{name}}}", str(value))
    (folder / "views.py").write_text(text)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two partitions, forty users, an event every 20 seconds for an hour; user "u|7" needs escapes."""
    view = load(definitions(tmp_path / "old")).views["spend"]
    n = 180
    user = [f"u|{number % 40}" for number in range(n)]
    at = pl.Series([T0 + number * MINUTE // 3 for number in range(n)]).cast(pl.Datetime("us", "UTC"))
    events = pl.DataFrame({"user": user, "at": at, "amount": [float(number % 7) for number in range(n)]}).with_columns(
        _partition=pl.Series(shard_of(pl.Series(user), 2)).cast(pl.Int32),
        _arrival=pl.col("at"),
        _event_time=pl.col("at"),
    )
    events = events.with_columns(_offset=pl.int_range(pl.len()).over("_partition").cast(pl.Int64))
    write_archive(tmp_path / "archive", view, events)
    return tmp_path / "archive"


def invoked(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["diff", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_kind_of_change_is_shown_and_fits_the_page(archive: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    new = definitions(tmp_path / "new", version=2, window="5min", default=", default=0.5", last="latest", second="more")

    shown = invoked(old, new, "--archive", archive, "--examples", 3)
    found = json.loads(invoked(old, new, "--archive", archive, "--json"))

    for width in WIDTHS:
        page = in_terminal(width, "diff", old, new, "--archive", archive, "--examples", 3)
        assert wider(page, width) == []
        assert broken(page, [word for row in cells(shown) for cell in row for word in cell.split()]) == []
    spend, more, other = found["views"]
    assert (other["old"], other["new"], other["removed"]) == ("other@1", None, ["n"])
    assert (more["old"], more["new"], more["added"]) == (None, "more@1", ["n"])
    assert (spend["old"], spend["new"]) == ("spend@1", "spend@2")
    assert (spend["removed"], spend["added"]) == (["last"], ["latest"])
    assert not found["identical"]
    features = {one["feature"]: one for one in spend["features"]}
    # An event counts for 5 minutes less: one event less in each such span of a user, who comes every 13 minutes.
    assert features["count"]["differing"] > 0
    assert features["count"]["absolute"]["max"] == 1.0
    assert features["count"]["relative"]["p50"] == 1.0
    assert features["count"]["increased"] == 0
    # The mean of nobody's events is null in the old definitions, and 0.5 in the new ones.
    assert features["mean"]["from_null"] == features["mean"]["differing"] > 0
    assert "spend@1 -> spend@2: " in shown
    assert "removed: last" in shown
    assert "more@1: added" in shown
    assert "other@1: removed" in shown
    assert "u|1" in shown


def test_what_is_the_same_is_called_identical(archive: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    # Whether events come through one shard or two is no change of a value.
    split = definitions(tmp_path / "split", partitioned=', partitioned_by="user"')

    shown = invoked(old, old, "--archive", archive)
    computed = invoked(old, split, "--archive", archive)

    assert "spend@1: identical, because the definition is the same" in shown
    assert shown.splitlines()[-1] == "identical"
    assert "spend@1: identical in" in computed
    assert computed.splitlines()[-1] == "identical"


def test_samples_bounds_and_processes_give_parts_of_one_result(archive: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", definitions(tmp_path / "new", window="5min")

    def found(*options: object) -> dict[str, object]:
        (spend, _) = json.loads(invoked(old, new, "--archive", archive, "--json", *options))["views"]
        return spend

    whole = found()
    assert whole["entities"] == whole["changed"] == 40
    assert found("--workers", 2) == whole
    assert found("--entities", 7)["entities"] == 7
    assert found("--entities", 40) == whole == found("--entities", 100)
    assert 10 < found("--share", 0.5)["entities"] < 30
    assert found("--from", "2017-03-25T00:30:00Z")["instants"] < whole["instants"]
    parts = [found("--until", "2017-03-25T00:30:00Z"), found("--from", "2017-03-25T00:30:00Z")]
    assert (
        parts[0]["features"][0]["differing"] + parts[1]["features"][0]["differing"] >= whole["features"][0]["differing"]
    )


def test_two_versions_of_one_folder_are_compared_by_their_names(archive: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    definitions(both, second="other")
    later = (both / "views.py").read_text().split('spend = FeatureView("spend", version=1')[1].split("second =")[0]
    later = later.replace("10min", "5min")
    text = (both / "views.py").read_text().replace("version=1,", "version=1, serving=True,")
    (both / "views.py").write_text(f'{text}spend_2 = FeatureView("spend", version=2{later}')

    named = json.loads(
        invoked("spend@1", "spend@2", "--definitions", both, "--archive", archive, "--json", "--entities", 9)
    )
    other = json.loads(invoked("other@1", "spend@1", "--definitions", both, "--archive", archive, "--json"))

    ((spend,), (mixed,)) = named["views"], other["views"]
    assert (spend["old"], spend["new"], spend["entities"]) == ("spend@1", "spend@2", 9)
    assert spend["features"][0]["differing"] > 0
    assert (mixed["removed"], mixed["features"], mixed["identical"]) == (["n"], [], False)
    assert "no feature is on both sides" in mixed["why_not_comparable"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("old", "new"), "Missing option '--archive'"),
        (("nowhere", "old", "--archive", "archive"), "nowhere: there is no such file or folder"),
        (("old", "old", "--archive", "nowhere"), "nowhere: there is no such folder"),
        (("old", "new", "--archive", "folder"), "holds no events"),
        (("spend@1", "spend@2", "--archive", "archive"), "name their folder with --definitions"),
        (("spend@1", "spend@9", "--archive", "archive", "--definitions", "old"), "there is no view 'spend@9'"),
        (("old", "new", "--archive", "archive", "--from", "soon"), "--from soon"),
        (("old", "new", "--archive", "archive", "--from", "2030-01-01"), "there are no instants from"),
        (("old", "new", "--archive", "archive", "--from", "2017-03-26", "--until", "2017-03-25"), "give a later end"),
        (("old", "new", "--archive", "archive", "--share", "0.1", "--entities", "3"), "exclude each other"),
    ],
    ids=lambda each: "" if isinstance(each, str) else " ".join(each)[:60],
)
def test_a_wrong_argument_is_an_error_that_says_what_to_do(
    arguments: tuple[str, ...], said: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    definitions(tmp_path / "new", window="5min")
    (tmp_path / "folder").mkdir()

    result = CliRunner().invoke(main, ["diff", *arguments])

    assert result.exit_code in {1, 2}
    assert said in result.output
    assert "Traceback" not in result.output
    assert archive.exists()

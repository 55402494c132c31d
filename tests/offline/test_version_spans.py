"""Training sets that span versions of a view: which version answers which label, and what cannot be spanned."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tests.support.plans import DAY, HOUR, Wanted, republished, sliding, view
from tests.support.updates import closing
from unskew import FeatureStore, LayoutError, RequestError
from unskew.cli import main
from unskew.cli.applying import next_revision
from unskew.features.plan import Plan, ViewPlan
from unskew.features.revision import Content
from unskew.features.versions import Versions
from unskew.offline.logged import all_logged, with_logged
from unskew.offline.manifest import Manifest
from unskew.sinks.record import Record
from unskew.sinks.tables.checksum import read_json
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.layout import shards_file, view_root
from unskew.sinks.tables.parquet import record_shards

START = 1_488_326_400 * 1_000_000  # 2017-03-01 00:00 UTC
N, MEAN = Wanted("n", "count", sliding(DAY, HOUR)), Wanted("mean", "mean", sliding(DAY, HOUR), "x", default=-1.0)


def version(number: int, *wanted: Wanted, **more: Any) -> ViewPlan:
    made = view(*(wanted or (N, MEAN)), name="spend", **more)
    return republished(made, version=number, serving=number == 1, state_fingerprint=f"{number}" * 64)


ONE, TWO = version(1), version(2, N, Wanted("mean", "mean", sliding(HOUR, HOUR), "x", default=-2.0))
THREE = version(3, N, Wanted("mean", "max", sliding(HOUR, HOUR), "n", of="int64"))
FOUR = version(4, N, keys={"user": "int64"})
TWO_ALONE = Plan(streams={}, views={TWO.id: TWO})
PLAN = Plan(streams={}, views={one.id: one for one in (ONE, TWO, THREE, FOUR)})


def written(folder: Path, one: ViewPlan, *, since_h: float, complete_to_h: float, n: int) -> None:
    """A log with one row, of user a, an hour after its ``since``."""
    since_us = START + round(since_h * HOUR)
    record_shards(view_root(folder, one.name, one.version), ["h0"], view=one)
    table = LogTable(folder, one, "h0", None, now_us=lambda: 0)
    row = {"user": "a", "n": n, "mean": float(n), "available_at": since_us + HOUR, "cause": "event", "seq": 0}
    clock_us = START + round(complete_to_h * HOUR) + 1
    table.append(closing(one, clock_us, log_rows=[row], since_us=since_us))
    table.snapshot()
    table.settle()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Version 1 from hour 0 to 30, version 2 from hour 10 to 40."""
    written(tmp_path, ONE, since_h=0, complete_to_h=30, n=1)
    written(tmp_path, TWO, since_h=10, complete_to_h=40, n=2)
    return tmp_path


def labels(*hours: float, user: str | None = "a") -> pl.DataFrame:
    instants = [dt.datetime.fromtimestamp((START + round(hour * HOUR)) / 1e6, dt.UTC) for hour in hours]
    return pl.DataFrame(
        {"user": [user] * len(hours), "event_timestamp": instants},
        schema={"user": pl.String(), "event_timestamp": pl.Datetime("us", "UTC")},
    )


US = 1 / HOUR


def test_a_label_is_answered_by_the_highest_version_that_could_answer_at_its_instant(log: Path) -> None:
    """Each label with the version and the values that must be found.

    hours   0    1        10   11                30        40
    v1      |====n=1======|====|=================|
    v2                    |====n=2===============|=========|
    """
    expected = {
        -1: (1, None, None, "before_log"),
        0.5: (1, 0, -1.0, None),
        2: (1, 1, 1.0, None),
        10 - US: (1, 1, 1.0, None),
        10: (2, 0, -2.0, None),
        11: (2, 0, -2.0, None),
        11 + US: (2, 2, 2.0, None),
        35: (2, 2, 2.0, None),
        41: (2, None, None, "after_log"),
    }
    # The answers of both versions are mixed.
    hours = [11, -1, 35, 2, 41, 0.5, 10, 10 - US, 11 + US]
    asked: dict[str, Any] = {"versions": {"spend": [2, 1]}, "outside": "null", "with_status": True}

    for store in (FeatureStore(PLAN, log=log), FeatureStore(log=log)):
        found = store.get_historical_features(
            labels(*hours), ["spend:n", "spend:mean", "spend@1:n"], **asked, full_feature_names=True
        )
        frame = found.to_df()
        rows = frame.select("spend__version", "spend__n", "spend__mean").rows()
        assert rows == [expected[hour][:3] for hour in hours]
        outside = [one if one.endswith("_log") else None for one in frame["spend__n__status"].to_list()]
        assert outside == [expected[hour][3] for hour in hours]
        assert frame["spend__version"].dtype == pl.Int32()
        # A reference that names its version is not spanned.
        assert frame.filter(pl.col("spend__version") == 2)["spend@1__n"].to_list() == [
            1 if 10 <= hour < 30 else None for hour in hours if hour >= 10
        ]
        # The manifest makes the same rows again.
        manifest = Manifest.parse(found.manifest.to_json(), "m")
        assert manifest.join.versions == {"spend": (2, 1)}
        assert [part.id for part in manifest.views] == ["spend@1", "spend@2"]
        assert store.reproduce(labels(*hours), manifest).to_df().equals(frame)


def test_statuses_are_those_of_the_version_that_answers(log: Path) -> None:
    """One day after it began, a window of a day is whole; the window of an hour is whole one hour after."""
    hours = (2, 9.5, 10.5, 11.5, 29, 35)
    found = FeatureStore(PLAN, log=log).get_historical_features(
        labels(*hours), ["spend:n", "spend:mean"], versions={"spend": [1, 2]}, with_status=True
    )

    frame = found.to_df()
    assert frame["n__status"].to_list() == ["warming"] * 5 + ["present"]
    assert frame["mean__status"].to_list() == ["warming", "warming", "warming", "present", "present", "present"]
    assert found.summary["warming"].to_list() == [5, 3]
    assert frame.columns == ["user", "event_timestamp", "n", "n__status", "mean", "mean__status", "spend__version"]


@pytest.mark.parametrize("source", ["rows", "pandas", "none"])
def test_any_table_may_span_versions(log: Path, source: str) -> None:
    table = labels(*(() if source == "none" else (2, 12)))
    given: Any = {"rows": table.to_dicts(), "pandas": table.to_pandas(), "none": table}[source]

    for store in (FeatureStore(log=log), FeatureStore(TWO_ALONE, log=log)):
        found = store.get_historical_features(given, ["spend:n"], versions={"spend": [1, 2]})

        assert found.to_polars()["spend__version"].to_list() == ([] if source == "none" else [1, 2])


def test_a_version_of_the_log_alone_does_not_change_what_the_bare_name_means(log: Path) -> None:
    """Version 2 is the only one that is defined, and its definition does not say that it serves."""
    found = FeatureStore(TWO_ALONE, log=log).get_historical_features(
        labels(12), ["spend:n", "spend@1:n"], full_feature_names=True
    )

    assert found.to_df().select("spend__n", "spend@1__n").rows() == [(2, 1)]


def test_a_log_alone_says_what_exists(log: Path, tmp_path: Path) -> None:
    found = FeatureStore(log=log).features()

    assert found["reference"].to_list() == ["spend@1:n", "spend@1:mean", "spend@2:n", "spend@2:mean"]
    assert FeatureStore(TWO_ALONE, log=log).features()["reference"].to_list() == ["spend:n", "spend:mean"]
    with pytest.raises(RequestError, match="holds no log of any view"):
        FeatureStore(log=tmp_path / "spend").features()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda found: found.pop("view"), "the log of spend@1 under .* does not hold its definition"),
        (
            lambda found: found.update(view=3),
            "the definition in .*_shards.json cannot be read: Expected `object`, got `int`",
        ),
        (lambda found: found["view"].pop("windows"), "cannot be read: Object missing required field `windows`"),
        (
            lambda found: found["view"]["features"][0].update(type="colour"),
            "type 'colour' in spend@1, which this version",
        ),
        (lambda found: found["view"].update(version=2), "holds the log of spend@2; move it to where it was written"),
        (lambda found: found["view"].update(state_fingerprint="0"), "was written with another definition of spend@1"),
    ],
)
def test_a_log_whose_definition_cannot_be_used_is_named(log: Path, damage: Any, error: str) -> None:
    path = shards_file(view_root(log, "spend", 1))
    found = read_json(path.read_bytes())
    damage(found)
    path.write_text(json.dumps(found))

    with pytest.raises(LayoutError, match=error):
        FeatureStore(log=log).get_historical_features(labels(2), ["spend@1:n"])


def test_without_versions_only_the_serving_one_answers(log: Path) -> None:
    frame = FeatureStore(PLAN, log=log).get_historical_features(labels(2, 12), ["spend:n"]).to_df()

    assert frame.columns == ["user", "event_timestamp", "n"]
    assert frame["n"].to_list() == [1, 1]


def test_a_version_that_has_seen_nothing_yet_answers_nothing(log: Path) -> None:
    record_shards(view_root(log, "spend", 3), ["h0"], view=version(3))
    store = FeatureStore(Plan(streams={}, views={one.id: one for one in (ONE, TWO, version(3))}), log=log)

    frame = store.get_historical_features(labels(2, 12), ["spend:n"], versions={"spend": [1, 2, 3]}).to_df()

    assert frame["spend__version"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("features", "versions", "more", "error"),
    [
        (
            ["spend:n"],
            {"spend": [1, 9]},
            {},
            "view 'spend' has no version '9'; there is spend@1, spend@2, spend@3, spend@4",
        ),
        (["spend:n"], {"spent": [1, 2]}, {}, "versions has 'spent', but no feature is requested as spent:feature"),
        (["spend@1:n"], {"spend": [1, 2]}, {}, "versions has 'spend', but no feature is requested as spend:feature"),
        (["spend:n"], {"spend": []}, {}, "versions of 'spend' is []; give a list of numbers, for example [1, 2]"),
        (["spend:n"], {"spend": "12"}, {}, "versions of 'spend' is '12'; give a list of numbers"),
        (["spend:n"], {"spend": [1, True]}, {}, "give a list of numbers"),
        (["spend:n"], {"spend": 2}, {}, "versions of 'spend' is 2; give a list of numbers"),
        (["spend:n"], {"spend": [1, 2, 1]}, {}, "versions of 'spend' has one twice: 1, 2, 1; name each once"),
        (["spend:n"], [1, 2], {}, "versions is a mapping"),
        ([3], {"spend": [1, 2]}, {}, "3 is not a feature reference"),
        (
            ["spend:mean"],
            {"spend": [1, 3]},
            {},
            "spend:mean cannot span versions: spend@1 has it as float64, and spend@3 has it as int64",
        ),
        (["spend:n"], {"spend": [1, 4]}, {}, r"spend@1 and spend@4 have other keys (user string and user int64)"),
        (["spend:last"], {"spend": [1, 2]}, {}, "spend has no feature 'last'"),
        (["spend:n"], {"spend": [1, 2]}, {"source": "events"}, "versions are spanned in the log alone"),
        (["spend:n"], {"spend": [1, 2]}, {"source": "both"}, "versions are spanned in the log alone"),
    ],
)
def test_what_cannot_be_spanned_is_refused(log: Path, features: Any, versions: Any, more: Any, error: str) -> None:
    store = FeatureStore(PLAN, log=log, archive=log)

    with pytest.raises(RequestError) as caught:
        store.get_historical_features(labels(2), features, versions=versions, **more)

    assert error in str(caught.value)


def test_the_command_spans_versions_too(log: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "labels.parquet", tmp_path / "out.parquet"
    labels(2, 12).write_parquet(file)
    where = ["train", str(file), "-o", str(out), "--log", str(log)]

    made = CliRunner().invoke(main, [*where, "-f", "spend", "--versions", "spend=1,2"])
    unclear = CliRunner().invoke(main, [*where, "-f", "spend", "--overwrite"])
    wrong = CliRunner().invoke(main, [*where, "-f", "spend:n", "--versions", "spend=1+2", "--overwrite"])

    assert made.exit_code == 0, made.output
    assert pl.read_parquet(out)["spend__version"].to_list() == [1, 2]
    assert "error: view 'spend' has several versions" in unclear.output
    assert "error: --versions spend=1+2: write a view and its versions" in wrong.output


def test_commands_take_a_version_and_need_no_definitions(log: Path) -> None:
    where = ["--log", str(log)]

    def output(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, [*words, *where])
        return done.exit_code, done.output

    code, head = output("log", "head", "spend@2")
    assert (code, "11:00:00" in head) == (0, True), head
    code, stats = output("log", "stats", "spend@1")
    assert (code, "spend@1" in stats, "00:00:00" in stats) == (0, True, True), stats
    code, unclear = output("log", "head", "spend")
    assert (code, "error: view 'spend' has several versions, and nothing says which one serves" in unclear) == (1, True)
    code, compacted = output("compact", "spend@2")
    assert (code, "spend@2" in compacted, "spend@1" in compacted) == (0, True, False), compacted
    code, both = output("compact", "spend")
    assert (code, "spend@2" in both, "spend@1" in both) == (0, True, True), both
    code, unknown = output("compact", "spend@7")
    assert (code, "holds no version '7' of 'spend'; it has spend@1, spend@2" in unknown) == (1, True), unknown


def test_a_feature_that_one_version_lacks_and_a_label_outside_are_named(log: Path) -> None:
    extra = version(2, N, MEAN, Wanted("last", "last", sliding(DAY, HOUR), "x"))
    store = FeatureStore(Plan(streams={}, views={one.id: one for one in (ONE, extra)}), log=log)
    with pytest.raises(
        RequestError, match="spend:last cannot span versions: spend@1 does not have it; request spend@2:last alone"
    ):
        store.get_historical_features(labels(2), ["spend:last"], versions={"spend": [1, 2]})
    lacking = version(3, N)
    store = FeatureStore(Plan(streams={}, views={one.id: one for one in (ONE, TWO, lacking)}), log=log)
    with pytest.raises(RequestError, match="spend:mean cannot span versions: spend@3 does not have it"):
        store.get_historical_features(labels(2), ["spend:mean"], versions={"spend": [1, 2, 3]})

    # The row is that of the whole table, and version 1 need not be complete to where version 2 answers.
    with pytest.raises(RequestError, match=r"1 of 3 labels are later than the log of spend@2 is complete, .* row 2 "):
        FeatureStore(PLAN, log=log).get_historical_features(labels(2, 35, 41), ["spend:n"], versions={"spend": [1, 2]})
    taken = labels(2).with_columns(spend__version=pl.lit(1))
    with pytest.raises(RequestError, match="would replace the label column 'spend__version'"):
        FeatureStore(PLAN, log=log).get_historical_features(taken, ["spend:n"], versions={"spend": [1, 2]})


def test_a_bare_name_means_the_version_that_serves_by_the_record_beside_the_log(
    log: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = log.rename(tmp_path_factory.mktemp("deployment") / "log")
    views = tuple(all_logged(log).values())
    content = Content(views=views, serves={"spend": 1})
    Record(log.with_name("registry")).append(next_revision(None, content, ["+ view spend@1"], command="apply"))

    assert with_logged(log, ["spend"]).find("spend").id == "spend@1"
    done = CliRunner().invoke(main, ["log", "stats", "spend", "--log", str(log)])
    assert (done.exit_code, "spend@1" in done.output) == (0, True), done.output


def test_a_definition_means_the_version_as_which_it_was_applied(
    log: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = log.rename(tmp_path_factory.mktemp("deployment") / "log")
    logged = all_logged(log)
    content = Content(views=tuple(logged.values()), serves={"spend": 2})
    Record(log.with_name("registry")).append(next_revision(None, content, ["+ view spend@2"], command="dev"))
    written = Versions([replace(logged["spend@2"], version=1)])
    other = Versions([replace(logged["spend@1"], version=1)])

    assert with_logged(log, ["spend"], written).find("spend").id == "spend@2"
    same = logged["spend@1"].state_fingerprint == logged["spend@2"].state_fingerprint
    assert with_logged(log, ["spend"], other).find("spend").id == ("spend@2" if same else "spend@1")

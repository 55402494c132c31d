"""``unskew train``: a training set from the command line, made again from its manifest, and what it refuses."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

import unskew
from tests.support.updates import closing
from unskew.cli import main
from unskew.sinks.tables.kinds import ArchiveTable, LogTable

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
HOUR_US = 3_600_000_000
DEFINITION = """
from unskew import Entity, Feature, FeatureView, Service, Sliding, Stream, agg

shop = Entity("shop", key=["user_id", "shop_id"])
sales = Stream("sales", topic="sales", schema="sale.avsc", event_time="event_time")
purchases = FeatureView(
    "purchases", entity=shop, stream=sales,
    features=[
        Feature("count_1d", agg.count(), Sliding("1d")),
        Feature("spend_1d", agg.sum("amount"), Sliding("1d"), description="Spent in a day"),
    ],
)
fraud = Service("fraud", features=["purchases:spend_1d"])
"""
SCHEMA = {
    "type": "record",
    "name": "sale",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "shop_id", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "amount", "type": "double"},
    ],
}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User 007 has bought once, at noon in shop 1; the log is complete until one."""
    monkeypatch.chdir(tmp_path)
    Path("definitions").mkdir()
    Path("definitions/sale.avsc").write_text(json.dumps(SCHEMA))
    Path("definitions/views.py").write_text(DEFINITION)
    view = unskew.load("definitions").views["purchases"]
    table = LogTable(Path("log"), view, "h0", None, now_us=lambda: 0)
    row = {
        "user_id": "007",
        "shop_id": 1,
        "count_1d": 1,
        "spend_1d": 2.5,
        "available_at": NOON_US,
        "cause": "event",
        "seq": 0,
    }
    table.append(closing(view, NOON_US + HOUR_US, log_rows=[row], since_us=NOON_US - 100 * HOUR_US))
    table.snapshot()
    table.settle()
    at = pl.Series([NOON_US]).cast(pl.Datetime("us", "UTC"))
    events = pl.DataFrame({"user_id": ["007"], "shop_id": [1], "event_time": at, "amount": [2.5]})
    archive = ArchiveTable(Path("archive"), "sales", 0, None)
    archive.append(
        events.with_columns(_partition=pl.lit(0, pl.Int32), _offset=pl.Series([0]), _arrival=at, _event_time=at),
        first_us=NOON_US - 100 * HOUR_US,
        clock_us=NOON_US + HOUR_US + 1,
    )
    archive.snapshot()
    archive.snapshot()
    Path("labels.csv").write_text(
        "user_id,shop_id,event_timestamp,note\n"
        "007,1,2026-03-01T12:30:00Z,after\n"
        "007,1,2026-03-01 12:00,at\n"
        "007,2,2026-03-01T13:30:00+01:00,other shop\n"
        "7,1,2026-03-01T12:30:00.5Z,other user\n"
    )


def train(*arguments: str, labels: str = "labels.csv", output: str = "out.parquet") -> Result:
    return CliRunner().invoke(main, ["train", labels, "-o", output, *arguments])


FROM_LOG = ("--definitions", "definitions", "--log", "log")


def test_labels_from_csv_and_parquet_get_their_features_and_keep_their_columns() -> None:
    ended = train("-f", "purchases", *FROM_LOG)

    assert ended.exit_code == 0, ended.output
    found = pl.read_parquet("out.parquet")
    assert found.columns == ["user_id", "shop_id", "event_timestamp", "note", "count_1d", "spend_1d"]
    assert found.drop("event_timestamp").rows() == [
        ("007", 1, "after", 1, 2.5),
        ("007", 1, "at", 0, 0.0),
        ("007", 2, "other shop", 0, 0.0),
        ("7", 1, "other user", 0, 0.0),
    ]
    half = timedelta(minutes=30)
    assert found["event_timestamp"].to_list() == [NOON + half, NOON, NOON + half, NOON + half + timedelta(seconds=0.5)]
    for said in (
        "4 labels x 2 features, from the log",
        "purchases@1: history from",
        "25.0 %",
        "75.0 %",
        "out.manifest.json written",
    ):
        assert said in ended.output
    found.select("user_id", "shop_id", pl.col("event_timestamp").alias("t")).write_parquet("labels.parquet")
    options = ("--timestamp", "t", "--inclusive", "--full-feature-names", "--with-status", "--max-age", "10min")
    ended = train("-f", "purchases:count_1d", *options, *FROM_LOG, labels="labels.parquet", output="other.parquet")
    assert ended.exit_code == 0, ended.output
    assert pl.read_parquet("other.parquet").select("purchases__count_1d", "purchases__count_1d__status").rows() == [
        (None, "expired"),
        (1, "present"),
        (0, "default"),
        (0, "default"),
    ]


@pytest.mark.parametrize("source", ["log", "events", "both"])
def test_a_manifest_makes_the_same_files_again_and_needs_no_more_than_it_must(source: str) -> None:
    assert train("-f", "purchases", "--source", source, *FROM_LOG, "--archive", "archive").exit_code == 0
    places = {
        "log": ("--log", "log"),
        "events": ("--definitions", "definitions", "--archive", "archive"),
        "both": ("--definitions", "definitions", "--archive", "archive", "--log", "log"),
    }[source]

    ended = train("--reproduce", "out.manifest.json", *places, output="again.parquet")

    assert ended.exit_code == 0, ended.output
    assert "reproduced: the values are the same to the last bit" in ended.output
    assert Path("again.parquet").read_bytes() == Path("out.parquet").read_bytes()
    assert Path("again.manifest.json").read_bytes() == Path("out.manifest.json").read_bytes()


def labels_with(text: str) -> str:
    Path("wrong.csv").write_text(text)
    return "wrong.csv"


HEAD = "user_id,shop_id,event_timestamp\n"
VIEW = ("-f", "purchases", *FROM_LOG)


@pytest.mark.parametrize(
    ("labels", "arguments", "said"),
    [
        ("user_id,event_timestamp\n007,2026-03-01T12:30:00Z\n", VIEW, "whose key 'shop_id' is not among the given columns"),
        ("user_id,shop_id,at\n007,1,2026-03-01T12:30:00Z\n", VIEW, "the labels have no column 'event_timestamp'"),
        (HEAD + "007,one,2026-03-01T12:30:00Z\n", VIEW, "'shop_id' of row 0 is 'one', which is not of type Int64"),
        (HEAD + "007,1,2026-03-01T12:30:00Z\n007,1.5,2026-03-01T12:30:00Z\n", VIEW, "'shop_id' of row 1 is '1.5'"),
        (HEAD + "007,1,2026-03-01\n", VIEW, "is '2026-03-01', which is not an instant in ISO 8601 with a time"),
        (HEAD + "007,1,1772366400000\n", VIEW, "is '1772366400000', which is not an instant"),
        (HEAD + "007,1,\n", VIEW, "'event_timestamp' is null in row 0"),
        ("user_id,shop_id,event_timestamp,x,x\n007,1,2026-03-01T12:30:00Z,1,2\n", VIEW, "has two columns 'x'; rename one of them"),
        (HEAD, VIEW, "wrong.csv has no rows; give at least one label"),
        ("", VIEW, "wrong.csv cannot be read as CSV: "),
        (HEAD + "007,1,2026-03-01T12:30:00Z,more,columns\n", VIEW, "wrong.csv cannot be read as CSV: "),
        (HEAD + "007,1,2026-03-02T12:30:00Z\n", VIEW, 'set outside to "null" (--outside null), which'),
        ("user_id,shop_id,at\n007,1,2026-03-01T12:30:00Z\n", VIEW, "the column that holds the instant as timestamp (--timestamp)"),
        ("user_id,shop_id,event_timestamp,count_1d\n007,1,2026-03-01T12:30:00Z,1\n", VIEW, "set full_feature_names (--full-feature-names)"),
        (HEAD + "007,1,2026-03-02T12:30:00Z\n", VIEW, "1 of 1 labels are later than the log of purchases@1 is complete"),
        (HEAD + "007,1,2020-03-02T12:30:00Z\n", VIEW, "1 of 1 labels are earlier than the first event"),
        (HEAD + "007,1,2320-03-02T12:30:00Z\n", VIEW, "is not between the years 1900 and 2200"),
        ("nowhere.csv", VIEW, "nowhere.csv: there is no such file"),
        ("definitions.csv", VIEW, "definitions.csv: it is not a file"),
        ("definitions/views.py", VIEW, "files that end in .parquet or .csv"),
        ("wrong.parquet", VIEW, "wrong.parquet cannot be read as Parquet: "),
        ("labels.csv", FROM_LOG, "no features are requested: give -f VIEW"),
        ("labels.csv", VIEW[:2], "give --definitions"),
        ("labels.csv", VIEW[:4], "give its folder as log"),
        ("labels.csv", ("-f", "purchase", *FROM_LOG), "there is no view 'purchase'; did you mean 'purchases'"),
        ("labels.csv", ("-f", "fraud", *FROM_LOG, "--definitions", "definitions"), "no view 'fraud', but a service of this name; give --service fraud"),
        ("labels.csv", ("-f", "purchases:nope", *FROM_LOG), "no feature 'nope'"),
        ("labels.csv", (*VIEW, "--log", "nowhere"), "nowhere: there is no such folder"),
        ("labels.csv", (*VIEW, "--source", "events"), "give their folder as archive"),
        ("labels.csv", (*VIEW, "--max-age", "soon"), "--max-age: 'soon' is not a duration"),
        ("labels.csv", (*VIEW, "-o", "there.parquet"), "there.parquet is there already; choose another name, or set overwrite (--overwrite)"),
        ("labels.csv", (*VIEW, "-o", "there.csv"), "there.csv: a training set is written as Parquet; call it there.parquet"),
        ("labels.csv", (*VIEW, "-o", "labels.csv", "--overwrite"), "-o labels.csv are the labels themselves"),
        ("labels.csv", (*VIEW, "--max-age", "2000000000d"), "is longer than 30,000 years"),
        ("labels.csv", (*VIEW, "-o", "definitions"), "definitions is a folder"),
        ("labels.csv", (*VIEW, "-o", "no/out.parquet"), "there is no folder no"),
        ("labels.csv", ("--reproduce", "nowhere", "--log", "log"), "nowhere: No such file"),
        ("labels.csv", ("--reproduce", "labels.csv", "--log", "log"), "labels.csv is not a manifest of a training set"),
        ("labels.csv", ("--reproduce", "m", *VIEW), "--reproduce and -f exclude each other"),
        ("labels.csv", ("--reproduce", "m", "--max-age", "1d"), "--reproduce and --max-age exclude each other"),
    ],
    ids=lambda each: " ".join(each)[:40] if isinstance(each, tuple) else each[:40].replace("\n", " "),
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    labels: str, arguments: tuple[str, ...], said: str
) -> None:
    Path("there.manifest.json").write_text("")
    Path("there.parquet").write_text("")
    Path("wrong.parquet").write_text("not Parquet")
    Path("definitions.csv").mkdir()
    before = sorted(path.name for path in Path().iterdir())
    name = labels if labels.endswith((".csv", ".py", ".parquet")) else labels_with(labels)

    ended = train(*arguments, labels=name)

    assert ended.exit_code == 1, ended.output
    assert isinstance(ended.exception, SystemExit)
    (error,) = (line for line in ended.output.splitlines() if line.startswith("error: "))
    assert said in error
    assert sorted({path.name for path in Path().iterdir()} - {"wrong.csv"}) == before


def test_labels_that_repeat_each_other_have_a_row_each_and_are_counted() -> None:
    row = "007,1,2026-03-01T12:30:00Z\n"
    Path("wrong.csv").write_text(HEAD + row * 3 + "007,2,2026-03-01T12:30:00Z\n")

    ended = train(*VIEW, labels="wrong.csv")

    assert ended.exit_code == 0
    assert pl.read_parquet("out.parquet")["count_1d"].to_list() == [1, 1, 1, 0]
    assert "warning: 50.0 % of the labels have the keys and the instant of an earlier one" in ended.output


def test_outside_null_and_overwrite_do_what_they_say() -> None:
    Path("wrong.csv").write_text(HEAD + "007,1,2026-03-02T12:30:00Z\n007,1,2026-03-01T12:30:00Z\n")
    assert train(*VIEW).exit_code == 0

    ended = train(*VIEW, "--outside", "null", "--overwrite", labels="wrong.csv")

    assert ended.exit_code == 0, ended.output
    assert pl.read_parquet("out.parquet")["count_1d"].to_list() == [None, 1]
    assert "warning: 50.0 % of the labels are later than the log is complete: their values are null" in ended.output
    assert json.loads(Path("out.manifest.json").read_text())["features"][0]["statuses"]["after_log"] == 1


def test_codes_among_the_labels_stay_as_they_are() -> None:
    Path("codes.csv").write_text(
        "user_id,shop_id,event_timestamp,zip,bought,spent,at_year\n"
        "007,1,2026-03-01T12:30:00Z,00123,1,1.50,2026\n"
        "007,1,2026-03-01T12:40:00Z,98765,0,,2026\n"
    )

    ended = train(*VIEW, labels="codes.csv")

    assert ended.exit_code == 0, ended.output
    frame = pl.read_parquet("out.parquet")
    assert frame["zip"].to_list() == ["00123", "98765"]
    assert frame["bought"].to_list() == [1, 0]
    assert frame["spent"].to_list() == [1.5, None]


def test_a_service_names_the_columns_of_a_training_set_and_makes_it_again() -> None:
    Path("definitions/services.yaml").write_text(
        "service: {name: model, features: ['purchases:spend_1d', 'purchases@1:count_1d']}"
    )
    made = train("--service", "model", *FROM_LOG, output="model.parquet")

    assert made.exit_code == 0, made.output
    assert pl.read_parquet("model.parquet").columns[-2:] == ["spend_1d", "count_1d"]
    assert json.loads(Path("model.manifest.json").read_text())["join"]["service"] == "model"
    again = train("--log", "log", "--reproduce", "model.manifest.json", output="again.parquet")
    assert again.exit_code == 0, again.output
    assert pl.read_parquet("again.parquet").equals(pl.read_parquet("model.parquet"))


@pytest.mark.parametrize(("options", "message"), [
    (["--service", "model"], "the features of a service are in its definition: give --definitions"),
    (["--service", "model", "--definitions", "definitions"], "there is no service 'model'; services are fraud"),
    (["--service", "model", "-f", "purchases", "--definitions", "definitions"], "-f and --service exclude each other"),
])  # fmt: skip
def test_a_service_that_cannot_be_read_is_refused(options: list[str], message: str) -> None:
    refused = train("--log", "log", *options, output="model.parquet")

    assert refused.exit_code == 1
    assert message in refused.output
    assert not Path("model.parquet").exists()

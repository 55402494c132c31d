"""What exists, and the history of one entity: its rows are those of the files, and its plot shows them."""

import sys
from datetime import UTC, datetime

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from tests.support.growing import (
    FIRST,
    PLAN,
    SECOND_HALF,
    T0,
    VIEW,
    Growing,
    GrowingArchive,
    compacted,
    grow,
    rows_of,
)
from tests.support.plans import DAY, HOUR, SECOND, Wanted, sliding, view
from tests.support.typed import EMPTY, FULL, NAMES, ORDERS
from tests.support.updates import updates
from unskew import FeatureStore, RequestError
from unskew.features.keys import shard_of
from unskew.features.plan import Plan
from unskew.offline.log_reader import ViewLog
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards

mpl.use("Agg")


@pytest.fixture
def growing(tmp_path):
    log = Growing(tmp_path / "log")
    log.feed(FIRST, T0 + 2 * DAY + HOUR)
    return log


@pytest.fixture
def _closed():
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 28])
def test_a_history_has_every_row_of_the_files_about_its_entity_and_no_other(growing, monkeypatch, chunk_bytes):
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", chunk_bytes)
    store = FeatureStore(PLAN, log=growing.root)
    grow(growing)
    logged = rows_of(growing)
    before = store.history("clicks", "u3")
    compacted(growing)
    seen: list[tuple[str, int, int]] = []

    for user, rows in logged.items():
        found = store.history("clicks", user, progress=lambda *given: seen.append(given))
        assert found.frame.drop("user").rows() == [
            tuple(row[name] for name in found.frame.columns[1:]) for _, row in rows
        ]
        assert set(found.frame["user"]) == {user}
    assert before.frame.equals(store.history("clicks", {"user": "u3"}).frame)
    assert seen[-1] == ("clicks@1", sum(map(len, logged.values())), sum(map(len, logged.values())))
    nobody = store.history("clicks", "nobody")
    assert nobody.frame.is_empty()
    assert nobody.frame.schema == before.frame.schema
    assert before.to_polars().equals(pl.from_arrow(before.to_arrow()))
    assert str(before.to_pandas().dtypes["count"]) == "Int64"
    assert repr(before).startswith("clicks@1  user u3: ")
    assert "<table" in before._repr_html_()


@pytest.mark.parametrize("listed", [["h0", "h1"], ["h0"], []])
def test_a_history_reads_the_files_of_its_entitys_shard_alone_if_all_shards_are_known(growing, monkeypatch, listed):
    record_shards(view_root(growing.root, VIEW.name, VIEW.version), listed, view=VIEW)
    store = FeatureStore(PLAN, log=growing.root)
    read: set[str] = set()
    as_it_is = ViewLog._rows

    def noted(self, files, query):
        read.update(file.writer for file in files)
        return as_it_is(self, files, query)

    monkeypatch.setattr(ViewLog, "_rows", noted)
    for user, rows in rows_of(growing).items():
        read.clear()
        found = store.history("clicks", user).frame

        assert len(found) == len(rows) > 0
        own = f"h{shard_of(pl.Series([user]), 2)[0]}"
        assert read == ({own} if len(listed) == 2 else {"h0", "h1"})


def test_a_history_from_events_is_that_of_the_log(growing, tmp_path):
    archive = GrowingArchive(tmp_path / "archive")
    archive.feed(FIRST, T0 + 2 * DAY + HOUR)
    archive.feed(SECOND_HALF, T0 + 9 * DAY)
    growing.feed(SECOND_HALF, T0 + 9 * DAY - HOUR)
    store = FeatureStore(PLAN, log=growing.root, archive=archive.root)
    columns = ["available_at", "cause", "event_time", *(output.name for output in VIEW.outputs)]

    logged, rebuilt = (store.history("clicks", "u3", source=source) for source in ("log", "events"))

    assert rebuilt.frame.select(columns).equals(logged.frame.select(columns))
    assert rebuilt.complete_to_us == logged.complete_to_us
    assert len(rebuilt.frame) > 100


@pytest.mark.usefixtures("_closed")
def test_a_plot_is_the_step_function_of_every_feature_with_its_events(growing):
    history = FeatureStore(PLAN, log=growing.root).history("clicks", "u3")

    axes = history.plot()

    assert [ax.get_title(loc="left").split()[0] for ax in axes] == [output.name for output in VIEW.outputs]
    rows = history.frame
    for ax, output in zip(axes, VIEW.outputs, strict=True):
        steps, dots = ax.lines
        values = rows[output.name].cast(pl.Float64).to_numpy()
        assert steps.get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(steps.get_ydata(), [*values, values[-1]])
        assert len(steps.get_xdata()) == len(rows) + 1
        np.testing.assert_array_equal(dots.get_ydata(), values[(rows["cause"] == "event").to_numpy()])
    until = axes[0].lines[0].get_xdata()[-1]
    assert until == datetime.fromtimestamp(history.complete_to_us / 1e6, UTC).replace(tzinfo=None)
    (one,) = history.plot(["mean"])
    assert one.get_title(loc="left").startswith("mean")


@pytest.mark.usefixtures("_closed")
def test_every_type_is_drawn_or_left_out(tmp_path):
    table = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    for seq, values in enumerate([FULL, EMPTY, {**FULL, "shop": r"$\bad$", "gift": True}]):
        row = {
            "user": "u",
            **values,
            "available_at": T0 + seq * HOUR,
            "cause": "hop" if seq == 1 else "event",
            "seq": seq,
        }
        table.append(updates(ORDERS, T0 + seq * HOUR + SECOND, log_rows=[row], since_us=T0))
        table.snapshot()
    table.settle()
    history = FeatureStore(Plan(streams={}, views={"orders": ORDERS}), log=tmp_path).history("orders", "u")

    axes = history.plot()
    axes[0].figure.savefig(tmp_path / "plot.png")

    drawn = {ax.get_title(loc="left").split()[0]: ax for ax in axes}
    assert list(drawn) == [name for name in NAMES if ORDERS.published.feature(name).dtype.nesting is None]
    assert list(drawn["gift"].lines[0].get_ydata())[::2] == [0.0, 1.0]
    assert [label.get_text() for label in drawn["shop"].get_yticklabels()][1] == r"\$\bad\$"
    with pytest.raises(RequestError, match=r"counts is a list\[int64\], which cannot be drawn"):
        history.plot(["counts"])


def test_what_cannot_be_shown_is_refused(growing, monkeypatch):
    store = FeatureStore(PLAN, log=growing.root)
    history = store.history("clicks", "u3")
    for wanted, text in (
        (lambda: store.history("clickz", "u3"), "there is no view 'clickz'"),
        (lambda: store.history("clicks", None), "a part of the key of entity is null"),
        (lambda: store.history("clicks", ("u3", 1)), "whose key is user: give one value, not 2"),
        (lambda: store.history("clicks", {"item": 1}), "whose key 'user' is not among the given columns"),
        (lambda: store.history("clicks", 1.5), "user"),
        (lambda: store.history("clicks", "u3", source="both"), 'source is "log" or "events"'),
        (lambda: store.history("clicks", "u3", source="events"), "give their folder as archive"),
        (lambda: FeatureStore(PLAN).history("clicks", "u3"), "give its folder as log"),
        (lambda: history.plot(["nope"]), "has no feature 'nope'"),
        (lambda: history.plot("mean"), r"write \['mean'\]"),
        (lambda: store.history("clicks", "nobody").plot(), "has no rows in the log, so there is nothing to plot"),
    ):
        with pytest.raises(RequestError, match=text):
            wanted()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"pip install 'unskew\[plot\]'"):
        history.plot()


def test_all_features_are_listed_with_what_a_trainer_needs_to_choose():
    other = view(Wanted("n", "count", sliding(DAY, HOUR)), keys={"user": "string", "shop": "int64"}, name="a_view")
    found = FeatureStore(Plan(streams={}, views={"clicks": VIEW, "a_view": other})).features()

    assert found["reference"].to_list() == ["a_view:n", *(f"clicks:{output.name}" for output in VIEW.outputs)]
    assert found["keys"].to_list()[0] == ["user", "shop"]
    assert found.row(1, named=True) == {
        "reference": "clicks:count",
        "view": "clicks",
        "version": 1,
        "feature": "count",
        "type": "int64",
        "function": "count",
        "window": f"sliding({2 * HOUR}, {60 * SECOND})",
        "keys": ["user"],
        "description": "",
        "owner": "",
        "tags": "",
        "deprecated": "",
    }
    assert found.filter(feature="ratio")["window"].item() == found.filter(feature="sum")["window"].item()
    assert FeatureStore(Plan(streams={}, views={})).features().schema == found.schema

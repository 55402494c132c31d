"""As many features as a view may have, each over a window of its own: more windows than have a mark of their own."""

import polars as pl
import pytest

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.evaluate import evaluate
from unskew.features.plan import MAX_FEATURES
from unskew.features.shard_state import ShardState

SECOND_US = 1_000_000
SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "amount", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
SECONDS = [2, 3, 3, 40, 41, 64, 65, 100, 130, 200]
AMOUNTS = [5, 1, 7, 2, 9, 4, 4, 8, 3, 6]
END = 300


@pytest.mark.parametrize("restored", [False, True])
def test_each_of_64_windows_changes_when_its_own_tiles_do(restored):
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    features = [
        Feature(f"max_{extent}s", agg.max("amount"), Sliding(f"{extent}s", hop="1s"))
        for extent in range(1, MAX_FEATURES + 1)
    ]
    view = compile_definitions(
        FeatureView("v", entity=Entity("user", key="user"), stream=stream, features=features)
    ).views["v"]
    at = pl.Series(SECONDS) * SECOND_US
    events = evaluate(
        view,
        pl.DataFrame({"user": [7] * len(SECONDS), "amount": AMOUNTS}).with_columns(
            _partition=pl.lit(0, pl.Int32),
            _offset=pl.int_range(pl.len(), dtype=pl.Int64),
            _arrival=at.cast(pl.Datetime("us", "UTC")),
            _event_time=at.cast(pl.Datetime("us", "UTC")),
        ),
    ).events
    state = ShardState(view, "h0")
    # The last instant of the first part is still open, and no event of the rest touches it.
    first = state.apply(events[:3], SECONDS[2] * SECOND_US)
    if restored:
        state = ShardState.from_bytes(view, "h0", state.to_bytes())
    rest = state.apply(events[3:], END * SECOND_US)

    log = pl.concat([first.closed, rest.closed])

    expected, before = [], [None] * MAX_FEATURES
    for now in range(END):
        # Extents are whole hops, so at a whole second the window covers [now - extent, now].
        values = [
            max((a for t, a in zip(SECONDS, AMOUNTS, strict=True) if now - extent <= t <= now), default=None)
            for extent in range(1, MAX_FEATURES + 1)
        ]
        if values != before:
            expected.append((now * SECOND_US, values))
        before = values
    found = log.with_columns(pl.col("available_at").to_physical())
    names = [feature.name for feature in features]
    assert [(row["available_at"], [row[name] for name in names]) for row in found.iter_rows(named=True)] == expected

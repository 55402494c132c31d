"""Train a model on what ``unskew demo`` left, score the same households from Redis, and show what a leak would do.

    unskew demo
    python examples/complete_journey/train.py demo-output

The question: will a household buy again within 14 days? Every Monday of 2017 asks it for every household. A training
row holds the features as the model would have read them on that Monday, from the log. Then the state of the demo's
pipeline fills a Redis, every household is read from it, and the inputs of the model must be those that the log gives
for the same instants, to the last bit.

Beside it, the same model is trained on a join that leaks: each Monday gets the features that a table by week has for
its week, computed when the week was over. Its offline score is better, and what it predicts when it serves is worse.

It needs scikit-learn and matplotlib, and writes ``leakage.png`` into the demo's folder. A folder of definitions is read
with all its Python files, so this one does nothing when it is imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from unskew import FeatureStore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

HOME = Path(__file__).parent
FEATURES = [
    "household_purchases:purchase_count_30d",
    "household_purchases:spend_30d",
    "household_purchases:mean_amount_30d",
    "household_purchases:min_amount_30d",
    "household_purchases:max_amount_30d",
    "household_purchases:last_amount_30d",
    "household_purchases:purchases_today",
]
INPUTS = [feature.partition(":")[2] for feature in FEATURES]
HORIZON = timedelta(days=14)
WEEK = timedelta(days=7)
FIRST_MONDAY = datetime(2017, 2, 6, tzinfo=UTC)  # The windows of 30 days are full by then.
TEST_SHARE = 0.3
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center"}


@dataclass(frozen=True)
class Scores:
    """Probabilities for the test labels, by one model with two inputs.

    ``offline``: with inputs from the model's own kind of join, as a trainer sees it. ``served``: with the inputs that
    the model would have read at the label's instant. ``bought``: what happened.
    """

    offline: npt.NDArray[np.float64]
    served: npt.NDArray[np.float64]
    bought: npt.NDArray[np.bool_]


def monday_labels(archive: Path) -> pl.DataFrame:
    """Return a row for each household and Monday, with ``bought``: whether it bought within the horizon.

    The purchases are those in the event archive. A Monday is left out if its horizon ends after the last purchase.
    """
    purchases = (
        pl.scan_parquet(archive / "transactions" / "**" / "*.parquet")
        .filter(pl.col("quantity") > 0)
        .select("household_id", at="event_time")
        .unique()
        .sort("at")
        .collect()
    )
    last = purchases["at"].max()
    assert isinstance(last, datetime)
    mondays = pl.datetime_range(FIRST_MONDAY, last - HORIZON, WEEK, time_unit="us", eager=True)
    return (
        purchases.select("household_id")
        .unique()
        .join(mondays.to_frame("event_timestamp"), how="cross")
        .sort("event_timestamp", "household_id")
        .join_asof(
            purchases.with_columns(next="at"),
            left_on="event_timestamp",
            right_on="at",
            by="household_id",
            strategy="forward",
            check_sortedness=False,
        )
        .select(
            "household_id",
            "event_timestamp",
            bought=(pl.col("next") < pl.col("event_timestamp") + HORIZON).fill_null(value=False),
        )
    )


def leaking_join(store: FeatureStore, labels: pl.DataFrame) -> pl.DataFrame:
    """Return the labels with the features of their week's end, as a table by household and week gives them.

    The week's own purchases are in them, and those are what the label asks about.
    """
    at_the_end = labels.with_columns(pl.col("event_timestamp") + WEEK)
    features = store.get_historical_features(at_the_end, FEATURES).to_polars().select(INPUTS)
    return labels.hstack(features)


def inputs(rows: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Return the model's inputs, a row for each row; a null is not a number."""
    return rows.select(pl.col(INPUTS).cast(pl.Float64)).to_numpy()


def train(rows: pl.DataFrame) -> Any:
    """Return a classifier that is trained on these rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    return model.fit(inputs(rows), rows["bought"].to_numpy())


def split(labels: pl.DataFrame) -> datetime:
    """Return the Monday from which on labels test the model; those before it whose horizon has ended train it."""
    mondays = labels["event_timestamp"].unique().sort()
    first: datetime = mondays[int(len(mondays) * (1 - TEST_SHARE))]
    return first


def evaluate(joined: pl.DataFrame, as_served: pl.DataFrame) -> Scores:
    """Train on the early rows of ``joined`` and score the late ones, with its own inputs and with those as served."""
    first = split(joined)
    instant = pl.col("event_timestamp")
    model = train(joined.filter(instant < first - HORIZON))
    late, late_served = (rows.filter(instant >= first) for rows in (joined, as_served))
    return Scores(
        offline=model.predict_proba(inputs(late))[:, 1],
        served=model.predict_proba(inputs(late_served))[:, 1],
        bought=late["bought"].to_numpy(),
    )


def fill_redis(state: Path, redis_url: str) -> None:
    """Write the current values to a Redis, from the state of the pipeline that the demo ran."""
    command = ["rehydrate", "--definitions", HOME, "--state", state, "--redis-url", redis_url]
    done = subprocess.run(
        [sys.executable, "-m", "unskew", *map(str, command)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"unskew rehydrate failed:\n{done.stderr}")


def served_and_logged(store: FeatureStore, households: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the households' inputs read from Redis, and those of the log at the instants of which Redis speaks.

    Only of rows that Redis calls exact. The others are provisional: their partition may still have earlier events.
    """
    online = store.get_online_features(FEATURES, households)
    (about,) = online.metadata.values()
    exact = ~about["provisional"]
    labels = households.with_columns(event_timestamp=about["as_of"]).filter(exact)
    logged = store.get_historical_features(labels, FEATURES, inclusive=True).to_polars()
    return online.to_polars().filter(exact), logged.drop("event_timestamp")


def plot(honest: Scores, leaking: Scores) -> Figure:
    """Draw what the trainer sees and what serving gives: the ROC AUC, and how often households bought as predicted."""
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import roc_auc_score

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for name, scores, colour in (("leaking join", leaking, "#b2182b"), ("point-in-time join", honest, "#1b7837")):
        areas = [roc_auc_score(scores.bought, predicted) for predicted in (scores.offline, scores.served)]
        left.plot([0, 1], areas, marker="o", color=colour, linewidth=2)
        left.annotate(f"{name}\n{areas[0]:.3f}", (0, areas[0]), (-8, 0), ha="right", **_BESIDE, color=colour)
        left.annotate(f"{areas[1]:.3f}", (1, areas[1]), (8, 0), **_BESIDE, color=colour)
        share, said = calibration_curve(scores.bought, scores.served, n_bins=20, strategy="quantile")
        right.plot(said, share, marker="o", markersize=4, color=colour, label=name)
    left.set(title="ROC AUC of the test weeks", xlim=(-0.9, 1.4), xticks=[0, 1], xticklabels=["offline", "as served"])
    left.margins(y=0.2)
    left.yaxis.set_visible(False)
    left.spines[["left", "top", "right"]].set_visible(False)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as often as predicted", zorder=0)
    right.set(
        title="As served: the leaking model is too sure at both ends",
        xlabel="probability to buy within 14 days, predicted",
        ylabel="share of the households that bought",
    )
    right.legend(loc="upper left", frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Run the example; ends with an error unless Redis and the log agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-output"), help="output of unskew demo")
    folder: Path = parser.parse_args().folder
    if not (folder / "state").is_dir():
        parser.error(f"{folder} does not hold the output of a demo: run unskew demo first, or name its folder")
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        parser.error("this example needs scikit-learn and matplotlib: pip install scikit-learn matplotlib")
    from unskew.demo.embedded import EmbeddedRedis

    labels = monday_labels(folder / "archive")
    with EmbeddedRedis() as redis:
        store = FeatureStore(HOME, redis_url=redis.url, log=folder / "log")
        training = store.get_historical_features(labels, FEATURES)
        joined = training.to_polars()
        print(
            f"{joined.height:,} labels on {joined['event_timestamp'].n_unique()} Mondays; "
            f"{joined['bought'].to_numpy().mean():.0%} bought within {HORIZON.days} days"
        )
        honest = evaluate(joined, joined)
        leaking = evaluate(leaking_join(store, labels), joined)
        for name, scores in (("point-in-time join", honest), ("leaking join", leaking)):
            print(
                f"{name + ':':20} ROC AUC offline {roc_auc_score(scores.bought, scores.offline):.3f}, "
                f"as served {roc_auc_score(scores.bought, scores.served):.3f}"
            )
        fill_redis(folder / "state", redis.url)
        served, logged = served_and_logged(store, labels.select("household_id").unique(maintain_order=True))
    model = train(joined)
    from_redis, from_log = (model.predict_proba(inputs(rows))[:, 1] for rows in (served, logged))
    figure = folder / "leakage.png"
    plot(honest, leaking).savefig(figure, dpi=150)
    print(f"{figure} shows it")
    if not served.equals(logged) or (from_redis != from_log).any():
        raise SystemExit("the inputs that Redis serves are not those of the log: run unskew audit")
    print(
        f"{served.height:,} households read from Redis with exact values: their {len(INPUTS)} inputs and scores equal "
        f"those of the log at the same instants; the first household's score: {from_redis[0]:.6f} and {from_log[0]:.6f}"
    )


if __name__ == "__main__":
    main()

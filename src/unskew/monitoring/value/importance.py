"""What a model gets from a feature: how much worse it predicts later labels when the feature's values are shuffled.

The same for models that are given the features as they were some time before, so the worth of freshness has a figure.
Permutation importance: Breiman, "Random Forests" (2001), section 10. Of two features that say the same, neither seems
to matter, because the other one is still there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.extras import needed
from unskew.features.types import Type
from unskew.monitoring.value.freshness import NOW, Aged

SEED = 0
TRAIN_SHARE = 0.7
N_REPEATS = 5
LEAST_LABELS = 200
_MOST_TEXTS = 30
_TREES = 100

Floats = npt.NDArray[np.float64]
Metric = Literal["AUC", "R²"]
_SCORING: Mapping[Metric, str] = {"AUC": "roc_auc", "R²": "r2"}


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much of a model's score is lost, by the mean of several shuffles and their standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Model:
    """Models of one target, one for each age of the features, and what each feature is worth to them.

    ``scores``: by age, of labels that are later than those it was trained with. ``importances``: by feature column and
    age. ``unusable``: by feature column, why no model was given it.
    """

    target: str
    metric: Metric
    n_train: int
    n_test: int
    scores: Mapping[str, float]
    importances: Mapping[str, Mapping[str, Importance]]
    unusable: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NoModel:
    """``why``: why there is none."""

    why: str


@needed("the importance of features", "sklearn")
def model_of(
    found: Aged,
    types: Mapping[str, Type],
    labels: pl.DataFrame,
    target: str,
    timestamp: str,
    progress: Callable[[str, int, int], None] = lambda _phase, _done, _all: None,
) -> Model | NoModel:
    """Train a small gradient boosting for each age of the features, and shuffle each feature.

    ``types``: by feature column. ``labels``: the rows of ``found``, with ``target`` and ``timestamp``. The earlier 70 %
    train, the later ones score. An age at which less than half of the labels lie within the log has no model; the
    others have the same labels. Seeds are fixed.

    Raises ``RequestError`` without scikit-learn, and for a target that is neither two classes nor a number.
    """
    usable = {column: dtype for column, dtype in types.items() if dtype.nesting is None}
    unusable = {
        column: f"it is a {dtype}, and these models take single values"
        for column, dtype in types.items()
        if column not in usable
    }
    if not usable:
        return NoModel(why="no feature has single values")
    metric, goal = _goal(labels[target])
    kept = ~np.isnan(goal)
    within = {age: np.logical_and.reduce([known[column] for column in usable]) for age, known in found.known.items()}
    ages = [age for age, inside in within.items() if (inside & kept).sum() * 2 >= kept.sum()]
    if NOW not in ages:
        return NoModel(why="less than half of the labels lie within the log")
    kept &= np.logical_and.reduce([within[age] for age in ages])
    instants = labels[timestamp].dt.cast_time_unit("us").to_physical().to_numpy()
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(instants[rows], kind="stable")]
    n_train = round(len(rows) * TRAIN_SHARE)
    early, late = rows[:n_train], rows[n_train:]
    if len(rows) < LEAST_LABELS:
        return NoModel(why=f"{len(rows):,} labels have a target and lie within the log, fewer than {LEAST_LABELS}")
    if any(len(np.unique(goal[part])) < 2 for part in (early, late)):
        return NoModel(why=f"all earlier or all later labels have one {target}, so nothing can be predicted")
    scores: dict[str, float] = {}
    importances: dict[str, dict[str, Importance]] = {column: {} for column in usable}
    for done, age in enumerate(ages):
        progress(f"features of {age}" if age == NOW else f"features of {age} before", done, len(ages))
        given = _inputs(found.frames[age], usable, instants, early)
        score, losses = _score(metric, given, goal, early, late)
        scores[age] = score
        for column, loss in zip(usable, losses, strict=True):
            importances[column][age] = loss
    return Model(
        target=target,
        metric=metric,
        n_train=len(early),
        n_test=len(late),
        scores=scores,
        importances=importances,
        unusable=unusable,
    )


def _goal(target: pl.Series) -> tuple[Metric, Floats]:
    """Return how a target is scored, and its values: 0 and 1 for two classes; not a number where there is none."""
    dtype = target.dtype
    values = target.drop_nulls().unique()
    if len(values) == 2 and (dtype in {pl.Boolean, pl.String} or dtype.is_integer() or dtype.is_float()):
        return "AUC", (target == values.max()).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if dtype.is_numeric():
        return "R²", target.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    raise RequestError(
        f"--target {target.name}: it is a column of {dtype} with {len(values)} different values; a model here predicts "
        "one of two classes, or a number"
    )


def _inputs(
    features: pl.DataFrame, types: Mapping[str, Type], instants: npt.NDArray[np.int64], early: npt.NDArray[np.int64]
) -> Floats:
    """Return what a model is given [labels, features]: a time as the seconds since then, a text as its number."""
    columns: list[Floats] = []
    for name, dtype in types.items():
        values = features[name]
        if dtype.scalar == "timestamp":
            numbers = (pl.Series(instants) - values.dt.cast_time_unit("us").to_physical()).cast(pl.Float64) / 1e6
        elif dtype.scalar == "string":
            counts = values[early].drop_nulls().value_counts(sort=True).sort("count", name, descending=[True, False])
            frequent = counts[name].head(_MOST_TEXTS).to_list()
            numbers = values.replace_strict(
                frequent, list(range(len(frequent))), default=len(frequent), return_dtype=pl.Float64
            )
            numbers = pl.select(pl.when(values.is_not_null()).then(numbers)).to_series()
        else:
            numbers = values.cast(pl.Float64)
        columns.append(numbers.fill_null(float("nan")).to_numpy())
    return np.column_stack(columns)


def _score(
    metric: Metric,
    given: Floats,
    goal: Floats,
    early: npt.NDArray[np.int64],
    late: npt.NDArray[np.int64],
) -> tuple[float, Sequence[Importance]]:
    from sklearn.ensemble import (  # noqa: PLC0415  # it is optional
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )
    from sklearn.inspection import permutation_importance  # noqa: PLC0415
    from sklearn.metrics import get_scorer  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    kind = HistGradientBoostingClassifier if metric == "AUC" else HistGradientBoostingRegressor
    model: Any = kind(max_iter=_TREES, max_leaf_nodes=15, early_stopping=False, random_state=SEED)
    # The models are small: on busy cores, threads that wait for one another take many times as long as one alone.
    with threadpool_limits(1, user_api="openmp"):
        model.fit(given[early], goal[early])
        shuffled: Any = permutation_importance(
            model, given[late], goal[late], scoring=_SCORING[metric], n_repeats=N_REPEATS, random_state=SEED
        )
        score = float(get_scorer(_SCORING[metric])(model, given[late], goal[late]))
    return score, [
        Importance(mean=float(mean), std=float(std))
        for mean, std in zip(shuffled.importances_mean, shuffled.importances_std, strict=True)
    ]

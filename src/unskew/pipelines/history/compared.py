"""Two versions of a view as step functions: at which instants an entity has another value, and how far it differs.

Each side's log rows say from when an entity had which values. At every instant at which a row of either side begins,
the values that then stand on both sides are compared as they are read: an entity without a row has empty values, and
defaults take the place of null. What stands at the last instant is kept exactly: for each feature that both sides have
how far its values differ, and for one that only the new side has how its values are distributed.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.types import Type
from unskew.features.view import View, ViewFeature
from unskew.sinks.redis.sizes import bytes_of

N_EXAMPLES = 3
"""How many differences of a feature are kept as examples: the first ones."""
_GROWTH = 1.01
"""The factor by which bins of magnitudes grow. Each gives its largest number, so quantiles are right within 1 %."""
_BEFORE = -(2**63)
_AT, _OLD, _NEW, _SEEN_OLD, _SEEN_NEW = "_at", "_old", "_new", "_seen_old", "_seen_new"
_NUMBERS = ("int64", "float64", "decimal")

Flags = npt.NDArray[np.bool_]


@dataclass(kw_only=True)
class Magnitudes:
    """A distribution of numbers from 0 on. ``bins``: by its number, how many numbers a bin has, and the largest."""

    bins: dict[int, tuple[int, float]] = field(default_factory=dict)
    n_zeros: int = 0

    @property
    def n(self) -> int:
        return self.n_zeros + sum(n for n, _ in self.bins.values())

    @property
    def most(self) -> float | None:
        """The largest number; None without any."""
        return max((most for _, most in self.bins.values()), default=0.0 if self.n_zeros else None)

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        # The difference of two of the largest floats is larger than any.
        positive = np.minimum(numbers[numbers > 0], np.finfo(np.float64).max)
        self.n_zeros += len(numbers) - len(positive)
        found, where, counts = np.unique(
            np.ceil(np.log(positive) / math.log(_GROWTH)).astype(np.int64), return_inverse=True, return_counts=True
        )
        most = np.zeros(len(found))
        np.maximum.at(most, where, positive)
        for one, n, largest in zip(found.tolist(), counts.tolist(), most.tolist(), strict=True):
            self._add(one, n, largest)

    def merge(self, other: "Magnitudes") -> None:
        self.n_zeros += other.n_zeros
        for one, (n, largest) in other.bins.items():
            self._add(one, n, largest)

    def _add(self, one: int, n: int, largest: float) -> None:
        before, most = self.bins.get(one, (0, 0.0))
        self.bins[one] = before + n, max(most, largest)

    def quantile(self, q: float) -> float | None:
        """Return a number that at least this share of all does not exceed, and no more than 1 % above the least such.

        None without any.
        """
        rank = max(1, math.ceil(q * self.n))
        seen = self.n_zeros
        if rank <= seen:
            return 0.0
        for one in sorted(self.bins):
            n, most = self.bins[one]
            seen += n
            if rank <= seen:
                return most
        return None


@dataclass(kw_only=True)
class Numbers:
    """Numbers, ascending, without NaN; their figures are exact, and do not depend on the order in which they came."""

    ascending: "array[float]" = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.ascending)

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        # The difference of two of the largest floats is larger than any.
        largest = np.finfo(np.float64).max
        numbers = np.clip(numbers[~np.isnan(numbers)], -largest, largest)
        self.merge(Numbers(ascending=array("d", np.sort(numbers).tobytes())))

    def merge(self, other: "Numbers") -> None:
        self.ascending = array("d", sorted(self.ascending + other.ascending))

    @property
    def least(self) -> float | None:
        return self.ascending[0] if self.ascending else None

    @property
    def most(self) -> float | None:
        return self.ascending[-1] if self.ascending else None

    @property
    def mean(self) -> float | None:
        if not self.ascending:
            return None
        try:
            return math.fsum(self.ascending) / len(self.ascending)
        except OverflowError:
            # The sum of the largest floats is larger than any; a sum of halves, and of those, is not.
            return math.fsum(number / len(self.ascending) for number in self.ascending)

    @property
    def median(self) -> float | None:
        """The lower of the two in the middle."""
        return self.ascending[(len(self.ascending) - 1) // 2] if self.ascending else None


@dataclass(kw_only=True)
class AtEnd:
    """How one feature that both sides have differs at the last instant that was compared, over all entities.

    ``differing``: entities of which its value differs. Of these, ``from_null`` are null before and ``to_null`` after.
    ``changes``: how far the numbers of the others differ.
    """

    differing: int = 0
    from_null: int = 0
    to_null: int = 0
    changes: Numbers = field(default_factory=Numbers)

    def merge(self, other: "AtEnd") -> None:
        self.differing += other.differing
        self.from_null += other.from_null
        self.to_null += other.to_null
        self.changes.merge(other.changes)


@dataclass(kw_only=True)
class Cost:
    """What one side costs: the rows of its log, and about how many bytes its values take in Redis at the last instant.

    ``entities``: those that Redis has a row of, because some value is not that of empty windows.
    """

    rows: int = 0
    entities: int = 0
    redis_bytes: int = 0

    def merge(self, other: "Cost") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(kw_only=True)
class Population:
    """The values of a feature that only the new side has, or has with another type, at the last instant.

    ``entities``: those with a row; ``nulls`` of them have no value, as readers get it. ``numbers``: the values of
    numbers, and of booleans as 0 and 1; none of other types. ``examples``: the values of the first entities by key.
    """

    name: str
    type: str
    entities: int = 0
    nulls: int = 0
    numbers: Numbers = field(default_factory=Numbers)
    examples: list[tuple[tuple[object, ...], object]] = field(default_factory=list)

    def merge(self, other: "Population") -> None:
        self.entities += other.entities
        self.nulls += other.nulls
        self.numbers.merge(other.numbers)
        both = [*self.examples, *other.examples]
        self.examples = sorted(both, key=lambda example: example[0])[:N_EXAMPLES]


@dataclass(frozen=True, kw_only=True, order=True)
class Example:
    """One entity and instant at which the sides differ."""

    instant_us: int
    entity: tuple[object, ...]
    old: object = field(compare=False)
    new: object = field(compare=False)


@dataclass(kw_only=True)
class FeatureDiff:
    """The differences of one feature that both sides have.

    ``differing``: instants of entities at which its value differs, ``entities`` of them different. Of these,
    ``from_null`` are null before and ``to_null`` after; ``increased`` are numbers that grew. ``absolute``: how far
    numbers differ; ``relative``: the same, divided by the larger of both, so 1 is from 0 to anything. ``old_type``,
    ``new_type``: as in the definitions; values of different types are the same if they are the same number. ``end``:
    the differences at the last instant alone.
    """

    name: str
    old_type: str
    new_type: str
    differing: int = 0
    entities: int = 0
    from_null: int = 0
    to_null: int = 0
    increased: int = 0
    absolute: Magnitudes = field(default_factory=Magnitudes)
    relative: Magnitudes = field(default_factory=Magnitudes)
    examples: list[Example] = field(default_factory=list)
    end: AtEnd = field(default_factory=AtEnd)

    def merge(self, other: "FeatureDiff") -> None:
        self.differing += other.differing
        self.entities += other.entities
        self.from_null += other.from_null
        self.to_null += other.to_null
        self.increased += other.increased
        self.absolute.merge(other.absolute)
        self.relative.merge(other.relative)
        self.examples = sorted([*self.examples, *other.examples])[:N_EXAMPLES]
        self.end.merge(other.end)


@dataclass(kw_only=True)
class Counts:
    """What was compared of a view.

    ``old_rows``, ``new_rows``: log rows of each side. ``instants``: pairs of an entity and an instant at which a row of
    either side begins; ``differing`` of them with another value of some feature. ``entities``: those with a row;
    ``changed`` with a difference; ``only_old`` and ``only_new`` with rows on one side alone.
    """

    old_rows: int = 0
    new_rows: int = 0
    instants: int = 0
    differing: int = 0
    entities: int = 0
    changed: int = 0
    only_old: int = 0
    only_new: int = 0

    def merge(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(kw_only=True)
class Found:
    """What a comparison of one view found. ``added``: the features that cannot be compared, as the new side has them.

    ``costs``: of the old side and of the new one. ``upto_us``: the last instant that was compared.
    """

    counts: Counts
    features: Sequence[FeatureDiff]
    added: Sequence[Population]
    costs: tuple[Cost, Cost]
    upto_us: int

    def merge(self, other: "Found") -> None:
        self.counts.merge(other.counts)
        for one, its in zip(self.features, other.features, strict=True):
            one.merge(its)
        for mine, theirs in zip(self.added, other.added, strict=True):
            mine.merge(theirs)
        for cost, more in zip(self.costs, other.costs, strict=True):
            cost.merge(more)


class Compared:
    """Compares the rows of two views as they come, and keeps no more than the latest values of each entity.

    Both have the same entity; without an ``old`` view nothing is compared. ``features``: the differences of each
    feature that both have, in the new order. ``added``: the others of the new view. These, ``counts`` and ``costs`` are
    whole once ``finish`` was called.
    """

    def __init__(self, old: View | None, new: View) -> None:
        self._keys = list(new.entity.keys)
        others = {} if old is None else {feature.name: feature for feature in old.features}
        pairs = [(others[one.name], one) for one in new.features if one.name in others]
        self._common = [(one, other) for one, other in pairs if is_comparable(one, other)]
        compared = {other.name for _, other in self._common}
        self._added = [one for one in new.features if one.name not in compared]
        self.added = [Population(name=one.name, type=one.type) for one in self._added]
        self.costs = Cost(), Cost()
        self._views = old, new
        self._standing = [
            pl.DataFrame(
                schema={
                    **new.entity.columns,
                    **{one.name: one.dtype.polars for one in (() if view is None else view.features)},
                }
            )
            for view in self._views
        ]
        self.features = [FeatureDiff(name=new.name, old_type=old.type, new_type=new.type) for old, new in self._common]
        self.counts = Counts()
        n = range(len(self._common))
        self._o, self._n, self._d = ([f"_{letter}{i}" for i in n] for letter in ("o", "n", "d"))
        self._present = pl.DataFrame(schema=self._schema(new))
        self._begun = False

    def __len__(self) -> int:
        """Return the number of entities so far."""
        return self._present.height

    def add(self, old: pl.DataFrame, new: pl.DataFrame, from_us: int | None) -> None:
        """Take further rows of both sides, all through one instant, and compare them from ``from_us`` on.

        Columns are those of ``Updates.closed``. What stands at ``from_us`` is compared there.
        """
        for side, rows in enumerate((old, new)):
            latest = rows.sort("available_at", maintain_order=True).select(self._standing[side].columns)
            both = pl.concat([self._standing[side], latest])
            self._standing[side] = both.unique(self._keys, keep="last", maintain_order=True)
            self.costs[side].rows += rows.height
        sides = self._side(old, 0), self._side(new, 1)
        if from_us is not None and not self._begun:
            early = [side.filter(pl.col(_AT) <= from_us) for side in sides]
            later = [side.filter(pl.col(_AT) > from_us) for side in sides]
            self._steps(early[0], early[1], counted=False)
            if not (later[0].height or later[1].height):
                return
            self.begin(from_us)
            sides = later[0], later[1]
        self._begun = True
        self._steps(*sides, counted=True)

    def begin(self, from_us: int) -> None:
        """Compare what stands at ``from_us``; nothing if that was done.

        A side whose values are then those of an entity without events has no row there: whether it had one before
        depends on how far back events were read.
        """
        if self._begun:
            return
        self._begun = True
        standing, self._present = self._present, self._present.clear()
        at = pl.lit(from_us, pl.Int64).alias(_AT)
        old, new = (
            standing.filter(self._is_filled(names)).select(*self._keys, at, *names, pl.lit(value=True).alias(side))
            for names, side in ((self._o, _OLD), (self._n, _NEW))
        )
        self._steps(old, new, counted=True)

    def finish(self) -> None:
        """Count entities; call it once, at the end."""
        present = self._present
        any_differs = pl.any_horizontal(*self._d) if self._d else pl.lit(value=False)
        counts = self.counts
        counts.entities = present.height
        counts.changed, counts.only_old, counts.only_new = present.select(
            any_differs.sum().alias("changed"),
            (pl.col(_SEEN_OLD) & ~pl.col(_SEEN_NEW)).sum().alias("only_old"),
            (pl.col(_SEEN_NEW) & ~pl.col(_SEEN_OLD)).sum().alias("only_new"),
        ).row(0)
        for number, (feature, flag) in enumerate(zip(self.features, self._d, strict=True)):
            feature.entities = int(present[flag].sum())
            old, new = present[self._o[number]], present[self._n[number]]
            differs = pl.Series(_unlike(old, new))
            old, new = old.filter(differs), new.filter(differs)
            feature.end = AtEnd(differing=len(old), from_null=old.null_count(), to_null=new.null_count())
            if _are_numbers(feature):
                feature.end.changes.add(np.abs(_changes(old, new)[2]))
        for view, rows, cost in zip(self._views, self._standing, self.costs, strict=True):
            if view is not None:
                held = rows.filter(
                    pl.any_horizontal(
                        pl.col(one.name).ne_missing(pl.lit(one.empty, one.dtype.polars)) for one in view.features
                    )
                )
                cost.entities, cost.redis_bytes = held.height, int(bytes_of(held, view).sum())
        standing = self._standing[1].sort(self._keys)
        for one, its in zip(self._added, self.added, strict=True):
            values = standing.select(_with_default(pl.col(one.name), one))[one.name]
            its.entities, its.nulls = len(values), values.null_count()
            if one.dtype.nesting is None and one.dtype.scalar in {*_NUMBERS, "bool"}:
                its.numbers.add(values.drop_nulls().cast(pl.Float64).to_numpy())
            first = standing.select(*self._keys, values).head(N_EXAMPLES)
            its.examples = [(tuple(key), value) for *key, value in first.iter_rows()]

    def _schema(self, view: View) -> dict[str, pl.DataType]:
        return {
            **view.entity.columns,
            **{name: old.dtype.polars for name, (old, _) in zip(self._o, self._common, strict=True)},
            **{name: new.dtype.polars for name, (_, new) in zip(self._n, self._common, strict=True)},
            **dict.fromkeys([*self._d, _SEEN_OLD, _SEEN_NEW], pl.Boolean()),
        }

    def _side(self, rows: pl.DataFrame, side: int) -> pl.DataFrame:
        """Return a side's rows as they are read, in the columns that ``_steps`` takes."""
        values = [
            _with_default(pl.col(pair[side].name), pair[side]).alias(name)
            for name, pair in zip((self._o, self._n)[side], self._common, strict=True)
        ]
        seen = pl.lit(value=True).alias((_OLD, _NEW)[side])
        return rows.select(*self._keys, pl.col("available_at").to_physical().alias(_AT), *values, seen)

    def _steps(self, old: pl.DataFrame, new: pl.DataFrame, *, counted: bool) -> None:
        """Take the rows of both sides through some instant: compare them if ``counted``, and keep what stands then."""
        if not (old.height or new.height):
            return
        steps = old.join(new, on=[*self._keys, _AT], how="full", coalesce=True)
        entities = steps.select(self._keys).unique(maintain_order=False)
        known = self._present.join(entities, on=self._keys, how="semi")
        fresh = entities.join(known, on=self._keys, how="anti")
        none = {name: pl.lit(value=False) for name in [*self._d, _SEEN_OLD, _SEEN_NEW]}
        bases = pl.concat([known, fresh.with_columns(**self._empty(), **none)])
        begin = bases.with_columns(
            pl.lit(_BEFORE, pl.Int64).alias(_AT), *(pl.lit(value=True).alias(c) for c in (_OLD, _NEW))
        )
        # The first row of each entity has what stood before, so both sides are known at each of its rows.
        rows = pl.concat([begin, steps], how="diagonal").sort(*self._keys, _AT)
        numbers = pl.int_range(pl.len(), dtype=pl.Int64)
        stands = [
            rows.select(pl.when(pl.col(side).fill_null(value=False)).then(numbers).forward_fill()).to_series()
            for side in (_OLD, _NEW)
        ]
        # With the keys, because a frame without columns has no rows to take.
        olds, news = rows.select(*self._keys, *self._o)[stands[0]], rows.select(*self._keys, *self._n)[stands[1]]
        is_base = (rows[_AT] == _BEFORE).to_numpy()
        entity = np.cumsum(is_base) - 1
        last = np.flatnonzero(np.append(is_base[1:], True))
        differs = [self._differs(number, olds, news, is_base) for number in range(len(self._common))]
        flags = rows.filter(pl.Series(is_base)).select(*self._d, _SEEN_OLD, _SEEN_NEW)
        if counted:
            self._count(rows, olds, news, is_base, differs)
            flags = flags.with_columns(
                pl.Series(name, flags[name].to_numpy() | _any_of(entity, one, len(last)))
                for name, one in zip(self._d, differs, strict=True)
            )
        flags = flags.with_columns(
            pl.Series(
                name,
                flags[name].to_numpy()
                | _any_of(entity, rows[side].fill_null(value=False).to_numpy() & ~is_base, len(last)),
            )
            for name, side in ((_SEEN_OLD, _OLD), (_SEEN_NEW, _NEW))
        )
        now = pl.concat([olds[last], news[last].select(self._n), flags], how="horizontal")
        rest = self._present.join(entities, on=self._keys, how="anti")
        self._present = pl.concat([rest, now.select(self._present.columns)])

    def _count(
        self, rows: pl.DataFrame, olds: pl.DataFrame, news: pl.DataFrame, is_base: Flags, differs: Sequence[Flags]
    ) -> None:
        counts = self.counts
        counts.old_rows += int((rows[_OLD].fill_null(value=False).to_numpy() & ~is_base).sum())
        counts.new_rows += int((rows[_NEW].fill_null(value=False).to_numpy() & ~is_base).sum())
        counts.instants += int((~is_base).sum())
        counts.differing += int(np.logical_or.reduce(differs).sum()) if differs else 0
        for number, (feature, differing) in enumerate(zip(self.features, differs, strict=True)):
            where = np.flatnonzero(differing)
            if not len(where):
                continue
            old, new = olds[self._o[number]][where], news[self._n[number]][where]
            _add(feature, old, new)
            first = (
                rows.select(_AT, *self._keys)[where]
                .with_columns(old.alias(_OLD), new.alias(_NEW))
                .sort(_AT, *self._keys)
            )
            found = [
                Example(instant_us=at, entity=tuple(key), old=one, new=other)
                for at, *key, one, other in first.head(N_EXAMPLES).iter_rows()
            ]
            feature.examples = sorted([*feature.examples, *found])[:N_EXAMPLES]

    def _differs(self, number: int, olds: pl.DataFrame, news: pl.DataFrame, is_base: Flags) -> Flags:
        return _unlike(olds[self._o[number]], news[self._n[number]]) & ~is_base

    def _empty(self) -> dict[str, pl.Expr]:
        """Return the values of an entity that has no row, as they are read, by column."""
        sides = [(name, pair[0]) for name, pair in zip(self._o, self._common, strict=True)]
        sides += [(name, pair[1]) for name, pair in zip(self._n, self._common, strict=True)]
        return {name: _with_default(pl.lit(one.empty, one.dtype.polars), one) for name, one in sides}

    def _is_filled(self, names: Sequence[str]) -> pl.Expr:
        empty = self._empty()
        return pl.any_horizontal(pl.lit(value=False), *(pl.col(name).ne_missing(empty[name]) for name in names))


def is_comparable(old: ViewFeature, new: ViewFeature) -> bool:
    """Return whether values of two features can be equal: they have one type, or both are whole or decimal numbers."""
    types = old.dtype, new.dtype
    return types[0] == types[1] or all(one.nesting is None and one.scalar in _NUMBERS for one in types)


def _with_default(values: pl.Expr, feature: ViewFeature) -> pl.Expr:
    if feature.default is None:
        return values
    return values.fill_null(pl.lit(feature.default, feature.dtype.polars))


def _exact(numbers: pl.Series) -> pl.Series:
    """Return numbers as text that is equal for equal numbers of any type; no cast makes all of them alike exactly."""
    return pl.Series([None if one is None else _ratio(one) for one in numbers.to_list()], dtype=pl.String)


def _ratio(number: "float | int") -> str:
    up, down = number.as_integer_ratio()
    return f"{up}/{down}"


def _any_of(entity: npt.NDArray[np.int64], flags: Flags, n_entities: int) -> Flags:
    return np.bincount(entity[flags], minlength=n_entities) > 0


def _add(feature: FeatureDiff, old: pl.Series, new: pl.Series) -> None:
    """Add values that all differ."""
    feature.differing += len(old)
    feature.from_null += old.null_count()
    feature.to_null += new.null_count()
    if not _are_numbers(feature):
        return
    ones, others, change = _changes(old, new)
    feature.increased += int((change > 0).sum())
    largest = np.maximum(np.abs(ones.cast(pl.Float64).to_numpy()), np.abs(others.cast(pl.Float64).to_numpy()))
    feature.absolute.add(np.abs(change))
    feature.relative.add(np.divide(np.abs(change), largest, out=np.zeros_like(largest), where=largest > 0))


def _are_numbers(feature: FeatureDiff) -> bool:
    types = Type.parse(feature.old_type), Type.parse(feature.new_type)
    return all(one.nesting is None and one.scalar in _NUMBERS for one in types)


def _changes(old: pl.Series, new: pl.Series) -> tuple[pl.Series, pl.Series, npt.NDArray[np.float64]]:
    """Return the numbers of both sides where neither is null, and by how much the new ones are greater."""
    both = old.is_not_null() & new.is_not_null()
    ones, others = old.filter(both), new.filter(both)
    if all(dtype == pl.Int64() for dtype in (old.dtype, new.dtype)):
        # Two numbers of 64 bits may lie further apart.
        return ones, others, (others.cast(pl.Int128) - ones.cast(pl.Int128)).cast(pl.Float64).to_numpy()
    return ones, others, others.cast(pl.Float64).to_numpy() - ones.cast(pl.Float64).to_numpy()


def _unlike(old: pl.Series, new: pl.Series) -> Flags:
    if old.dtype != new.dtype:
        old, new = _exact(old), _exact(new)
    return old.ne_missing(new).to_numpy()


def merged(parts: Sequence[Mapping[str, Found]]) -> dict[str, Found]:
    """Return the results of parts that had entities of their own, together; by view."""
    first, *others = parts
    for part in others:
        for view, found in part.items():
            first[view].merge(found)
    return dict(first)

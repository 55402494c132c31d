"""One look at the views of a log: their populations against baselines, their freshness, and what was served of them.

A ``Watch`` only holds what it read: the last bin of each entity, so that the next look reads new rows alone, and which
served rows were compared. Another one on the same files finds the same.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from typing_extensions import override

from unskew.features.errors import LayoutError, RequestError
from unskew.features.keys import decode_keys
from unskew.features.ledger import NOTHING_LATE, windows_of
from unskew.features.time import DAY_US, day_of, format_duration, rough_duration
from unskew.features.versions import Versions
from unskew.features.view import View
from unskew.monitoring.baseline import Baseline, Kind
from unskew.monitoring.bins import Bins, Counts
from unskew.monitoring.distance import LIMIT, Distance, distance
from unskew.monitoring.outcome import N_EXAMPLES, Difference
from unskew.monitoring.population import Histograms, Population
from unskew.monitoring.recount import identical
from unskew.offline.join import joined
from unskew.offline.log_reader import ViewLog
from unskew.offline.logged import LoggedVersion, defined
from unskew.serving.sample import Served, read_served
from unskew.sinks.tables.layout import view_roots

Of = Literal["population", "requests"]
State = Literal["fine", "drift", "missing", "too few", "no baseline"]

# After so long the rows are counted anew, so that what was erased leaves the figures.
_ANEW_US = DAY_US
_TIMES_NOISE = 3.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is over its limit. ``psi``: the least PSI that is a drift; noise may raise it.

    ``missing``: how much larger the share of nulls may be than in the baseline. ``event_age_us``, ``published_age_us``:
    None if they are not judged.
    """

    psi: float = LIMIT
    missing: float = 0.1
    event_age_us: int | None = None
    published_age_us: int | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureLook:
    """One feature of a population or of what was served, against a baseline if there is one.

    ``n``: how many values there are, nulls included. ``missing``: the share of nulls; None without values.
    ``missing_before``: that of the baseline. ``limit``, ``missing_limit``: for the PSI and the share of nulls.
    ``bins``: their names, the last one that of nulls; ``counts``, ``counts_before``: values in each, now and in the
    baseline.
    """

    feature: str
    of: Of
    n: int
    missing: float | None
    baseline: str | None = None
    kind: Kind | None = None
    distance: Distance | None = None
    limit: float | None = None
    missing_before: float | None = None
    missing_limit: float | None = None
    bins: Sequence[str] = ()
    counts: Sequence[int] = ()
    counts_before: Sequence[int] = ()
    state: State = "no baseline"


@dataclass(frozen=True)
class Over:
    """Something that is over its limit: ``where`` stays the same from look to look, ``what`` says by how much."""

    where: str
    what: str

    @override
    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Late:
    """How many events came too late for one window since the view began, and the longest delay among them."""

    window: str
    events: int
    worst_us: int


@dataclass(frozen=True, kw_only=True)
class ViewLook:
    """One view. Instants in microseconds, None if not known; ages are those of the moment of the look.

    ``entities``: how many have a row. ``gone``: how many had one, and their windows have emptied since.
    ``complete_to_us``: the instant of the population. ``event_us``: the last event that was counted up to there.
    ``compared``, ``mismatches``: served rows since the watch began, and of these those that differ from the log.
    ``unknown``: served rows of another definition. ``examples``: a few of the values that differ. ``late``: of each
    window. ``repeats``: events that repeated others and were dropped.
    """

    view: str
    entities: int
    gone: int
    complete_to_us: int | None
    event_us: int | None
    event_age_us: int | None
    published_age_us: int | None
    features: Sequence[FeatureLook]
    compared: int = 0
    mismatches: int = 0
    unknown: int = 0
    examples: Sequence[Difference] = ()
    late: Sequence[Late] = ()
    repeats: int = 0
    over: Sequence[Over] = ()


@dataclass(frozen=True, kw_only=True)
class Look:
    """All views, at ``at_us`` of the wall clock. ``refused``: why others could not be looked at."""

    at_us: int
    views: Sequence[ViewLook]
    refused: Sequence[RequestError | LayoutError] = ()

    @property
    def over(self) -> list[Over]:
        """Everything that is over its limit."""
        return [one for view in self.views for one in view.over]


class _Followed:
    """A view that is looked at again: the baselines' bins, how far it was counted, and what was compared."""

    def __init__(self, log: ViewLog, baselines: Mapping[str, Mapping[str, tuple[Bins, Counts]]], now_us: int) -> None:
        self.view = log.view
        self.baselines = baselines
        self.histograms: Histograms | None = None
        self.compared: set[int] = set()
        self.n_compared = 0
        self.n_mismatches = 0
        self.examples: list[Difference] = []
        self.count_anew(log, now_us)

    def count_anew(self, log: ViewLog, now_us: int) -> None:
        """Forget what was counted of the population."""
        features = {feature.name: feature for feature in self.view.features}
        binned = [(features[name], bins) for found in self.baselines.values() for name, (bins, _) in found.items()]
        has_bins = {feature.name for feature, _ in binned}
        others = [(feature, Bins.none(feature.dtype)) for name, feature in features.items() if name not in has_bins]
        self.population = Population(self.view, [*binned, *others])
        self._began_us = now_us
        self._sinces = _sinces_of(log)

    def is_current(self, log: ViewLog, now_us: int) -> bool:
        """Return whether counting may go on: it is the same log, and was not counted anew for long."""
        t_us, until_us = log.complete_to_us, self.population.until_us
        goes_on = t_us is None or until_us is None or t_us >= until_us
        return goes_on and self._sinces.items() <= _sinces_of(log).items() and now_us - self._began_us < _ANEW_US


class Watch:
    """Looks at the views of a log, again and again.

    ``names``: views, ``name`` (its highest version) or ``name@version``; all of the log if there are none, and in any
    case those of the baselines. ``served_root``: the folder of a sample of what readers were given. A look raises
    ``RequestError`` for a view that the log does not hold. What concerns one view, such as a baseline of another
    definition or files that cannot be read, is among its ``refused`` and does not hide the others.
    ``baselines``: they, or what returns those of the moment; views are counted anew when they change.
    """

    def __init__(
        self,
        log_root: Path,
        *,
        names: Sequence[str] = (),
        baselines: Sequence[Baseline] | Callable[[], Sequence[Baseline]] = (),
        served_root: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._log_root = log_root
        self._names = names
        self._baselines: dict[str, Baseline] = {}
        self._followed: dict[str, _Followed] = {}
        self._baselines_now = baselines if callable(baselines) else lambda: baselines
        self._take_baselines()
        self._served_root = served_root
        self._limits = limits or Limits()

    def look(self, now_us: int) -> Look:
        """Read what is new, and judge. ``now_us``: the wall clock; it judges ages alone."""
        self._take_baselines()
        looks: list[ViewLook] = []
        refused: list[RequestError | LayoutError] = []
        chosen = self._chosen()
        for gone in self._followed.keys() - {one.id for one in chosen}:
            del self._followed[gone]
        for one in chosen:
            try:
                looks.append(self._look(defined(one), now_us))
            except (RequestError, LayoutError) as error:
                refused.append(error)
        return Look(at_us=now_us, views=looks, refused=refused)

    def _take_baselines(self) -> None:
        """Take the baselines of the moment; forget what was counted in the bins of others."""
        found = self._baselines_now()
        named = {one.name: one for one in found}
        if len(named) < len(found):
            twice = min(name for name, n in Counter(one.name for one in found).items() if n > 1)
            raise RequestError(f"two baselines are called {twice!r}; give their files different names")
        if named != self._baselines:
            self._baselines = named
            self._followed.clear()

    def _chosen(self) -> list[LoggedVersion]:
        """Return the versions to look at: those that are named, or of each view the highest, and the baselines'."""
        held = Versions(LoggedVersion(*found) for found in view_roots(self._log_root))
        if not held:
            raise RequestError(f"{self._log_root} holds no log of any view; give the --log folder of unskew run")
        asked = [
            *(self._names or held.names),
            *(view for baseline in self._baselines.values() for view in baseline.fingerprints),
        ]
        chosen = {
            one.id: one
            for one in (held.versions(name)[-1] if held.versions(name) else held.find(name) for name in asked)
        }
        return sorted(chosen.values(), key=lambda one: (one.name, one.version))

    def _look(self, view: View, now_us: int) -> ViewLook:
        followed, log = self._follow(view, now_us)
        population, t_us = followed.population, log.complete_to_us
        if t_us is not None:
            rows = log.oldest_first(population.columns, upto=day_of(t_us))
            followed.histograms = population.advance(rows, np.array([t_us]))
        features = list(self._of_population(followed))
        served, n_unknown = ([], 0) if self._served_root is None else read_served(self._served_root, view)
        if served:
            features += self._of_requests(followed, served)
            self._compare(followed, t_us, served)
        event_us = population.event_us
        ledger = NOTHING_LATE if log.coverage is None else log.coverage.ledger
        found = ViewLook(
            view=view.id,
            entities=0 if followed.histograms is None else int(followed.histograms.entities[-1]),
            gone=0 if followed.histograms is None else int(followed.histograms.gone[-1]),
            complete_to_us=t_us,
            event_us=event_us,
            event_age_us=None if event_us is None else max(0, now_us - event_us),
            published_age_us=None if t_us is None else max(0, now_us - t_us),
            features=features,
            compared=followed.n_compared,
            mismatches=followed.n_mismatches,
            unknown=n_unknown,
            examples=tuple(followed.examples),
            late=[
                Late(window=window.text, events=late.events, worst_us=late.worst_us)
                for window, late in zip(windows_of(view), ledger.windows, strict=False)
            ],
            repeats=ledger.duplicates,
        )
        # Only now: of a look that failed half of the rows may be counted, and the next one counts all.
        self._followed[view.id] = followed
        return replace(found, over=_over(found, self._limits))

    def _follow(self, view: View, now_us: int) -> tuple[_Followed, ViewLog]:
        """Take what is known of a view, nothing if its definition changed; and its log, from where it was counted."""
        followed = self._followed.pop(view.id, None)
        if followed is not None and followed.view == view:
            log = ViewLog(self._log_root, view, after=followed.population.next_sequence)
            if followed.is_current(log, now_us):
                return followed, log
            log = ViewLog(self._log_root, view)
            followed.count_anew(log, now_us)
            return followed, log
        log = ViewLog(self._log_root, view)
        baselines = {name: found for name, one in self._baselines.items() if (found := one.of(view))}
        return _Followed(log, baselines, now_us), log

    def _of_population(self, followed: _Followed) -> Iterator[FeatureLook]:
        if followed.histograms is None:
            return
        counted = [counts[-1] for counts in followed.histograms.counts]
        names = [(baseline, name) for baseline, found in followed.baselines.items() for name in found]
        for (baseline, name), now in zip(names, counted, strict=False):
            yield self._judge(name, "population", now, baseline, followed.baselines[baseline][name])
        for (feature, _), now in zip(followed.population.binned[len(names) :], counted[len(names) :], strict=True):
            yield self._judge(feature.name, "population", now)

    def _of_requests(self, followed: _Followed, served: Sequence[Served]) -> Iterator[FeatureLook]:
        """Judge the values that readers were given; values of the whole sample, however old."""
        for feature in followed.view.features:
            given = [one.values[feature.name] for one in served if feature.name in one.values]
            if not given:
                continue
            values = pl.Series(feature.name, given, feature.dtype.polars)
            known = [(name, found[feature.name]) for name, found in followed.baselines.items() if feature.name in found]
            for name, (bins, before) in known:
                yield self._judge(feature.name, "requests", bins.counts(values), name, (bins, before))
            if not known:
                yield self._judge(feature.name, "requests", Bins.none(feature.dtype).counts(values))

    def _judge(
        self, feature: str, of: Of, now: Counts, baseline: str | None = None, kept: tuple[Bins, Counts] | None = None
    ) -> FeatureLook:
        # Who has no row is no value. That they become more is not a drift of the values of the others.
        now = now[:-1]
        n = int(now.sum())
        missing = int(now[-1]) / n if n else None
        if baseline is None or kept is None:
            return FeatureLook(feature=feature, of=of, n=n, missing=missing)
        bins, before = kept[0], kept[1][:-1]
        found = distance(before, now)
        n_before = int(before.sum())
        missing_before = int(before[-1]) / n_before if n_before else None
        missing_limit = None if missing_before is None or not n else self._most(missing_before, n, n_before)
        limit = found.limit(self._limits.psi)
        state: State = "fine"
        if found.are_few:
            state = "too few"
        elif missing is not None and missing_limit is not None and missing > missing_limit:
            state = "missing"
        elif found.psi > limit:
            state = "drift"
        return FeatureLook(
            feature=feature,
            of=of,
            n=n,
            missing=missing,
            baseline=baseline,
            kind=self._baselines[baseline].kind,
            distance=found,
            limit=limit,
            missing_before=missing_before,
            missing_limit=missing_limit,
            bins=bins.labels,
            counts=now.tolist(),
            counts_before=before.tolist(),
            state=state,
        )

    def _most(self, before: float, n: int, n_before: int) -> float:
        """Return the share of nulls that is over its limit: beyond the baseline's, and beyond what chance does."""
        chance = math.sqrt(before * (1 - before) * (1 / n + 1 / n_before))
        return before + max(self._limits.missing, _TIMES_NOISE * chance)

    def _compare(self, followed: _Followed, complete_to_us: int | None, served: Iterable[Served]) -> None:
        """Compare the served rows that the log has reached since the last look, bit by bit, each once."""
        reached = -(2**63) if complete_to_us is None else complete_to_us
        by_row = {hash((one.key, one.as_of_us, repr(one.values))): one for one in served if one.as_of_us <= reached}
        rows = [one for row, one in by_row.items() if row not in followed.compared]
        # What the sample has dropped does not come again.
        followed.compared = set(by_row)
        if not rows:
            return
        log = ViewLog(self._log_root, followed.view)
        keys = decode_keys(pl.Series("key", [one.key for one in rows], pl.String), log.view.entity)
        logged = joined(log, keys, np.array([one.as_of_us for one in rows], np.int64)).rows(named=True)
        defaults = {feature.name: feature.default for feature in log.view.features}
        for one, key, found in zip(rows, keys.iter_rows(), logged, strict=True):
            expected = {name: defaults[name] if found[name] is None else found[name] for name in one.values}
            followed.n_compared += 1
            followed.n_mismatches += not identical(one.values, expected)
            followed.examples += [
                Difference(
                    where="served",
                    view=log.view.id,
                    entity=key,
                    instant_us=one.as_of_us,
                    feature=name,
                    found=value,
                    expected=expected[name],
                )
                for name, value in one.values.items()
                if not identical({name: value}, {name: expected[name]})
            ]
        del followed.examples[N_EXAMPLES:]


def _sinces_of(log: ViewLog) -> dict[str, int]:
    """Return since when each shard has seen events, which changes only if a log is begun anew."""
    shards = {} if log.coverage is None else log.coverage.shards
    return {name: shard.since_us for name, shard in shards.items() if shard.since_us is not None}


def _over(found: ViewLook, limits: Limits) -> list[Over]:
    """Return everything of a view that is over its limit."""
    over = []
    for what, age_us, most_us in (
        ("last event", found.event_age_us, limits.event_age_us),
        ("published log", found.published_age_us, limits.published_age_us),
    ):
        if most_us is None:
            continue
        where = f"{found.view}, {what}"
        if age_us is None:
            over.append(Over(where, f"there is none yet; the limit is {format_duration(most_us)}"))
        elif age_us > most_us:
            over.append(Over(where, f"{rough_duration(age_us)} old, over {format_duration(most_us)}"))
    for one in found.features:
        where = f"{found.view}:{one.feature}, {one.of} against {one.baseline}"
        if one.state == "drift" and one.distance is not None:
            over.append(Over(where, f"PSI {one.distance.psi:.3f}, over {one.limit:.3f}"))
        elif one.state == "missing":
            over.append(Over(where, f"{one.missing:.1%} missing, {one.missing_before:.1%} in the baseline"))
    if found.mismatches:
        differ = f"{found.mismatches:,} of {found.compared:,} differ from the log"
        over.append(Over(f"{found.view}, served rows", differ))
    return over

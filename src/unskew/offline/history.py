"""The history of one entity: every row of the log about it, and a plot of its features as step functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.extras import needed
from unskew.features.frames import read_table, to_pandas
from unskew.features.nearest import nearest
from unskew.features.printing import printable
from unskew.features.references import key_columns
from unskew.features.time import moment_of
from unskew.features.view import View, ViewFeature
from unskew.offline.join import AnyLog, Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 20


@dataclass(frozen=True)
class EntityHistory:
    """All values that one entity ever had: a row for each change, in the order of time.

    ``frame``: the key columns; ``available_at``, from which the values of the row were served; ``cause``, which is
    "hop" if a window moved on without an event; ``event_time``, ``partition`` and ``offset`` of the last event of that
    instant; and the features as stored, without defaults. ``complete_to_us``: up to this instant, the last row stands.
    """

    view: View
    key: Mapping[str, Any]
    frame: pl.DataFrame
    complete_to_us: int | None

    def to_polars(self) -> pl.DataFrame:
        """Return ``frame``."""
        return self.frame

    @needed("an Arrow table", "pyarrow")
    def to_arrow(self) -> Any:
        """Return a ``pyarrow.Table``."""
        return self.frame.to_arrow()

    @needed("a pandas frame", "pandas", "pyarrow", extra="pandas")
    def to_pandas(self) -> Any:
        """Return a pandas frame with nullable or Arrow types."""
        return to_pandas(self.frame.to_arrow())

    def plot(self, features: Sequence[str] | None = None) -> "list[Axes]":
        """Draw each feature as a step function, with a dot where an event changed it; return the axes, top to bottom.

        ``features``: their names; None for all that can be drawn. Texts have a level each; lists and maps cannot be
        drawn. A null is a gap. In a step without a dot, a window moved on. Needs matplotlib: install the extra
        ``unskew[plot]``.

        Raises ``RequestError`` for an unknown feature or one that cannot be drawn, for an entity without rows, and
        without matplotlib.
        """
        chosen = self._chosen(features)
        if self.frame.is_empty():
            raise RequestError(f"{self._title()} has no rows in the log, so there is nothing to plot; check its key")
        with needed("a plot"):
            from matplotlib import pyplot as plt  # noqa: PLC0415 - it is optional
            from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415 - the same
        figure, grid = plt.subplots(
            len(chosen), 1, sharex=True, squeeze=False, figsize=(9, 0.8 + 1.5 * len(chosen)), layout="constrained"
        )
        axes: list[Axes] = list(grid[:, 0])
        when = self.frame["available_at"].dt.replace_time_zone(None)
        is_event = self.frame["event_time"].is_not_null()
        end = when[-1] if self.complete_to_us is None else moment_of(self.complete_to_us).replace(tzinfo=None)
        for ax, feature in zip(axes, chosen, strict=True):
            values, levels = drawn(self.frame[feature.name])
            xs, ys = [*when.to_list(), max(end, when[-1])], [*values, values[-1]]
            ax.step(xs, ys, where="post", color="C0", linewidth=1.2)
            ax.plot(
                when.filter(is_event).to_list(),
                [y for y, one in zip(values, is_event, strict=True) if one],
                "o",
                color="C1",
                markersize=3.5,
            )
            if levels:
                step = -(-len(levels) // _MOST_TICKS)
                ax.set_yticks(range(0, len(levels), step), [_plain(level)[:24] for level in levels[::step]])
            windows = self.view.window_text(feature)
            ax.set_title(f"{feature.name}   {windows}", loc="left", fontsize=9)
            ax.grid(alpha=0.3)
            ax.margins(y=0.15)
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes[-1].set_xlabel("UTC; a dot is an event, a step without one is a window that moved on")
        figure.suptitle(_plain(self._title()), fontsize=11, x=0.01, ha="left")
        return axes

    def _title(self) -> str:
        return f"{self.view.id}  {', '.join(f'{name} {printable(str(value))}' for name, value in self.key.items())}"

    def _chosen(self, names: Sequence[str] | None) -> list[ViewFeature]:
        if isinstance(names, str):
            raise RequestError(f"features are a list of names; write [{names!r}]")
        known = {feature.name: feature for feature in self.view.features}
        chosen = []
        for name in known if names is None else names:
            if name not in known:
                raise RequestError(f"{self.view.id} has no feature {name!r}; {nearest(name, known, 'it has')}")
            if not known[name].dtype.nesting:
                chosen.append(known[name])
            elif names is not None:
                raise RequestError(
                    f"{name} is a {known[name].type}, which cannot be drawn; its rows are in to_polars()"
                )
        if not chosen:
            raise RequestError(f"none of the features of {self.view.id} can be drawn: they are lists and maps")
        return chosen

    def __repr__(self) -> str:
        return f"{self._title()}: {len(self.frame):,} rows\n{self.frame!r}"

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()


def entity_row(view: View, key: object) -> dict[str, Any]:
    """Return an entity's key by column. ``key``: the key; a mapping or a sequence if it has several columns.

    Raises ``RequestError`` if it does not have a value for each column.
    """
    names = view.entity.keys
    if isinstance(key, Mapping):
        return dict(key)
    parts = list(key) if isinstance(key, list | tuple) else [key]
    if len(parts) != len(names):
        raise RequestError(
            f"{view.name} is about {view.entity.name}, whose key is {' and '.join(names)}: give "
            f"{'one value' if len(names) == 1 else f'{len(names)} values'}, not {len(parts)}"
        )
    return dict(zip(names, parts, strict=True))


def entity_history(log: AnyLog, key: object, progress: Progress) -> EntityHistory:
    """Return the history of one entity; ``key`` as in ``entity_row``.

    Raises ``RequestError`` if the key does not fit the view's entity.
    """
    keys = key_columns(log.view, read_table([entity_row(log.view, key)]))
    wanted = keys.row(0, named=True)
    if None in wanted.values():
        raise RequestError(f"a part of the key of {log.view.entity.name} is null; give {', '.join(wanted)}")
    columns = [
        *wanted,
        *("available_at", "cause", "event_time", "partition", "offset"),
        *(feature.name for feature in log.view.features),
    ]
    frame = log.rows_of(wanted, columns, progress)
    return EntityHistory(view=log.view, key=wanted, frame=frame, complete_to_us=log.complete_to_us)


def _plain(text: str) -> str:
    """Return text that is drawn as it is: matplotlib takes what is between two dollars for a formula."""
    return printable(text).replace("$", r"\$")


def drawn(values: pl.Series) -> tuple[list[Any], list[str] | None]:
    """Return what is drawn for the values, NaN for null, and the names of its levels if they are texts."""
    if values.dtype == pl.String():
        levels = values.drop_nulls().unique(maintain_order=True).to_list()
        places = {level: at for at, level in enumerate(levels)}
        return [float("nan") if text is None else places[text] for text in values], levels
    if isinstance(values.dtype, pl.Datetime):
        return values.dt.replace_time_zone(None).to_list(), None
    return [float("nan") if value is None else float(value) for value in values], None

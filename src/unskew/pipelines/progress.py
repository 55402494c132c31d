"""Counts of what a running pipeline has done, for its display and its log lines."""

from dataclasses import dataclass, field

from unskew.features.ledger import Ledger, ledger_of, together
from unskew.features.updates import Updates


@dataclass
class Progress:
    """Totals since this process started; instants in microseconds.

    ``late_by_view``: by view id, events that came too late for a window. ``duplicates``: by view id, events that repeated
    others and were dropped; only views whose stream drops them are there. ``ledgers``: by view id and shard, both since the
    state began.
    """

    updates: int = 0
    rows: int = 0
    late_by_view: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    clocks_us: dict[str, int] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    def count(self, update: Updates) -> None:
        """Take in one step of one shard."""
        self.updates += update.current.height
        self.rows += update.closed.height
        view_id = update.view.id
        self.late_by_view[view_id] = self.late_by_view.get(view_id, 0) + sum(update.late)
        if update.view.stream.dedupe_within_us is not None:
            self.duplicates[view_id] = self.duplicates.get(view_id, 0) + update.duplicates
        self.clocks_us[f"{view_id}/{update.shard}"] = update.clock_us
        self.ledgers[f"{view_id}/{update.shard}"] = ledger_of(update)

    @property
    def late(self) -> int:
        """Events that came too late for a window, over all views."""
        return sum(list(self.late_by_view.values()))

    @property
    def clock_us(self) -> int | None:
        """The earliest of the shards' clocks; None before the first step."""
        return min(self.clocks_us.values(), default=None)

    def ledger(self, view_id: str) -> Ledger:
        """A view's late events and repeats since its state began."""
        # A copy: another thread asks.
        ledgers = dict(self.ledgers)
        return together(ledger for name, ledger in ledgers.items() if name.startswith(f"{view_id}/"))

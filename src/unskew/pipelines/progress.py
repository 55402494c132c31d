"""Counts of what a running pipeline has done, for its display and its log lines."""

from dataclasses import dataclass, field

from unskew.features.updates import Updates


@dataclass
class Progress:
    """Totals since this process started; instants in microseconds."""

    updates: int = 0
    rows: int = 0
    late: int = 0
    clocks_us: dict[str, int] = field(default_factory=dict)

    def count(self, update: Updates) -> None:
        """Take in one step of one shard."""
        self.updates += update.current.height
        self.rows += update.closed.height
        self.late += sum(update.late)
        self.clocks_us[f"{update.view.id}/{update.shard}"] = update.clock_us

    @property
    def clock_us(self) -> int | None:
        """The earliest of the shards' clocks; None before the first step."""
        return min(self.clocks_us.values(), default=None)

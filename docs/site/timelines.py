"""The timelines of docs/concepts.md, as SVG: ``python docs/site/timelines.py`` draws them into docs/pictures.

All of them show the same minutes after noon of ``Sliding("5min", hop="1min")``. Each has a ground of its own and two
sets of colours, so it can be read on any page. It is narrow, because a phone shows it at three quarters of its size.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

HOME = Path(__file__).parents[1] / "pictures"
WIDTH = 480
MARGIN = 26
MINUTE = (WIDTH - 2 * MARGIN) / 10
_STYLE = """
.ground { fill: #fff; } text { fill: #24292f; font: 14px system-ui, sans-serif; } .soft { fill: #57606a; }
.axis, .tick { stroke: #57606a; stroke-width: 1.5; } .guide { stroke: #8c959f; stroke-dasharray: 3 3; }
.event { fill: #0969da; } .value { fill: none; stroke: #0969da; stroke-width: 2.5; } .strong { fill: #0550ae; }
.late { fill: #bc4c00; } .before { fill: none; stroke: #bc4c00; stroke-width: 2.5; stroke-dasharray: 5 4; }
.area { fill: #ddf4ff; } .open { fill: #fff1e5; } .label { stroke: #1a7f37; stroke-width: 2; } .green { fill: #1a7f37; }
.arrow { stroke: #bc4c00; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
.ground { fill: #161b22; } text { fill: #e6edf3; } .soft { fill: #9da7b3; }
.axis, .tick { stroke: #9da7b3; } .guide { stroke: #6e7681; }
.event { fill: #58a6ff; } .value { stroke: #58a6ff; } .strong { fill: #79c0ff; }
.late { fill: #f0883e; } .before { stroke: #f0883e; } .area { fill: #10305a; } .open { fill: #43290f; }
.label { stroke: #3fb950; } .green { fill: #3fb950; } .arrow { stroke: #f0883e; }
}
"""


class Timeline:
    """A drawing over the minutes after noon, from 12:00 to 12:10."""

    def __init__(self, title: str, height: int) -> None:
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="600" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
        ]

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> None:
        """Write a text at a place, in units of the drawing."""
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def axis(self, y: float, *, every: int = 1) -> None:
        """Draw the minutes, named at every so many of them."""
        self.line(MARGIN - 8, y, WIDTH - 12, y, "axis")
        for minute in range(0, 11, every):
            self.line(at(minute), y - 4, at(minute), y + 4, "tick")
            if minute % 2 == 0:
                self.text(at(minute), y + 20, f"12:{minute:02}", kind="soft", anchor="middle")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')

    def dot(self, minute: float, y: float, kind: str = "event") -> None:
        self.parts.append(f'<circle class="{kind}" cx="{at(minute):g}" cy="{y:g}" r="6"/>')

    def area(self, first: float, last: float, y: float, height: float, kind: str) -> None:
        x = at(first)
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{at(last) - x:g}" height="{height:g}" rx="3"/>'
        )

    def steps(self, values: Sequence[tuple[float, int]], last: float, y: float, kind: str, unit: float = 22) -> None:
        """Draw a step function: (minute, value) from each minute on, to the last minute; 0 is at ``y``."""
        path = f"M{at(values[0][0]):g} {y - values[0][1] * unit:g}"
        for minute, value in values[1:]:
            path += f"H{at(minute):g}V{y - value * unit:g}"
        self.parts.append(f'<path class="{kind}" d="{path}H{at(last):g}"/>')

    def way(self, name: str, first: float, last: float, y: float) -> None:
        """Draw the way of an event from when it happened, with its name, to when it arrived."""
        self.text(at(first) - 12, y + 5, name, kind="late", anchor="end")
        self.line(at(first), y, at(last), y, "arrow")
        self.line(at(last), y - 6, at(last), y + 6, "arrow")
        self.dot(first, y, "late")

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def at(minute: float) -> float:
    return round(MARGIN + minute * MINUTE, 1)


def arrival() -> Timeline:
    """Return the two instants of three events."""
    drawn = Timeline("Events happen and arrive", 194)
    drawn.text(16, 28, "happens: event_time", kind="strong")
    drawn.text(WIDTH - 16, 28, "arrives: arrival", kind="late", anchor="end")
    for happened, arrived, name in ((1.5, 1.7, "at once"), (3.25, 5.5, "two minutes later"), (7.5, 9.5, "again")):
        drawn.line(at(happened), 112, at(arrived), 78, "arrow")
        drawn.dot(happened, 112)
        drawn.dot(arrived, 78, "late")
        drawn.text(at(arrived), 62, name, kind="soft", anchor="middle")
    drawn.axis(140)
    drawn.text(16, 182, "A value counts an event from its arrival on.")
    return drawn


def window() -> Timeline:
    """Return the count of two events, which rises as they arrive and falls at hops."""
    drawn = Timeline("The count of a window of five minutes", 250)
    drawn.text(16, 26, "count in the last 5 minutes, hop 1 minute")
    for minute in (7, 9):
        drawn.line(at(minute), 50, at(minute), 176, "guide")
    drawn.steps([(0, 0), (1.5, 1), (3.25, 2), (7, 1), (9, 0)], 10, 116, "value", 28)
    for minute, value in ((0.6, 0), (2.3, 1), (5, 2), (8, 1), (9.6, 0)):
        drawn.text(at(minute), 110 - value * 28, str(value), kind="strong", anchor="middle")
    for minute in (1, 3):
        drawn.area(minute, minute + 1, 142, 34, "area")
    for minute in (1.5, 3.25):
        drawn.dot(minute, 159)
    for minute, tile in ((7, "12:01"), (9, "12:03")):
        drawn.text(at(minute) - 6, 150, f"tile {tile}", kind="soft", anchor="end")
        drawn.text(at(minute) - 6, 167, "leaves", kind="soft", anchor="end")
    drawn.axis(176)
    drawn.text(16, 222, "It rises at each event, and falls at a hop,")
    drawn.text(16, 240, "also if nothing arrives then.")
    return drawn


def clock() -> Timeline:
    """Return two partitions, the clock of the shard, and what is closed."""
    drawn = Timeline("The clock of a shard", 234)
    drawn.area(0, 6, 20, 134, "area")
    drawn.area(6, 10, 20, 134, "open")
    drawn.text(at(3), 40, "closed: rows are final", anchor="middle")
    drawn.text(at(8), 40, "open: provisional", anchor="middle")
    for y, name, minutes in ((84, "partition 0", (1, 2.5, 4.2, 6.8, 8.6)), (134, "partition 1", (0.8, 3.4, 6))):
        drawn.text(at(0.1), y - 16, name, kind="soft")
        drawn.line(at(0), y, at(10), y, "guide")
        for minute in minutes:
            drawn.dot(minute, y)
    drawn.line(at(6), 20, at(6), 162, "label")
    drawn.axis(162)
    drawn.text(16, 206, "The clock is that of the partition that is furthest")
    drawn.text(16, 224, "behind: 12:06. An idle one announces the present.")
    return drawn


def late() -> Timeline:
    """Return an event that arrives late and counts from then on, and one that is too late for the window."""
    drawn = Timeline("Events that arrive late", 268)
    drawn.text(16, 26, "count in the last 5 minutes")
    drawn.steps([(0, 0), (1.5, 1), (5.5, 2), (7, 1), (8, 0)], 10, 116, "value", 28)
    for minute, value in ((0.6, 0), (3.5, 1), (6.2, 2), (7.5, 1), (9.2, 0)):
        drawn.text(at(minute), 110 - value * 28, str(value), kind="strong", anchor="middle")
    drawn.way("B", 0.5, 6.5, 142)
    drawn.way("A", 2.5, 5.5, 164)
    drawn.dot(1.5, 164)
    drawn.axis(178)
    drawn.text(16, 222, "A counts from its arrival, 12:05:30; no row before changes.")
    drawn.text(16, 240, "B is late: its tile left at 12:06, before it arrived. It changes")
    drawn.text(16, 258, "nothing here, and is counted as late.")
    return drawn


def join() -> Timeline:
    """Return labels over the rows of the log, each with the value that it gets."""
    drawn = Timeline("Labels get the values that stood right before them", 232)
    drawn.text(16, 26, "rows of the log, and three labels")
    drawn.steps([(0, 0), (1.5, 1), (3.25, 2), (7, 1), (9, 0)], 10, 124, "value", 28)
    for minute, value in ((1.5, 1), (3.25, 2), (7, 1), (9, 0)):
        drawn.dot(minute, 124 - value * 28)
    for minute, value in ((3.25, 1), (5.5, 2), (9.5, 0)):
        drawn.line(at(minute), 52, at(minute), 158, "label")
        drawn.text(at(minute), 46, f"gets {value}", kind="green", anchor="middle")
    drawn.axis(158)
    drawn.text(16, 204, "The label at 12:03:15 is itself an event: it gets 1, as the")
    drawn.text(16, 222, "model did when it was asked, before that event counted.")
    return drawn


DRAWINGS = {"arrival": arrival, "window": window, "clock": clock, "late": late, "join": join}


def main() -> None:
    for name, draw in DRAWINGS.items():
        (HOME / f"timeline-{name}.svg").write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()

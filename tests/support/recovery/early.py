"""``unskew`` for which an epoch's end is always near, and a few events and rows are many.

So each epoch has rows in a file that ended before its end, rows that came after, events that are on the disk early, and
each few epochs bring a base.
"""

from unskew.__main__ import main
from unskew.pipelines.state import changelog
from unskew.sinks.aside import Aside
from unskew.sinks.tables import parquet

if __name__ == "__main__":
    parquet.SOON_ROWS = changelog.SOON_EVENTS = 3
    changelog.LEAST_EVENTS = 200
    Aside.near = lambda _: lambda: True  # type: ignore[method-assign]
    main()

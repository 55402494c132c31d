"""Measure how long ``unskew.testing`` takes, in new processes and in turns of one.

    python benchmarks/bench_testing.py [--processes 5] [--calls 50]

Of each process: importing unskew with unskew.testing, the first call of ``values``, and later calls of ``values`` at
one instant and of ``assert_features`` at three, over two events of a view of two features. The kernel was compiled
before. Milliseconds; medians, least and most.
"""

import argparse
import json
import statistics
import subprocess
import sys

PART = """
import json, sys, time
began = time.perf_counter()
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg
from unskew.testing import assert_features, values
seconds = {"import": [time.perf_counter() - began]}
schema = {"type": "record", "name": "Purchase", "fields": [
    {"name": "user_id", "type": "string"},
    {"name": "amount", "type": ["null", "double"], "default": None},
    {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
]}
purchases = Stream("purchases", topic="purchases", schema=schema, event_time="event_time", partitioned_by="user_id")
hour = Sliding("1h", hop="5min")
view = FeatureView("user_purchases", entity=Entity("user", key="user_id"), stream=purchases,
    features=[Feature("n", agg.count(), hour), Feature("spend", agg.sum("amount"), hour)])
at = ["2026-03-01T10:00:00Z", "2026-03-01T10:30:00Z", "2026-03-01T11:05:00Z"]
events = [{"user_id": "u-1", "amount": amount, "event_time": time_} for amount, time_ in zip([5.0, 2.5], at)]
expected = {at[0]: {"n": 1}, at[1]: {"n": 2, "spend": 7.5}, at[2]: {"n": 1, "spend": 2.5}}

def timed(what, call):
    begin = time.perf_counter()
    call()
    seconds.setdefault(what, []).append(time.perf_counter() - begin)

timed("first call", lambda: values(view, events, at=at[1]))
for _ in range(int(sys.argv[1])):
    timed("values", lambda: values(view, events, at=at[1]))
    timed("assert_features", lambda: assert_features(view, events, expected))
print(json.dumps(seconds))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--calls", type=int, default=50)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    # One more, which may compile.
    for number in range(options.processes + 1):
        done = subprocess.run(
            [sys.executable, "-c", PART, str(options.calls)], capture_output=True, text=True, check=True
        )
        for what, seconds in json.loads(done.stdout).items() if number else ():
            found.setdefault(what, []).extend(1e3 * one for one in seconds)
    print("| | median | least | most |\n|---|---|---|---|")
    for what, times in found.items():
        print(f"| {what} | {statistics.median(times):,.0f} | {min(times):,.0f} | {max(times):,.0f} |")


if __name__ == "__main__":
    main()

"""Makes events up, as JSON lines, for `unskew produce`: `python generate.py --help` shows how.

A seed always gives the same events, but for their times: they end now, or go on from now.
"""

import argparse
import datetime as dt
import json
import random
import sys
import time

from events import event


def main() -> None:
    parser = argparse.ArgumentParser(description="Print made up events, a JSON object a line.")
    parser.add_argument("--events", type=int, default=1000, help="how many events (default: 1000)")
    parser.add_argument("--over", type=float, default=3600.0, help="seconds up to now over which they happened")
    parser.add_argument("--rate", type=float, help="instead, events a second from now on, until it is stopped")
    parser.add_argument("--seed", type=int, default=1, help="what the events are made from (default: 1)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    now = dt.datetime.now(dt.UTC)
    if options.rate is None:
        for number in range(options.events):
            happened = now - dt.timedelta(seconds=options.over * (1 - (number + 1) / options.events))
            show(event(rng, number, happened))
        return
    number = 0
    while True:
        show(event(rng, number, dt.datetime.now(dt.UTC)))
        number += 1
        time.sleep(rng.expovariate(options.rate))


def show(one: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(one) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)

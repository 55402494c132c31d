"""Makes events of a stream up, as JSON lines, for `unskew dev` and `unskew produce`.

A seed always gives the same events, but for their times: they end now, or go on from now.
"""

import argparse
import datetime as dt
import json
import random
import sys
import time

from events import STREAMS, event


def main() -> None:
    parser = argparse.ArgumentParser(description="Print made up events of a stream, a JSON object a line.")
    parser.add_argument("stream", choices=list(STREAMS))
    parser.add_argument("--events", type=int, default=1000, help="how many events (default: 1000)")
    parser.add_argument("--over", type=float, default=3600.0, help="seconds up to now over which they happened")
    parser.add_argument("--rate", type=float, help="instead, events a second from now on, until it is stopped")
    parser.add_argument("--seed", type=int, default=1, help="what the events are made from (default: 1)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    if options.rate is None:
        now = dt.datetime.now(dt.UTC)
        for number in range(options.events):
            before = dt.timedelta(seconds=options.over * (1 - (number + 1) / options.events))
            show(event(options.stream, rng, now - before))
        return
    while True:
        show(event(options.stream, rng, dt.datetime.now(dt.UTC)))
        time.sleep(rng.expovariate(options.rate))


def show(one: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(one) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)

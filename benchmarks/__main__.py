"""``python -m benchmarks``: run every benchmark, each in its own process, as RESULTS.md shows them."""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

#: What RESULTS.md and docs/scaling.md were made with, in the order of a run.
COMMANDS = (
    "bench_kernel --quick",
    "bench_pipeline",
    "bench_latency --seconds 12 --warm-up 8",
    "bench_latency --seconds 8 --warm-up 5 --rates 1000 --views 10",
    "bench_latency --seconds 8 --warm-up 5 --rates 1000 --views 10 --kinds partitioned --redis-away 0.5",
    "bench_latency --seconds 8 --warm-up 5 --rates 1000 --kinds ordered --linger 1",
    "bench_poll --sizes 0 1 10 100 1000",
    "bench_poll --texts",
    "bench_poll --texts --besides text list map derived keys sessions --sizes 10 1000",
    "bench_poll --idle --partitions 4 --rate 0 --rounds 2 --seconds 8",
    "bench_poll --idle --partitions 100 --rate 0 --rounds 2 --seconds 8",
    "bench_poll --idle --partitions 400 --rate 0 --rounds 2 --seconds 8",
    "bench_poll --idle --partitions 1000 --rate 0 --rounds 1 --seconds 10 --warm-up 10",
    "bench_poll --idle --partitions 100 --rate 100 --rounds 2 --seconds 8",
    "bench_epochs --sizes 1x4 5x16 20x16 --epochs 4",
    "bench_epochs --sizes 1x4 --epochs 4 --rate 10000",
    "bench_peers",
    "bench_aggregations",
    "bench_join",
    "bench_rebuild --events 500_000 --entities 50_000 --labels 5000",
    "bench_rebuild --divided --events 1_000_000",
    "bench_recovery --epochs 10",
    "bench_serving --reads 150 --rounds 4",
    "bench_scaling --only views",
    "bench_scaling --only partitions --rounds 2",
    "bench_scaling --only processes --rounds 3",
    "bench_scaling --only entities",
    "bench_latency --rates 1000 --kinds partitioned --seconds 15 --warm-up 6 --entities 1000000 --partitions 100",
    "bench_latency --rates 1000 --kinds partitioned --seconds 15 --warm-up 6 --entities 1000000 --partitions 16 --views 10",
    "bench_latency --rates 1000 --kinds partitioned --seconds 15 --warm-up 6 --entities 1000000 --partitions 400 --views 2",
    "bench_latency --entities 0 --rates 20000 --seconds 60 --warm-up 10 --partitions 1",
    "bench_growth",
    "bench_large_join --rows 10_000_000 30_000_000 100_000_000",
    "bench_large_join --rows 10_000_000 --wide",
    "bench_large_join --rows 10_000_000 --partitioned --days 1",
    "bench_epochs --sizes 50x4 --features 64 --rate 2 --epochs 2",
    "bench_epochs --sizes 1000x4 --features 64 --rate 1 --epochs 3",
    "bench_snapshots --shards 1 320 4000 --epochs 2",
    "bench_store",
    "bench_kernel --keys",
    "bench_extremes --rounds 1",
    "bench_consume",
    "bench_consume --records 100_000 --headers 3",
    "bench_decode --seconds 1.5",
    "bench_journey --labels 100_000 --runs 1",
    "bench_journal --repeats 3 --rates --turns 1",
    "bench_wire",
    "bench_scrub",
    "bench_checksum",
    "bench_ahead",
    "bench_compaction",
    "bench_compaction --every 86_400 --epochs 400 --writers 8 --rows 5 --entities 500 --labels 10_000 --span 30d --repeats 15",
    "bench_objects",
    "bench_testing",
    "bench_compile --runs 1",
)


def main() -> int:
    """Run the commands, and return 1 if one of them failed, after all have run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run the commands that contain one of these texts")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write what each command prints to a file there")
    parser.add_argument("--list", action="store_true", help="print the commands and their numbers, and run none")
    options = parser.parse_args()
    chosen = [
        (number, command)
        for number, command in enumerate(COMMANDS, 1)
        if options.only is None or any(text in command for text in options.only)
    ]
    if not chosen:
        parser.error(f"no command contains {' or '.join(options.only)}; --list prints them all")
    failed = []
    for number, command in chosen:
        print(f"\n## {number} of {len(COMMANDS)}: {command}\n", flush=True)
        if not options.list and not _run(number, command, options.output):
            failed.append(command)
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return 1 if failed else 0


def _run(number: int, command: str, output: Path | None) -> bool:
    """Run a command, print how long it took, and return whether it succeeded."""
    name, *options = shlex.split(command)
    call = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options]
    began = time.monotonic()
    if output is None:
        done = subprocess.run(call, check=False)
    else:
        output.mkdir(parents=True, exist_ok=True)
        with (output / f"{number:02}-{name}.txt").open("w") as file:
            print(f"$ python benchmarks/{name}.py {shlex.join(options)}", file=file, flush=True)
            done = subprocess.run(call, check=False, stdout=file, stderr=subprocess.STDOUT)
    print(f"exit {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())

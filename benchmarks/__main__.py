"""``python -m benchmarks``: run every benchmark in turn, each in its own process; RESULTS.md shows one run."""

import subprocess
import sys
from pathlib import Path

NAMES = (
    "bench_compile",
    "bench_kernel",
    "bench_growth",
    "bench_aggregations",
    "bench_extremes",
    "bench_consume",
    "bench_decode",
    "bench_pipeline",
    "bench_latency",
    "bench_poll",
    "bench_scaling",
    "bench_serving",
    "bench_journal",
    "bench_wire",
    "bench_scrub",
    "bench_peers",
    "bench_join",
    "bench_large_join",
    "bench_rebuild",
    "bench_journey",
    "bench_checksum",
    "bench_ahead",
    "bench_epochs",
    "bench_snapshots",
    "bench_store",
    "bench_recovery",
    "bench_compaction",
    "bench_objects",
    "bench_testing",
)

for name in NAMES:
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=True)

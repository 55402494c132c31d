"""``python -m benchmarks``: every benchmark in turn, each in a process of its own; RESULTS.md holds a run."""

import subprocess
import sys
from pathlib import Path

NAMES = (
    "bench_kernel",
    "bench_aggregations",
    "bench_decode",
    "bench_pipeline",
    "bench_latency",
    "bench_journal",
    "bench_wire",
    "bench_peers",
    "bench_join",
    "bench_recovery",
    "bench_compaction",
)

for name in NAMES:
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=True)

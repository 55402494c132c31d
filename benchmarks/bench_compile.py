"""Measure the compilation of everything on a machine that has compiled nothing: seconds of processor and wall by part.

    python benchmarks/bench_compile.py [--runs 3]

Each run is a new process with an empty folder for compiled functions; each figure is the least of the runs. "kernel"
and "rest" are the parts that ``unskew run`` compiles in two processes at the same time, here one after the other.
"join" is what a trainer's first ``get_historical_features`` compiles. "import" is part of every process. Below are the
functions that take longest, each with the functions that are compiled into it and were not compiled before.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import numba

SLOWEST = 8
PARTS = ("kernel", "rest", "join")


def child() -> None:
    from unskew.features import jit_cache
    from unskew.offline import lookup
    from unskew.pipelines import compiling

    imported = time.process_time()
    jit_cache.say_nothing()
    compiling.collect_rarely()
    parts: dict[str, tuple[float, float]] = {"import": (imported, imported)}
    functions: dict[str, float] = {}
    for name, entries in zip(PARTS, [*compiling.entries(), lookup.entries()], strict=True):
        began, began_cpu = time.perf_counter(), time.process_time()
        for entry in entries:
            before = time.process_time()
            entry.compile()
            functions[f"{name}: {entry.function.py_func.__name__}"] = time.process_time() - before
        parts[name] = time.process_time() - began_cpu, time.perf_counter() - began
    json.dump([parts, functions], sys.stdout)


def run() -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}  # noqa: TID251 - the child's, with one change
        done = subprocess.run(
            [sys.executable, __file__, "--child"], env=environment, check=True, stdout=subprocess.PIPE
        )
    parts, functions = json.loads(done.stdout)
    return parts, functions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, numba {numba.__version__}, least of {arguments.runs}\n"
    )
    found = [run() for _ in range(arguments.runs)]
    print("| part | processor, s | wall, s |\n|---|---|---|")
    for name in ("import", *PARTS):
        processor, wall = (min(parts[name][at] for parts, _ in found) for at in range(2))
        print(f"| {name} | {processor:.1f} | {wall:.1f} |")
    functions = {name: min(each[name] for _, each in found) for name in found[0][1]}
    print("\n| function | processor, s |\n|---|---|")
    for name in sorted(functions, key=functions.__getitem__, reverse=True)[:SLOWEST]:
        print(f"| {name} | {functions[name]:.1f} |")


if __name__ == "__main__":
    main()

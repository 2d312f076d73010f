"""Items of 5 ms and of 2 s on every backend: how much faster than serial, how much overhead.

    make benchmark-parallel                                   # a few minutes
    python -m benchmarks.parallel_backends --repeats 1 --short 100 --long 4
    python -m benchmarks.parallel_backends --ray-address auto # on a cluster that is there

An item keeps a core busy for as long as that takes by the process's own clock, so that other work
on the machine shows. Processes are warm: a first round on each backend isn't counted. Backends
take turns. The overhead per item is what a round takes beyond the items' own time shared out over
the workers.
"""

import argparse
import statistics
import time
from typing import Any, get_args

import joblib

from resfool import parallel
from resfool.values import Backend

LENGTHS = {"5 ms": 0.005, "2 s": 2.0}


def main() -> None:
    """Time all backends and print a table for each length of items."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", type=int, default=1000, help="items of 5 ms in a round")
    parser.add_argument("--long", type=int, default=10, help="items of 2 s in a round")
    parser.add_argument("--workers", type=int, default=joblib.cpu_count())
    parser.add_argument("--ray-address")
    options = parser.parse_args()
    print(f"{options.workers} workers on {joblib.cpu_count()} cores, median of {options.repeats}")
    for (name, seconds), count in zip(LENGTHS.items(), (options.short, options.long), strict=True):
        print_times(name, [seconds] * count, options)


def print_times(name: str, items: list[float], options: argparse.Namespace) -> None:
    """Let the backends take turns on the same items."""
    times: dict[str, list[float]] = {backend: [] for backend in get_args(Backend)}
    for turn in range(options.repeats + 1):
        for backend, taken in times.items():
            seconds = _round(backend, items, options)
            if turn:
                taken.append(seconds)
    print(f"\n{len(items)} items of {name}\n")
    print("| backend | seconds | times serial | overhead per item |")
    print("| --- | --- | --- | --- |")
    serial = statistics.median(times["serial"])
    for backend, taken in times.items():
        middle = statistics.median(taken)
        ideal = sum(items) / (1 if backend == "serial" else options.workers)
        overhead = 1e3 * (middle - ideal) / len(items)
        spread = f"{middle:.2f} ({min(taken):.2f} to {max(taken):.2f})"
        print(f"| {backend} | {spread} | {serial / middle:.2f} | {overhead:.2f} ms |")


def _round(backend: Any, items: list[float], options: argparse.Namespace) -> float:
    workers, address = options.workers, options.ray_address
    began = time.perf_counter()
    parallel.map(busy, items, backend=backend, workers=workers, ray_address=address)
    return time.perf_counter() - began


def busy(seconds: float) -> float:
    """Keep a core at work for as many seconds of its time."""
    total, until = 0.0, time.process_time() + seconds
    while time.process_time() < until:
        for number in range(1000):
            total += number * number
    return total


if __name__ == "__main__":
    main()

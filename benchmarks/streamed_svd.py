"""The spectrum of a matrix in blocks on the disk, beside NumPy's own product of it.

    python -m benchmarks.streamed_svd                     # minutes; 1.2 GB of disk
    python -m benchmarks.streamed_svd --rows 20000 --columns 784
    python -m benchmarks.streamed_svd --rows 9000 --columns 20000 --sketched  # ours alone

The rows are written block by block, a planted spectrum and noise. Both sides then read the same
files, in a fresh process each, and multiply in float64 in pieces of 4,096 rows: NumPy alone adds up
X.T @ X, ours also looks at every block's SHA-256, and finds all singular values and 100 vectors.
Sides alternate; the figure is the ratio of their medians. Peak memory is the largest the process
had, in which the pages of mapped files that it looks at count too. What is so large both ways that
the randomised range finder is taken has no other side: NumPy's product would be too large.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import common
from resfool.attacks import lowrank, streaming
from resfool.blocks import ROWS, Column, Plan, Writer, read

RANK = 100  # singular vectors that are kept


def main() -> None:
    """Write the rows, time both sides, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=3072)
    parser.add_argument("--block", type=int, default=1024, help="rows of a block")
    parser.add_argument("--rounds", type=int, default=1, help="of both sides")
    parser.add_argument("--folder", type=Path, help="for the rows, instead of a temporary one")
    parser.add_argument("--sketched", action="store_true", help="by the range finder, ours alone")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # a side and a folder
    options = parser.parse_args()
    if options.serve:
        side, folder = options.serve
        serve(side, Path(folder), options.sketched)
        return
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", str(cores))
    print(f"{common.processor()}, {cores} cores, {threads} threads of BLAS")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        began = time.perf_counter()
        write(Path(folder), options.rows, options.columns, options.block)
        size = 4 * options.rows * options.columns
        print(f"{options.rows} x {options.columns} float32, {size / 1e9:.2f} GB, ", end="")
        print(f"written in {time.perf_counter() - began:.0f} s", flush=True)
        sides = ("ours",) if options.sketched else ("numpy", "ours")
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, each in taken.items():
                command = [sys.executable, "-m", "benchmarks.streamed_svd", "--serve", side, folder]
                command += ["--sketched"] * options.sketched
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                *said, seconds, processor, memory = done.stdout.split("\n")[:-1]
                each.append((float(seconds), float(processor)))
                print(f"{side}: {float(seconds):.1f} s, {float(processor):.1f} s of CPU, ", end="")
                print(f"peak {float(memory):.2f} GB", *said, sep="; ", flush=True)
    for name, place in (("time", 0), ("CPU time", 1)) if not options.sketched else ():
        medians = [statistics.median(one[place] for one in taken[s]) for s in ("ours", "numpy")]
        print(f"ratio of {name}: {medians[0] / medians[1]:.2f}")


def write(folder: Path, rows: int, columns: int, size: int) -> None:
    """Write rows of a spectrum that falls, with noise, block by block."""
    plan = Plan(rows, size, {ROWS: Column("float32", (columns,))})
    writer = Writer(folder, plan)
    directions = np.random.default_rng(0).standard_normal((40, columns), np.float32)
    directions *= np.geomspace(1, 0.05, 40, dtype=np.float32)[:, np.newaxis]
    for number in range(plan.count):
        random = np.random.default_rng([1, number])
        span = plan.span(number)
        count = span.stop - span.start
        block = random.standard_normal((count, 40), np.float32) @ directions
        block += np.float32(0.05) * random.standard_normal((count, columns), np.float32)
        writer.write(number, {ROWS: block})
    writer.finish()


def serve(side: str, folder: Path, sketched: bool) -> None:
    """Do one side's work, and print what it found, the seconds of both kinds and the memory."""
    if sketched:
        streaming.LARGEST_GRAM = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter(), time.process_time()
    if side == "numpy":
        total = product(folder)
        print(f"trace {np.trace(total):.6e}")
    else:
        found = lowrank.decompose(read(folder)[ROWS], RANK, exact=False)
        squares = found.squares or float((found.singular_values**2).sum())
        print(f"trace {squares:.6e}, {len(found.singular_values)} values, ", end="")
        first = ", ".join(f"{value:.4g}" for value in found.singular_values[:3])
        print(f"the first {first}, none missed is above {found.error:.4g}")
    print(time.perf_counter() - began[0])
    print(time.process_time() - began[1])
    print((max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)) / 1e6)


def product(folder: Path) -> np.ndarray:
    """X.T @ X in float64, piece by piece, by NumPy alone."""
    total: np.ndarray | None = None
    for piece in pieces(folder):
        rows = piece.astype(np.float64)
        total = rows.T @ rows if total is None else np.add(total, rows.T @ rows, out=total)
    assert total is not None
    return total


def pieces(folder: Path) -> Iterator[np.ndarray]:
    """The rows in pieces of 4,096, or of a block if that is more."""
    waiting: list[np.ndarray] = []
    for path in sorted(folder.glob("rows-*.npy")):
        waiting.append(np.load(path, mmap_mode="r"))
        if sum(map(len, waiting)) >= streaming.PIECE:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


if __name__ == "__main__":
    main()

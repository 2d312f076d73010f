"""What oneDNN's kernels and bfloat16 gain or cost on this CPU: the same work with each, in turn.

    python -m benchmarks.cpu_kernels            # minutes; a quarter of an hour if bfloat16 is slow
    python -m benchmarks.cpu_kernels --rounds 5

TensorFlow decides by itself where to take oneDNN's kernels; this package turns them on wherever
they are there (TF_ENABLE_ONEDNN_OPTS). They are chosen as a process starts, so each figure is the
median over fresh processes, one of each kind in every round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import common

# By name: whether oneDNN is on, and the precision.
KINDS = {
    "TensorFlow's": ("0", "float32"),
    "oneDNN's": ("1", "float32"),
    "oneDNN's, bfloat16": ("1", "bfloat16"),
}
WORKS = {
    "training step, resnet-5 of 16 maps": (5, 16, "step"),
    "training step, resnet-10 of 64 maps": (10, 64, "step"),
    "image gradients, resnet-10 of 64 maps": (10, 64, "gradients"),
}
BATCH = 64


def main() -> None:
    """Time every work with every kind and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each kind")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # a work and a precision
    options = parser.parse_args()
    if options.serve:
        print(seconds(*options.serve))
        return
    print(f"{common.processor()}, {len(os.sched_getaffinity(0))} cores; batches of {BATCH}\n")
    print(f"| milliseconds, median | {' | '.join(KINDS)} | oneDNN's gain | bfloat16's |")
    print("| --- " * (len(KINDS) + 3) + "|")
    for work in WORKS:
        print(row(work, options.rounds), flush=True)


def row(work: str, rounds: int) -> str:
    """One line of the table."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, (onednn, precision) in KINDS.items():
            # Attacks see saved models, which are float32.
            if not (precision == "bfloat16" and WORKS[work][2] == "gradients"):
                times[kind].append(_in_a_process(work, onednn, precision))
    theirs, ours, lower = times.values()
    cells = [work, *(f"{1e3 * statistics.median(t):.0f}" if t else "" for t in times.values())]
    return f"| {' | '.join([*cells, _ratio(theirs, ours), _ratio(ours, lower)])} |"


def _ratio(before: list[float], after: list[float]) -> str:
    if not after:
        return ""
    ratios = [one / other for one, other in zip(before, after, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _in_a_process(work: str, onednn: str, precision: str) -> float:
    command = [sys.executable, "-m", "benchmarks.cpu_kernels", "--serve", work, precision]
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def seconds(work: str, precision: Any) -> float:
    """The median time of a piece of work, in this process."""
    from resfool.devices import start_tensorflow

    start_tensorflow()
    from resfool.attacks import gradient

    depth, width, what = WORKS[work]
    trainer = common.trainer("resnet", depth, precision, width)
    images, labels = (part[:BATCH] for part in common.random_data())

    def do() -> None:
        if what == "step":
            trainer.advance(1)
        else:
            gradient.sign_gradients(trainer.model, images, labels, batch_size=BATCH)

    do()
    times = []
    for _ in range(10):
        started = time.perf_counter()
        do()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()

"""A training step here and in PyTorch: the same network, batch and precision, in turn.

    make benchmark                                    # all four rows, a quarter of an hour
    python -m benchmarks.training_step --archs resnet --precisions bfloat16

PyTorch is timed eager and compiled by `torch.compile`, which needs a C++ compiler; without one that
column is left out. A step is: draw a batch from the training set, forward, backward, Adam update.
Each side lives in a process of its own and waits while the others are timed, so all get the same
cores and the same noise; all start anew for each round, since a process's luck with its memory
lasts as long as it does. The figures are medians over all steps; the ratio is the median over
blocks, pair by pair.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

from benchmarks import common
from resfool import paper

Side = Literal["resfool", "eager", "compiled"]
Step = Callable[[], object]

BATCH, WIDTH, DEPTH = paper.BATCH_SIZE, paper.WIDTH, 10
STEPS_PER_BLOCK = 10


def main() -> None:
    """Time every combination asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["resnet", "multiresnet"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="fresh pairs of processes")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of ten steps in each round")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # side, arch, precision
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    print(f"{common.processor()}, {len(os.sched_getaffinity(0))} cores")
    print(f"batch {BATCH}, width {WIDTH}, depth {DEPTH}; median milliseconds per step\n")
    others: list[Side] = ["eager", "compiled"] if compiles() else ["eager"]
    heads = [f"PyTorch {side} | ratio" for side in others]
    print(f"| arch | precision | resfool | {' | '.join(heads)} | of the convolution peak |")
    print(f"| --- | --- | --- | {'--- | --- | ' * len(others)}--- |")
    for arch in options.archs:
        for precision in options.precisions:
            print(row(arch, precision, others, options.rounds, options.blocks), flush=True)


def compiles() -> bool:
    """Whether there is the compiler that `torch.compile` needs."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


def row(arch: str, precision: str, others: list[Side], rounds: int, blocks: int) -> str:
    """One line of the table."""
    sides: list[Side] = ["resfool", *others]
    times: dict[Side, list[list[float]]] = {side: [] for side in sides}
    peaks: list[float] = []
    for _ in range(rounds):
        servers = {side: Server(side, arch, precision) for side in sides}
        for _ in range(blocks):
            for side in sides:
                times[side].append(servers[side].ask("steps"))
        peaks += [servers[side].ask("peak") for side in sides]
        flops = 3 * BATCH * servers["resfool"].ask("flops")  # backward costs twice the forward pass
        for server in servers.values():
            server.close()
    peak = max(peaks)
    ours = statistics.median(chain.from_iterable(times["resfool"]))
    cells = [arch, precision, f"{1e3 * ours:.0f} ms"]
    for side in others:
        theirs = statistics.median(chain.from_iterable(times[side]))
        ratios = [
            statistics.median(a) / statistics.median(b)
            for a, b in zip(times["resfool"], times[side], strict=True)
        ]
        typical = statistics.median(ratios)
        cells += [
            f"{1e3 * theirs:.0f} ms",
            f"{typical:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    return f"| {' | '.join(cells)} | {flops / ours / peak:.0%} of {peak / 1e9:.0f} GFLOP/s |"


class Server:
    """One side, in a process that works only when it is asked."""

    def __init__(self, side: Side, arch: str, precision: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_step", "--serve", side, arch, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: str) -> Any:
        """Send a question and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(question, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(side: Side, arch: str, precision: str) -> None:
    """Answer "steps", "peak" and "flops" on standard input, a line each."""
    if side == "resfool":
        step, convolution, flops = _resfool(arch, precision)
    else:
        step, convolution, flops = _pytorch(arch, precision, side == "compiled")
    for _ in range(5):
        step()
    for line in sys.stdin:
        if line.strip() == "steps":
            print(json.dumps([_seconds(step) for _ in range(STEPS_PER_BLOCK)]), flush=True)
        elif line.strip() == "peak":
            for _ in range(5):
                convolution()
            best = min(_seconds(convolution) for _ in range(30))
            print(json.dumps(2 * BATCH * 32**2 * 9 * WIDTH**2 / best), flush=True)
        else:
            print(json.dumps(flops), flush=True)


def _seconds(work: Step) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _resfool(arch: Any, precision: Any) -> tuple[Step, Step, int]:
    """The project's own trainer, a step per call; its largest convolution; FLOPs per image."""
    from resfool.devices import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    from resfool.networks.architectures import count_flops

    trainer = common.trainer(arch, DEPTH, precision)
    number = tf.bfloat16 if precision == "bfloat16" else tf.float32
    maps = tf.cast(tf.random.normal((BATCH, 32, 32, WIDTH)), number)
    kernel = tf.cast(tf.random.normal((3, 3, WIDTH, WIDTH)), number)
    convolution = tf.function(lambda: tf.nn.conv2d(maps, kernel, 1, "SAME"))
    return lambda: trainer.advance(1), convolution, count_flops(trainer.model)


def _pytorch(arch: str, precision: str, compiled: bool) -> tuple[Step, Step, int]:
    """The same in PyTorch, channels last, with autocast for bfloat16."""
    import torch
    from torch.nn import functional

    from benchmarks.torch_networks import NETWORKS

    torch.manual_seed(0)
    last: Any = torch.channels_last
    model = NETWORKS[arch](DEPTH, WIDTH).to(memory_format=last)
    forward = torch.compile(model) if compiled else model
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    pixels, classes = common.random_data()
    images = torch.tensor(pixels.transpose(0, 3, 1, 2)).contiguous(memory_format=last)
    labels = torch.tensor(classes)
    lower = precision == "bfloat16"

    def step() -> None:
        rows = torch.randint(0, common.IMAGES, (BATCH,))
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            logits = forward((images[rows] - 0.5) / 0.3)
        functional.cross_entropy(logits.float(), labels[rows]).backward()
        adam.step()

    number = torch.bfloat16 if lower else torch.float32
    maps = torch.randn(BATCH, WIDTH, 32, 32).to(number, memory_format=last)
    kernel = torch.randn(WIDTH, WIDTH, 3, 3).to(number, memory_format=last)

    def convolution() -> None:
        with torch.no_grad():
            functional.conv2d(maps, kernel, padding=1)

    return step, convolution, 0


if __name__ == "__main__":
    main()

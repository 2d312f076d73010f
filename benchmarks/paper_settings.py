"""How long the paper's trainings take here: seconds per step and hours per 10,000 steps.

    python -m benchmarks.paper_settings                    # a few minutes
    python -m benchmarks.paper_settings --precision float32

The time is that of the project's own trainer at the paper's settings on images like CIFAR-10's,
without evaluation: the median of single steps after the first, which compiles.
"""

import argparse
import statistics
import time
from typing import get_args

from benchmarks import common
from resfool import paper
from resfool.devices import start_tensorflow
from resfool.values import Precision

ARCHS: tuple[str, ...] = ("convnet", "resnet", "highway", "multiresnet")


def main() -> None:
    """Time each architecture at each of the paper's depths and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16")
    parser.add_argument("--steps", type=int, default=7, help="steps to time for each network")
    options = parser.parse_args()
    start_tensorflow()
    print(f"{options.precision}, batch {paper.BATCH_SIZE}, width {paper.WIDTH}\n")
    print("| arch | depth | parameters | MFLOP per image | s per step | 10,000 steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for arch in ARCHS:
        for depth in paper.DEPTHS:
            print(row(arch, depth, options.precision, options.steps), flush=True)


def row(arch: str, depth: int, precision: Precision, steps: int) -> str:
    """One line of the table."""
    from resfool.networks.architectures import count_flops

    trainer = common.trainer(arch, depth, precision)
    trainer.advance(1)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.advance(1)
        seconds.append(time.perf_counter() - started)
    step = statistics.median(seconds)
    cells = [
        arch,
        str(depth),
        f"{trainer.model.count_params():,}",
        f"{count_flops(trainer.model) / 1e6:.0f}",
        f"{step:.2f}",
        f"{step * paper.STEPS / 3600:.1f} h",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

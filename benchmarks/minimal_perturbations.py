"""Smallest perturbations here, in foolbox and in adv-lib: how short, and how fast?

    make benchmark-attacks                                 # all attack benchmarks
    python -m benchmarks.minimal_perturbations             # three minutes

The 5-layer network of section VI.C is trained on MNIST's digits. All sides run on it in this
process, on the same cores, and keep pixels in [0, 1], since the libraries do. foolbox runs the
model in TensorFlow, adv-lib a copy of it in PyTorch. Each is warmed up on the first batch, which
takes our compilation out of its time. Norms are those of what is returned, over the images that
all sides flip. All take turns several times; times are medians. The last two columns say by which
factor ours, `closest`, leads.

A library that isn't installed is left out. PyTorch's threads are told not to wait busily for each
other, which costs them most of their time where others use the cores too.
"""

import argparse
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool.devices import start_tensorflow

if TYPE_CHECKING:
    import keras

BATCH = 250
DDN_STEPS = 300
DEEPFOOL_STEPS = 50

# Images and the classes predicted for them to perturbed images.
Attack = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """What an attack made of the images.

    Attributes:
        norms: float (N,), l2; inf where the class didn't change.
        seconds: for all of them.
    """

    norms: np.ndarray
    seconds: float


def main() -> None:
    """Measure all attacks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="test images (default: 500)")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default: 3)")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported
    start_tensorflow()
    warnings.filterwarnings("ignore")  # the libraries', of frameworks that they don't find
    from resfool.classifiers import inference

    model, images = trained(arguments.steps, arguments.images)
    classes = inference.logits(model, images, BATCH).argmax(axis=1)
    runs = attacks(model, images[:BATCH])
    for attack in runs.values():
        attack(images[:BATCH], classes[:BATCH])  # compiles
    turns = [
        {name: measure(attack, model, images, classes) for name, attack in runs.items()}
        for _ in range(arguments.repeats)
    ]
    print_table({name: [turn[name] for turn in turns] for name in runs})


def trained(steps: int, count: int) -> tuple["keras.Model", np.ndarray]:
    """The network of section VI.C, and test images."""
    from resfool import experiments

    result = experiments.train(arch="mlp", dataset="mnist5k", steps=steps)
    return result.model, np.array(result.dataset.test.images[:count])


def attacks(model: "keras.Model", images: np.ndarray) -> dict[str, Attack]:
    """All that can run here, ours first."""
    found = {f"resfool {solver}": ours(model, solver) for solver in ("closest", "deepfool", "ddn")}
    if importlib.util.find_spec("foolbox"):
        found |= of_foolbox(model)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("adv_lib"):
        found |= of_adv_lib(model, images)
    return found


def ours(model: "keras.Model", solver: Any) -> Attack:
    """A solver of resfool.attacks.minimal."""
    from resfool.attacks import minimal

    def attack(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        found = minimal.smallest_perturbations(
            model, images, solver=solver, clip=True, batch_size=BATCH
        )
        return images + found.perturbations

    return attack


def of_foolbox(model: "keras.Model") -> dict[str, Attack]:
    """L2DeepFoolAttack and DDNAttack."""
    import foolbox
    import tensorflow as tf

    from benchmarks.attack_libraries import foolbox_model

    target = foolbox_model(model)

    def adapted(method: Any) -> Attack:
        def attack(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
            x, y = tf.constant(images), tf.constant(classes)
            return np.asarray(method(target, x, y, epsilons=None)[1])

        return in_batches(attack)

    deepfool = foolbox.attacks.L2DeepFoolAttack(steps=DEEPFOOL_STEPS, candidates=10, overshoot=0.02)
    ddn = foolbox.attacks.DDNAttack(steps=DDN_STEPS)
    return {"foolbox L2DeepFoolAttack": adapted(deepfool), "foolbox DDNAttack": adapted(ddn)}


def of_adv_lib(model: "keras.Model", images: np.ndarray) -> dict[str, Attack]:
    """The functions df and ddn, on a copy of the network."""
    from benchmarks import torch_copies

    lib, copy = torch_copies.adv_lib_attacks(), torch_copies.torch_copy(model, images)

    def adapted(function: Any, **options: Any) -> Attack:
        def attack(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
            x, y = torch_copies.tensor(images), torch_copies.labels(classes)
            return torch_copies.array(function(copy, x, y, **options))

        return in_batches(attack)

    return {
        "adv-lib df": adapted(lib.df, steps=DEEPFOOL_STEPS, overshoot=0.02),
        "adv-lib ddn": adapted(lib.ddn, steps=DDN_STEPS, levels=None),
    }


def in_batches(attack: Attack) -> Attack:
    """The same for any number of images."""

    def attack_all(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        parts = [
            attack(images[start : start + BATCH], classes[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    return attack_all


def measure(
    attack: Attack, model: "keras.Model", images: np.ndarray, classes: np.ndarray
) -> Measured:
    """Run an attack, and see on our model what it has come to."""
    from resfool.classifiers import inference

    began = time.perf_counter()
    moved = attack(images, classes)
    seconds = time.perf_counter() - began
    norms = np.linalg.norm((moved - images).reshape(len(images), -1), axis=1)
    flips = inference.logits(model, moved.astype(np.float32), BATCH).argmax(axis=1) != classes
    return Measured(np.where(flips, norms, np.inf), seconds)


def print_table(measured: dict[str, list[Measured]]) -> None:
    """A line for each attack; the last columns compare it with the first one."""
    seconds = {
        name: statistics.median(m.seconds for m in turns) for name, turns in measured.items()
    }
    norms = {name: turns[0].norms for name, turns in measured.items()}
    first = next(iter(measured))
    common = np.all([np.isfinite(one) for one in norms.values()], axis=0)
    print("| attack | flips | mean norm | ms per image | norm / ours | time / ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, of_images in norms.items():
        cells = [
            name,
            f"{np.isfinite(of_images).mean():.1%}",
            f"{of_images[common].mean():.4f}",
            f"{1000 * seconds[name] / len(of_images):.2f}",
            f"{of_images[common].mean() / norms[first][common].mean():.3f}",
            f"{seconds[name] / seconds[first]:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

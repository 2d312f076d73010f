"""A sweep of epsilons here and in the libraries: FGSM's fooling rate at each of 20 epsilons.

    make benchmark-attacks                                 # this and the agreement: half an hour
    python -m benchmarks.attack_sweep --images 250         # a few minutes
    python -m benchmarks.attack_sweep --memory             # of 10,000 images at 100 epsilons

A sweep ends with the share of images whose class changed, epsilon by epsilon. All sides get the
same images, labels, network, batches and cores, and take turns. A library takes the gradient anew
for every epsilon, since that is how it can be called; here it is taken once. The random signs that
`attack` compares with are left out, because the libraries have none.

Each library is used in the fastest way found: foolbox and ART with the model compiled, which takes
a quarter off their time, cleverhans with attack and prediction compiled into one graph.
"""

import argparse
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool import paper
from resfool.devices import start_tensorflow
from resfool.networks.shape import network

if TYPE_CHECKING:
    import keras

# Images and labels, of one batch, to whether the class is another at each epsilon: (E, N).
Fooled = Callable[[np.ndarray, np.ndarray], np.ndarray]

EPSILONS = [float(e) for e in np.linspace(0.001, 0.02, 20)]
BATCH = 250
SAME = 0.005  # by how much fooling rates may differ: where two classes are equal but for rounding


def main() -> None:
    """Time all sides, or measure our memory, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    options = parser.parse_args()
    start_tensorflow()
    warnings.filterwarnings("ignore")  # the libraries', of frameworks that they don't find
    if options.memory:
        print_memory()
    else:
        print_times(options.images, options.repeats)


def print_times(count: int, repeats: int) -> None:
    """Let all sides sweep in turn; print medians, and how many times as long a library takes."""
    model = resnet(depth=10, width=paper.WIDTH)
    images, labels = noise(model, count)
    sides = {name: make(model) for name, make in SIDES.items()}
    for fooled in sides.values():
        fooled(images[:BATCH], labels[:BATCH])  # compiles
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        rates = {}
        for name, fooled in sides.items():
            started = time.perf_counter()
            rates[name] = sweep(fooled, images, labels)
            times[name].append(time.perf_counter() - started)
        for name, rate in rates.items():
            assert np.abs(rate - rates["resfool"]).max() <= SAME, (name, rate, rates["resfool"])
    cores, rate = len(os.sched_getaffinity(0)), rates["resfool"]
    print(f"{count} images, {len(EPSILONS)} epsilons, batch {BATCH}, {cores} cores;")
    print(f"fooling rates from {rate.min():.1%} to {rate.max():.1%}, the same on all sides\n")
    print("| | median | times resfool's |")
    print("| --- | --- | --- |")
    for name, seconds in times.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds, times["resfool"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(seconds):.1f} s | {spread} |")


def resnet(depth: int, width: int) -> "keras.Model":
    """A ResNet for CIFAR-10 of plain Keras, untrained and sure of nothing.

    Its logits are made small: where a network is sure of a label, the libraries move an image along
    the signs of rounding errors, and the fooling rates would differ.
    """
    from resfool.networks import architectures

    model = architectures.build(
        network("resnet", depth=depth, width=(width,)),
        image_shape=(32, 32, 3),
        classes=10,
        mean=[0.5] * 3,
        std=[0.3] * 3,
    )
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([0.2 * kernel, bias])
    return model


def noise(model: "keras.Model", count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images, as time doesn't depend on what they show, with the model's own labels."""
    from resfool.classifiers import inference

    images = np.random.default_rng(0).random((count, 32, 32, 3), dtype=np.float32)
    return images, inference.logits(model, images, BATCH).argmax(axis=1)


def sweep(fooled: Fooled, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The fooling rate at each epsilon, (E,)."""
    from resfool.classifiers import inference

    parts = [fooled(images[rows], labels[rows]) for rows in inference.batches(len(images), BATCH)]
    return np.concatenate(parts, axis=1).mean(axis=1)


def _resfool(model: "keras.Model") -> Fooled:
    from resfool.attacks import gradient

    def fooled(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        signs = gradient.sign_gradients(model, images, labels, batch_size=BATCH).signs
        found = gradient.along(model, images, signs, EPSILONS, batch_size=BATCH)
        return np.asarray(found.classes != labels)

    return fooled


def _foolbox(model: "keras.Model") -> Fooled:
    import foolbox
    import tensorflow as tf

    from benchmarks.attack_libraries import foolbox_model

    target = foolbox_model(model)
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)

    def fooled(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        _, _, success = attack(target, tf.constant(images), tf.constant(labels), epsilons=EPSILONS)
        return np.asarray(success)

    return fooled


def _art(model: "keras.Model") -> Fooled:
    from art.attacks.evasion import FastGradientMethod

    from benchmarks.attack_libraries import art_classifier

    target = art_classifier(model)
    attack = FastGradientMethod(target, batch_size=BATCH)

    def fooled(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        found = []
        for epsilon in EPSILONS:
            attack.set_params(eps=epsilon)
            moved = attack.generate(images, labels)
            found.append(target.predict(moved, batch_size=BATCH).argmax(axis=1) != labels)
        return np.stack(found)

    return fooled


def _cleverhans(model: "keras.Model") -> Fooled:
    import tensorflow as tf

    from benchmarks.attack_libraries import repair_numpy

    repair_numpy()
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method

    def logits(images: Any) -> Any:
        return model(images, training=False)

    def predicted(images: Any, labels: Any, epsilon: Any) -> Any:
        moved = fast_gradient_method(
            logits, images, epsilon, np.inf, clip_min=0.0, clip_max=1.0, y=labels
        )
        return tf.argmax(logits(moved), axis=1)

    classes = tf.function(predicted)

    def fooled(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = tf.constant(images), tf.constant(labels)
        found = [classes(x, y, tf.constant(e, tf.float32)).numpy() for e in EPSILONS]
        return np.stack(found) != labels

    return fooled


SIDES: dict[str, Callable[["keras.Model"], Fooled]] = {
    "resfool": _resfool,
    "foolbox": _foolbox,
    "ART": _art,
    "cleverhans": _cleverhans,
}


def print_memory() -> None:
    """Sweep 100 epsilons over 1,000 and then over 10,000 images; print what each added.

    The network is small: its activations are those of one batch, whatever the number of images.
    """
    from resfool.attacks import gradient

    model = resnet(depth=5, width=4)
    epsilons = np.linspace(0.001, 0.1, 100)
    # Memory is counted by its peak, so the small one comes first.
    for count in (1_000, 10_000):
        images, labels = noise(model, count)
        before = _peak()
        signs = gradient.sign_gradients(model, images, labels, batch_size=BATCH).signs
        found = gradient.along(model, images, signs, [float(e) for e in epsilons], batch_size=BATCH)
        results = sum(a.nbytes for a in (signs, found.classes, found.confidences, found.norms))
        print(
            f"{count:,} images ({images.nbytes / 1e6:.0f} MB), {len(epsilons)} epsilons:"
            f" {_peak() - before:.0f} MB more, of which the results are {results / 1e6:.0f} MB"
        )


def _peak() -> float:
    """The process's largest memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()

"""The trainings of CIFAR-10 in JAX, for a GPU: the same networks and steps, written a second time.

    python -m benchmarks.jax_trainings --data-dir CIFAR_FOLDER --out FOLDER --only "*-resnet-10-*"

It needs JAX and NumPy alone. Every training leaves a line of FOLDER/results.jsonl and its weights,
which `benchmarks.jax_records` makes networks and runs of. Several such commands may share a folder,
at once or one after the other: each takes trainings that no other has taken, those of one group
together, since their steps are compiled once. On an H100 a step of a small network is shorter than
what starts it, so that five commands at once get more done than one.
"""

import argparse
import fnmatch
import functools
import json
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_networks as networks
from benchmarks.jax_networks import Array, Shape, Statistics, Weights

AVERAGED = 100  # steps of a point of the training curve
PRECISE = (5, 500)  # batches and their images, for statistics that fit the weights
CHUNKS, CHUNK = 100, 500  # the paper's way of testing
JUDGED_AT = 10_000  # steps, beside the last: the long trainings pass through the short ones
SEEDS = 3

Numbers = dict[str, Array]


@dataclass(frozen=True)
class Rules:
    """How weights go down their gradients; the names are those of `-e train`.

    Those in `NUMBERS` are given to a compiled step, the others are compiled into it.
    """

    optimizer: str = "adam"
    learning_rate: float = 0.001
    schedule: str = "constant"
    lr_drop: int = 0
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    augment: tuple[str, ...] = ("off",)


NUMBERS = ("learning_rate", "lr_drop", "warmup", "weight_decay", "label_smoothing", "ema")

PAPER = Rules()
MODERN = Rules("muon", 0.005, "onecycle", 0, 0.25, 0.1, 0.1, 0.99, ("shift", "mirror"))


@dataclass(frozen=True)
class Training:
    """What to train and how.

    Attributes:
        group: what it is called, but for its seed.
    """

    group: str
    shape: Shape
    rules: Rules = PAPER
    seed: int = 0
    steps: int = 10_000
    eval_every: int = 2_500
    batch_size: int = 64
    precision: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"{self.group}-s{self.seed}"

    @property
    def kind(self) -> "Training":
        """What its compiled step depends on."""
        plain: dict[str, Any] = dict.fromkeys(NUMBERS, 0)
        rules = replace(self.rules, **plain)
        return replace(self, group="", rules=rules, seed=0, steps=0, eval_every=0)

    @property
    def numbers(self) -> Numbers:
        given = {name: getattr(self.rules, name) for name in NUMBERS}
        return {name: np.float32(value) for name, value in (given | {"steps": self.steps}).items()}


def trainings() -> list[Training]:
    """The readings with three seeds, the recipe, and the rows of Tables I and II."""
    found: list[Training] = []

    def add(group: str, shape: Shape, seeds: int = 1, **options: Any) -> None:
        found.extend(Training(group, shape, seed=seed, **options) for seed in range(seeds))

    def shapes(arch: str, **options: Any) -> Iterator[tuple[str, Shape]]:
        ways = ("",) if arch == "multiresnet" else ("pool", "stride")
        for way in ways:
            shape = Shape(arch, downsample=way or "stride", **options)
            yield "-".join(filter(None, (arch, str(shape.depth), way))), shape

    for arch in ("resnet", "convnet", "multiresnet", "highway"):
        for name, shape in shapes(arch):
            add(f"paper-{name}", shape, SEEDS)
            add(f"modern-{name}", shape, SEEDS, rules=MODERN)
        drop = replace(PAPER, schedule="drop", lr_drop=32_000)
        for name, shape in shapes(arch, depth=25):
            add(f"long-{name}", shape, steps=50_000, eval_every=5_000, rules=drop)
        for name, shape in shapes(arch, depth=50):
            add(f"paper-{name}", shape)
    pooled = Shape("resnet", downsample="pool")
    plain = Shape("convnet", downsample="pool", batch_norm=False)
    add("paper-convnet-10-pool-plain", plain, SEEDS)
    add("paper-convnet-50-pool-plain", replace(plain, depth=50))
    add("paper-resnet-10-pool-two", replace(pooled, convs_per_unit=2), SEEDS)
    flipped = replace(PAPER, augment=("shift", "mirror"))
    add("paper-resnet-10-pool-flipped", pooled, SEEDS, rules=flipped)
    for name in ("momentum", "sgd"):
        rules = replace(PAPER, optimizer=name)
        add(f"paper-resnet-10-pool-{name}", pooled, SEEDS, rules=rules)
    large = replace(pooled, depth=20, width=128, convs_per_unit=2)
    add("modern-resnet-20-wide", large, rules=MODERN, steps=6_000, batch_size=128)
    return found


class Data:
    """CIFAR-10 in its official layout, uint8 (N, 32, 32, 3); the training set on the device too."""

    def __init__(self, folder: Path) -> None:
        names = [f"data_batch_{i}" for i in range(1, 6)]
        self.train, self.train_labels = _batches(folder, names)
        self.test, self.test_labels = _batches(folder, ["test_batch"])
        whole = self.train.reshape(-1, 3) / np.float32(255)
        self.mean = whole.mean(0, dtype=np.float64).astype(np.float32)
        self.std = whole.std(0, dtype=np.float64).astype(np.float32)
        self.images, self.labels = jnp.asarray(self.train), jnp.asarray(self.train_labels)

    def prepared(self, images: Array, precision: str = "float32") -> Array:
        """Of pixels in [0, 1], as the stem takes them."""
        number = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        return ((images - self.mean) / self.std).astype(number)


def _batches(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name in names:
        with (folder / "cifar-10-batches-py" / name).open("rb") as file:
            batch = pickle.load(file, encoding="bytes")  # the official files are pickles
        images.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(batch[b"labels"], np.int32))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


# A step


def rate_at(schedule: str, numbers: Numbers, step: Array) -> Array:
    """The learning rate of a step, counted from 0."""
    peak = numbers["learning_rate"]
    if schedule == "constant":
        return peak
    if schedule == "drop":
        return jnp.where(step < numbers["lr_drop"], peak, peak / 10)
    done = (step + 0.5) / numbers["steps"]
    left = (1 - done) / (1 - numbers["warmup"])
    if schedule == "cosine":
        left = 0.5 - 0.5 * jnp.cos(jnp.pi * left)
    return peak * jnp.where(done < numbers["warmup"], done / (numbers["warmup"] + 1e-9), left)


def augmented(images: Array, kinds: Sequence[str], key: Array) -> Array:
    """float32 (N, 32, 32, 3) shifted by up to 4 pixels, reflected at the edges, and mirrored."""
    shift_key, mirror_key = jax.random.split(key)
    if "shift" in kinds:
        padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
        starts = jax.random.randint(shift_key, (len(images), 2), 0, 9)
        images = jax.vmap(lambda x, s: jax.lax.dynamic_slice(x, (s[0], s[1], 0), (32, 32, 3)))(
            padded, starts
        )
    if "mirror" in kinds:
        mirrored = jax.random.bernoulli(mirror_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def orthogonal(matrices: Array) -> Array:
    """Steps of Muon for matrices (K, n, m), as `resfool.training.muon` has them for one."""
    if matrices.shape[1] < matrices.shape[2]:
        return orthogonal(matrices.swapaxes(1, 2)).swapaxes(1, 2)
    gram = matrices.swapaxes(1, 2) @ matrices
    gram = gram / (jnp.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-14)
    identity = jnp.eye(matrices.shape[2])
    whole = identity / (jnp.sqrt((matrices**2).sum((1, 2), keepdims=True)) + 1e-7)
    for _ in range(5):
        factor = 3.4445 * identity - 4.7750 * gram + 2.0315 * gram @ gram
        gram = factor @ gram @ factor
        whole = whole @ factor
    return 0.2 * matrices.shape[1] ** 0.5 * matrices @ whole


def updated(rules: Rules, numbers: Numbers, state: Any, gradients: Weights) -> Any:
    """The state after a step of the optimizer."""
    step, rate = state["step"], rate_at(rules.schedule, numbers, state["step"])
    keep = 1 - rate * numbers["weight_decay"]
    weights = {n: w * keep if n.endswith("/kernel") else w for n, w in state["weights"].items()}
    first, second = dict(state["first"]), dict(state["second"])
    inner = [n for n in weights if n.endswith("/kernel") and n != "logits/kernel"]
    orthogonally = inner if rules.optimizer == "muon" else []
    if orthogonally:
        alike: dict[tuple[int, ...], list[str]] = {}
        for name in orthogonally:
            first[name] = 0.95 * first[name] + gradients[name]
            alike.setdefault(weights[name].shape, []).append(name)
        for shape, names in alike.items():
            stack = jnp.stack([gradients[n] + 0.95 * first[n] for n in names])
            steps = orthogonal(stack.reshape(len(names), -1, shape[-1])).reshape(stack.shape)
            for name, own in zip(names, steps, strict=True):
                weights[name] -= rate * own
    for name in weights.keys() - set(orthogonally):
        if rules.optimizer in ("adam", "muon"):
            first[name] = 0.9 * first[name] + 0.1 * gradients[name]
            second[name] = 0.999 * second[name] + 0.001 * gradients[name] ** 2
            size = jnp.sqrt(second[name] / (1 - 0.999 ** (step + 1.0))) + 1e-7
            weights[name] -= rate * first[name] / (1 - 0.9 ** (step + 1.0)) / size
        else:
            momentum = 0.0 if rules.optimizer == "sgd" else 0.9
            first[name] = momentum * first[name] - rate * gradients[name]
            weights[name] += first[name]
    decay = jnp.minimum(numbers["ema"], (1 + step) / (10.0 + step))
    averages = {n: a + (1 - decay) * (weights[n] - a) for n, a in state["averages"].items()}
    changed = {"weights": weights, "first": first, "second": second, "averages": averages}
    return {**state, **changed, "step": step + 1}


@functools.cache
def compiled(kind: Training, data: Data) -> Callable[..., Any]:
    """`AVERAGED` steps: from a state, its numbers, seed and training set to state and figures."""

    def loss_of(weights: Weights, images: Array, labels: Array, smoothing: Array) -> Any:
        on = networks.Pass(kind.shape, weights)
        logits = networks.logits(on, data.prepared(images, kind.precision))
        logs = jax.nn.log_softmax(logits)
        plain = -jnp.take_along_axis(logs, labels[:, None], 1).mean()
        hits = (logits.argmax(1) == labels).mean()
        return (1 - smoothing) * plain - smoothing * logs.mean(), (
            jnp.stack([plain, hits]),
            on.seen,
        )

    def run(state: Any, numbers: Numbers, seed: Array, images: Array, labels: Array) -> Any:
        def one(state: Any, _: None) -> Any:
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
            rows_key, change_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (kind.batch_size,), 0, len(labels))
            batch = augmented(images[rows] / jnp.float32(255), kind.rules.augment, change_key)
            gradients, (figures, seen) = jax.grad(loss_of, has_aux=True)(
                state["weights"], batch, labels[rows], numbers["label_smoothing"]
            )
            moved = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, state["moving"], seen)
            return updated(kind.rules, numbers, {**state, "moving": moved}, gradients), figures

        return jax.lax.scan(one, state, None, length=AVERAGED)

    return jax.jit(run, donate_argnums=0)


# Judging


@dataclass(frozen=True, eq=False)
class Judge:
    """Accuracies of a training's weights.

    Attributes:
        one: the training.
        data: whose test images they are of.
    """

    one: Training
    data: Data

    def precise(self, weights: Weights) -> Statistics:
        """Means and variances of training images with the weights as they are."""
        draws = np.random.default_rng([self.one.seed, *PRECISE])
        rows = draws.permutation(len(self.data.train))[: PRECISE[0] * PRECISE[1]]
        by_own = _predicted(self.one.shape, self.data)
        each = [by_own(weights, None, self.data.train[r])[1] for r in rows.reshape(PRECISE)]
        result: Statistics = {}
        for name in each[0]:
            mean, variance = np.asarray([seen[name] for seen in each], np.float64).swapaxes(0, 1)
            spread = (variance + (mean - mean.mean(0)) ** 2).mean(0)
            result[name] = mean.mean(0).astype(np.float32), spread.astype(np.float32)
        return result

    def accuracy(self, weights: Weights, statistics: Statistics | None, rows: Any = None) -> float:
        """On some test images, by some statistics or by the images' own."""
        images, labels = self.data.test, self.data.test_labels
        if rows is not None:
            images, labels = images[rows], labels[rows]
        predict = _predicted(self.one.shape, self.data)
        parts = range(0, len(images), CHUNK)
        found = [predict(weights, statistics, images[i : i + CHUNK])[0] for i in parts]
        return float((np.concatenate([np.asarray(each) for each in found]) == labels).mean())

    def in_the_papers_way(self, weights: Weights) -> dict[str, float]:
        """By random chunks of the test set and their own statistics, the best of which counts."""
        draws = np.random.default_rng(self.one.seed)
        all_rows = [draws.choice(len(self.data.test), CHUNK, replace=False) for _ in range(CHUNKS)]
        each = [self.accuracy(weights, None, rows) for rows in all_rows]
        return {
            "papers_way_test_accuracy": max(each),
            "batch_statistics_test_accuracy": float(np.mean(each)),
            "batch_statistics_test_accuracy_std": float(np.std(each)),
        }


@functools.cache
def _predicted(shape: Shape, data: Data) -> Callable[..., Any]:
    def run(weights: Weights, statistics: Statistics | None, images: Array) -> Any:
        on = networks.Pass(shape, weights, given=statistics)
        return networks.logits(on, data.prepared(images / jnp.float32(255))).argmax(1), on.seen

    return jax.jit(run)


@dataclass
class Outcome:
    """What came of a training.

    Attributes:
        curve: figures of every hundred steps, test figures where they were taken.
        judged: by steps, what was measured with care.
        weights: the last ones that were judged.
        seconds: of its steps, without the first hundred and what compiles them, and of all.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    judged: dict[int, dict[str, float]] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def train(one: Training, data: Data) -> Outcome:
    """Train."""
    weights, moving = networks.new(one.shape, one.seed)
    zeros = jax.tree.map(np.zeros_like, weights)
    state = {"step": np.int32(0), "weights": weights, "moving": moving}
    state |= {"first": zeros, "second": zeros, "averages": weights if one.rules.ema else {}}
    state = jax.tree.map(lambda value: jnp.array(value, copy=True), state)
    run, judge, outcome = compiled(one.kind, data), Judge(one, data), Outcome()
    started, stepping = time.monotonic(), 0.0
    for step in range(AVERAGED, one.steps + 1, AVERAGED):
        began = time.monotonic()
        state, figures = run(state, one.numbers, np.uint32(one.seed), data.images, data.labels)
        loss, hits = np.asarray(figures).mean(0).tolist()
        stepping += (time.monotonic() - began) * (step > AVERAGED)
        point: dict[str, float] = {"step": step, "train_loss": loss, "train_accuracy": hits}
        if step % one.eval_every == 0 or step == one.steps:
            weights = state["averages"] or state["weights"]
            fit = judge.precise(weights)
            point["test_accuracy"] = judge.accuracy(weights, fit)
            if step in (JUDGED_AT, one.steps):
                by_moving = {"moving_test_accuracy": judge.accuracy(weights, state["moving"])}
                outcome.judged[step] = point | by_moving | judge.in_the_papers_way(weights)
        outcome.curve.append(point)
    outcome.weights, outcome.statistics = jax.device_get((weights, fit))
    outcome.seconds = {"steps": stepping, "all": time.monotonic() - started}
    return outcome


# The command


def main() -> None:
    """Train what nobody else has taken, and keep what comes of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, type=Path, help="has cifar-10-batches-py")
    parser.add_argument("--out", required=True, type=Path, help="folder for what comes of it")
    parser.add_argument("--only", nargs="+", default=["*"], help="names, with * for anything")
    parser.add_argument("--steps", type=int, help="for a try: of every training")
    options = parser.parse_args()
    asked = [one for one in trainings() if any(fnmatch.fnmatch(one.name, n) for n in options.only)]
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options.data_dir)
    for one in _untaken(asked, options.out):
        wanted = replace(one, steps=options.steps or one.steps)
        outcome = train(wanted, data)
        _keep(options.out, wanted, outcome)
        last, seconds = outcome.curve[-1], outcome.seconds
        print(
            f"{one.name}: train {last['train_accuracy']:.3f}, test {last['test_accuracy']:.3f}, "
            f"{1e3 * seconds['steps'] / wanted.steps:.2f} ms a step, {seconds['all']:.0f} s in all",
            flush=True,
        )


def _untaken(asked: Sequence[Training], out: Path) -> Iterator[Training]:
    for group in dict.fromkeys(one.group for one in asked):
        try:
            (out / f"{group}.taken").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield from (one for one in asked if one.group == group)


def _keep(out: Path, one: Training, outcome: Outcome) -> None:
    networks.save(out / f"{one.name}.npz", outcome.weights, outcome.statistics)
    settings = asdict(one) | {"device": jax.devices()[0].device_kind}
    line: dict[str, Any] = {"name": one.name, "training": settings}
    line |= {key: getattr(outcome, key) for key in ("curve", "judged", "seconds")}
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

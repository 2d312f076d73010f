"""The trainings in JAX are those of the package: the same networks, and the same steps."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resfool.networks import architectures
from resfool.networks.shape import network
from resfool.training import optimizers
from resfool.training.steps import Steps

pytest.importorskip("jax", reason="JAX is not installed")

from benchmarks import jax_networks, jax_trainings

NETWORKS = [
    {"arch": "convnet"},
    {"arch": "convnet", "downsample": "pool", "batch_norm": False},
    {"arch": "resnet"},
    {"arch": "resnet", "depth": 20, "convs_per_unit": 2, "downsample": "pool"},
    {"arch": "highway"},
    {"arch": "highway", "depth": 15, "downsample": "pool"},
    {"arch": "multiresnet", "depth": 15},
]


@pytest.mark.parametrize("options", NETWORKS)
def test_a_network_in_jax_gives_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights, statistics = jax_networks.new(jax_networks.Shape(width=8, **options), seed=0)
    moved = {
        name: (random.random(len(mean), np.float32), 0.5 + random.random(len(mean), np.float32))
        for name, (mean, _) in statistics.items()
    }
    jax_networks.save(tmp_path / "w.npz", weights, moved)
    model = architectures.build(
        network(width=(8,), **options), image_shape=(32, 32, 3), classes=10, mean=[0.5], std=[0.25]
    )
    assert model.count_params() >= sum(w.size for w in weights.values())
    jax_networks.load_into(model, tmp_path / "w.npz")
    images = random.random((4, 32, 32, 3), dtype=np.float32)
    for given, training in ((moved, False), (None, True)):
        on = jax_networks.Pass(jax_networks.Shape(width=8, **options), weights, given=given)
        theirs = np.asarray(jax_networks.logits(on, (images - 0.5) / 0.25))
        ours = np.asarray(model(images, training=training))
        np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"optimizer": "momentum", "learning_rate": 0.05, "lr_drop": (2,)},
        {"recipe": "modern", "ema": 0.0},
    ],
)
def test_an_optimizer_in_jax_takes_the_same_steps(given: dict[str, Any]) -> None:
    asked = Steps(steps=4, **given)
    random = np.random.default_rng(0)
    shapes = {"a_conv/kernel": (3, 3, 4, 8), "b_conv/kernel": (3, 3, 4, 8), "a_bn/gamma": (8,)}
    shapes |= {"logits/kernel": (8, 10), "logits/bias": (10,)}
    first = {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    variables = [_variable(name, value) for name, value in first.items()]
    ours = optimizers.optimizer(asked, "logits/kernel")
    ours.exclude_from_weight_decay(var_list=[v for v in variables if v.name != "kernel"])
    ours.build(variables)
    rules = jax_trainings.Rules(
        **{
            name: getattr(asked.rules, name)
            for name in ("optimizer", "learning_rate", "schedule", "weight_decay")
        },
        lr_drop=(asked.lr_drop or (0,))[0],
        warmup=asked.rising,
    )
    one = jax_trainings.Training("", jax_networks.Shape("resnet"), rules, steps=4)
    state: Any = {"step": np.int32(0), "weights": first, "averages": {}}
    state |= {name: {n: 0 * w for n, w in first.items()} for name in ("first", "second")}
    for _ in range(4):
        gradients = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        ours.apply([keras.ops.convert_to_tensor(g) for g in gradients.values()], variables)
        state = jax_trainings.updated(rules, one.numbers, state, gradients)
    for (name, theirs), variable in zip(state["weights"].items(), variables, strict=True):
        np.testing.assert_allclose(theirs, variable, atol=2e-5, err_msg=name)


def _variable(path: str, value: np.ndarray) -> keras.Variable:
    layer, name = path.split("/")
    with keras.name_scope(layer):
        return keras.Variable(value, name=name)

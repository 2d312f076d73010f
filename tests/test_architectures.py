"""The networks against closed forms, identities and a slow plain reference in NumPy."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.signal import correlate2d

from resfool.networks import architectures
from resfool.networks.shape import ARCHITECTURES, network

CONVOLUTIONAL: list[str] = ["convnet", "resnet", "highway", "multiresnet"]
EVERY: list[str] = [*CONVOLUTIONAL, "mlp"]


def build(arch: str, **options: Any) -> keras.Model:
    """A small network on colour images of 32 pixels, unless told otherwise."""
    shape: dict[str, Any] = {
        name: options.pop(name)
        for name in ("depth", "width", "convs_per_unit", "gate_bias", "dropout", "batch_norm")
        if name in options
    }
    blueprint: dict[str, Any] = {
        "image_shape": (32, 32, 3),
        "classes": 10,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
    }
    return architectures.build(network(arch, **shape), **blueprint | options)


def images(count: int = 3, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)


def scramble(model: keras.Model) -> None:
    """Give every weight a value that no default has, moving averages and biases included."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights(
            [
                np.abs(w + random.normal(0, 0.2, w.shape)) + 0.1
                if w.ndim == 1
                else w + random.normal(0, 0.05, w.shape)
                for w in layer.get_weights()
            ]
        )


# Closed forms


@pytest.mark.parametrize("depth", [5, 10, 25, 50])
@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_parameter_count(arch: str, depth: int) -> None:
    w, n = 8, depth // 5
    stem, head, norm = 3 * 9 * w, w * 10 + 10, 4 * w
    conv = 9 * w * w
    unit = {
        "convnet": conv + norm,
        "resnet": conv + norm,
        "highway": 2 * conv + w + norm,  # the gate is a convolution with a bias
        "multiresnet": (conv + norm) * (n + 1) / 2,  # the i-th of n layers sees i * w maps
    }[arch]
    assert build(arch, depth=depth, width=(w,)).count_params() == stem + depth * unit + head


def test_resnet_needs_no_more_parameters_than_the_convnet() -> None:
    assert build("resnet").count_params() == build("convnet").count_params()


def test_mlp_parameter_count() -> None:
    model = build("mlp", image_shape=(28, 28, 1), mean=[0.1], std=[0.3])
    assert model.count_params() == (784 * 100 + 100) + 4 * (100 * 100 + 100) + 100 * 10 + 10


@pytest.mark.parametrize("depth", [10, 25])
def test_flops(depth: int) -> None:
    w = 64
    first = 9 * w * w * (32**2)
    per_stage = [first // 4**i for i in range(5)]  # each stage has a quarter of the pixels
    expected = 2 * (9 * 3 * w * 32**2 + depth // 5 * sum(per_stage) + 10 * w)
    assert architectures.count_flops(build("resnet", depth=depth)) == expected


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
@pytest.mark.parametrize("depth", [5, 10, 25])
def test_depth_counts_the_convolutions_of_the_five_stages(arch: str, depth: int) -> None:
    model = build(arch, depth=depth, width=(4,))
    convs = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    in_stages = [c for c in convs if c.name != "stem_conv" and not c.name.endswith("_gate")]
    assert len(in_stages) == depth
    sizes = sorted({c.output.shape[1] for c in in_stages})
    assert sizes == [2, 4, 8, 16, 32]


def test_a_pyramid_has_its_widths() -> None:
    for arch in CONVOLUTIONAL:
        model = build(arch, depth=10, width=(2, 4, 4, 6, 8))
        for stage, width in enumerate((2, 4, 4, 6, 8), start=1):
            names = [f"stage{stage}_unit{unit}_conv" for unit in (1, 2)]
            assert [model.get_layer(name).filters for name in names] == [width] * 2


# Identities


def _zero(model: keras.Model, ending: str) -> None:
    for layer in model.layers:
        if layer.name.endswith(ending) and layer.name != "stem_conv":
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])


def _averaged_stem(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The logits of a network whose units are all the identity."""
    stem = keras.Model(model.input, model.get_layer("stem_conv").output)(x)
    return np.asarray(model.get_layer("logits")(np.mean(stem, axis=(1, 2))))


@pytest.mark.parametrize("convs_per_unit", [1, 2])
def test_a_resnet_whose_convolutions_are_zero_is_the_identity(convs_per_unit: int) -> None:
    model = build("resnet", width=(8,), convs_per_unit=convs_per_unit)
    _zero(model, "_conv")
    np.testing.assert_allclose(model(images()), _averaged_stem(model, images()), atol=1e-5)


def test_a_highway_whose_gates_are_shut_is_the_identity() -> None:
    model = build("highway", width=(8,), gate_bias=-100.0)
    np.testing.assert_allclose(model(images()), _averaged_stem(model, images()), atol=1e-5)


def test_a_highway_whose_gates_are_open_is_the_transform_alone() -> None:
    opened = build("highway", width=(8,), gate_bias=100.0)
    plain = build("resnet", width=(8,))
    architectures.copy_weights(plain, opened)
    for layer in opened.layers:  # then only H is left, which is the resnet without its shortcuts
        if layer.name.endswith("_gate"):
            layer.set_weights([np.zeros_like(layer.kernel), np.full(8, 100.0)])
    x = keras.Model(plain.input, plain.get_layer("stem_conv").output)(images())
    for layer in plain.layers:
        if layer.name.endswith(("_bn", "_relu", "_conv")) and layer.name != "stem_conv":
            x = layer(x)
    expected = plain.get_layer("logits")(keras.ops.mean(x, axis=(1, 2)))
    np.testing.assert_allclose(opened(images()), expected, rtol=1e-4, atol=1e-4)


# A slow plain reference


def _conv(x: np.ndarray, layer: Any, stride: int = 1) -> np.ndarray:
    """A 'same' convolution as TensorFlow does it: with stride 2 the even sizes pad at the end."""
    kernel, *bias = layer.get_weights()
    full: np.ndarray = np.stack(
        [
            sum(correlate2d(x[..., i], kernel[..., i, o], "same") for i in range(kernel.shape[2]))
            for o in range(kernel.shape[3])
        ],
        axis=-1,
    )
    return full[stride - 1 :: stride, stride - 1 :: stride] + (bias[0] if bias else 0)


def _norm(x: np.ndarray, layer: Any) -> np.ndarray:
    gamma, beta, mean, variance = layer.get_weights()
    return (x - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _half(x: np.ndarray) -> np.ndarray:
    h, w, c = x.shape
    return x.reshape(h // 2, 2, w // 2, 2, c).mean(axis=(1, 3))


def _reference(model: keras.Model, arch: str, image: np.ndarray, depth: int) -> np.ndarray:
    """Equations 1 to 4 for one image, one unit after the other."""
    layer = model.get_layer
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    x = _conv((image.astype(np.float64) - mean) / std, layer("stem_conv"))
    for stage in range(5):
        if arch == "multiresnet" and stage:
            x = _half(x)
        seen = [x]
        for i in range(depth // 5):
            name = f"stage{stage + 1}_unit{i + 1}"
            stride = 2 if stage and not i and arch != "multiresnet" else 1
            carried = _half(x) if stride == 2 else x
            if arch == "convnet":
                x = _relu(_norm(_conv(x, layer(f"{name}_conv"), stride), layer(f"{name}_bn")))
                continue
            given = np.concatenate(seen, axis=-1) if arch == "multiresnet" else x
            h = _conv(_relu(_norm(given, layer(f"{name}_bn"))), layer(f"{name}_conv"), stride)
            if arch == "resnet":
                x = h + carried
            elif arch == "highway":
                gate = 1 / (1 + np.exp(-_conv(x, layer(f"{name}_gate"), stride)))
                x = h * gate + carried * (1 - gate)
            else:
                x = h
                seen.append(x)
    kernel, bias = layer("logits").get_weights()
    return np.asarray(x.mean(axis=(0, 1)) @ kernel + bias)


@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_logits_agree_with_the_equations_in_numpy(arch: str) -> None:
    model = build(arch, depth=10, width=(3,))
    scramble(model)
    batch = images(2)
    expected = [_reference(model, arch, image, 10) for image in batch]
    np.testing.assert_allclose(model(batch), expected, rtol=1e-4, atol=1e-4)


# Fused and plain, saved and loaded


@pytest.mark.parametrize("arch", EVERY)
def test_the_plain_model_gives_the_fused_models_logits(arch: str) -> None:
    options: dict[str, Any] = {"depth": 10} | ({"width": (4,)} if arch != "mlp" else {})
    fused, plain = build(arch, fused=True, **options), build(arch, seed=9, **options)
    scramble(fused)
    architectures.copy_weights(fused, plain)
    np.testing.assert_allclose(
        plain(images()), fused(images(), training=False), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_saved_models_need_keras_alone(tmp_path: Path) -> None:
    examples: list[tuple[str, dict[str, Any]]] = [
        ("convnet", {"depth": 5, "dropout": 0.1}),
        ("resnet", {"depth": 5, "width": (2, 4, 4, 4, 6)}),
        ("highway", {"depth": 10, "convs_per_unit": 2, "width": (4,)}),
        ("multiresnet", {"depth": 10, "width": (4,), "image_shape": (28, 28, 3)}),
        ("resnet", {"depth": 5, "width": (4,), "image_shape": (8, 8, 3)}),
        ("mlp", {"dropout": 0.1}),
    ]
    for number, (arch, options) in enumerate(examples):
        model = build(arch, **options)
        batch = images(3, model.input.shape[1:])
        model.save(tmp_path / f"{number}.keras")
        np.savez(tmp_path / f"{number}.npz", batch=batch, logits=model(batch))
    script = (
        "import keras, numpy as np, sys\n"
        "for n in range(int(sys.argv[1])):\n"
        "    model = keras.saving.load_model(f'{n}.keras', compile=False, safe_mode=True)\n"
        "    arrays = np.load(f'{n}.npz')\n"
        "    np.testing.assert_allclose(model(arrays['batch']), arrays['logits'], atol=1e-5)\n"
        "assert 'resfool' not in sys.modules\n"
    )
    command = [sys.executable, "-I", "-c", script, str(len(examples))]
    subprocess.run(command, cwd=tmp_path, check=True)


# Pixels and seeds


@pytest.mark.parametrize("arch", EVERY)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (40, 40, 3), (30, 20, 2)])
def test_any_image_size_gives_logits(arch: str, shape: tuple[int, int, int]) -> None:
    options: dict[str, Any] = {"width": (4,), "depth": 5}
    moments = {"mean": [0.5] * shape[2], "std": [0.2] * shape[2]}
    model = build(arch, image_shape=shape, classes=7, **options, **moments)
    assert model(images(2, shape)).shape == (2, 7)
    if arch != "mlp" and max(shape) <= 32:
        assert model.get_layer("stem_conv").output.shape[1:3] == (32, 32)


def test_small_images_are_repeated_and_padded_with_zeros() -> None:
    model = build("resnet", depth=5, width=(4,), image_shape=(8, 8, 3))
    enlarged = keras.Model(model.input, model.get_layer("enlarge").output)(images(1, (8, 8, 3)))
    np.testing.assert_array_equal(
        enlarged, images(1, (8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    )
    model = build("resnet", depth=5, width=(4,), image_shape=(28, 28, 3))
    padded = np.asarray(
        keras.Model(model.input, model.get_layer("pad").output)(images()[:, :28, :28])
    )
    assert padded.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(padded[:, 2:30, 2:30], images()[:, :28, :28])
    assert padded.sum() == pytest.approx(padded[:, 2:30, 2:30].sum())


def test_moments_of_the_data_cancel_out() -> None:
    one = build("resnet", depth=5, width=(4,), mean=[0.0] * 3, std=[1.0] * 3)
    other = build("resnet", depth=5, width=(4,))
    normalised = (images() - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]
    np.testing.assert_allclose(
        one(normalised.astype(np.float32)), other(images()), rtol=1e-4, atol=1e-5
    )


def test_a_constant_channel_does_no_harm() -> None:
    model = build("resnet", depth=5, width=(4,), std=[0.0, 0.2, 0.2])
    batch = images()
    batch[..., 0] = 0.5
    assert np.isfinite(model(batch)).all()


def test_the_seed_settles_the_weights_and_no_two_layers_share_them() -> None:
    one, same, other = (build("resnet", seed=seed, width=(4,)) for seed in (1, 1, 2))
    for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [w for w in one.get_weights() if w.shape == (3, 3, 4, 4)]
    assert len({k.tobytes() for k in kernels}) == len(kernels) == 10
    others = [w for w in other.get_weights() if w.shape == (3, 3, 4, 4)]
    assert {k.tobytes() for k in kernels}.isdisjoint(k.tobytes() for k in others)


def test_every_architecture_name_has_a_rule() -> None:

    assert architectures.STAGE_RULES.keys() == {
        n for n, kind in ARCHITECTURES.items() if kind.stages
    }

"""Any of our networks in PyTorch, layer by layer, with the same weights."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch import Tensor, nn

SAME = 1e-4  # by how much logits may differ, in parts of the largest


class Copy(nn.Module):
    """A network of Keras's, from images (N, C, H, W) to the same logits (N, classes).

    Its weights ask for no gradients, so that an attack's backward passes compute none for them.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._begin, self._end = id(model.inputs[0]), id(model.outputs[0])
        calls = _calls(model.outputs[0], {self._begin})
        self._ways = [(begins, end) for _, begins, end in calls]
        self.parts = nn.ModuleList(_part(layer) for layer, _, _ in calls)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Layer by layer, in the order in which Keras has them."""
        values = {self._begin: images}
        for part, (begins, end) in zip(self.parts, self._ways, strict=True):
            values[end] = part(*(values[each] for each in begins))
        return values[self._end]


def torch_copy(model: keras.Model, images: np.ndarray) -> nn.Module:
    """A network's copy, which was seen to give the same logits.

    It takes images (N, C, H, W) as the libraries make them and gives such gradients, and computes
    with the channels next to each other in between, which is the fastest way on a CPU.

    Args:
        model: of the layers that `_PARTS` lists, and of networks of such.
        images: float32 (N, H, W, C), on which the two are compared.

    Raises:
        ValueError: there is another layer, or the logits differ.
    """
    last: Any = torch.channels_last
    copy = nn.Sequential(_Function(_ChannelsLast.apply), Copy(model).to(memory_format=last)).eval()
    ours, theirs = np.asarray(model(images, training=False)), copy(tensor(images)).numpy()
    apart = np.abs(ours - theirs).max() / np.abs(ours).max()
    if apart > SAME:
        raise ValueError(f"the copy's logits differ by {apart:.1e} of the largest")
    return copy


def tensor(images: np.ndarray) -> Tensor:
    """Images (N, H, W, C) as (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def labels(classes: np.ndarray) -> Tensor:
    """Labels as the libraries want them."""
    return torch.from_numpy(classes.astype(np.int64))


def array(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) as (N, H, W, C)."""
    return np.ascontiguousarray(images.detach().numpy().transpose(0, 2, 3, 1))


def adv_lib_attacks() -> Any:
    """The module `adv_lib.attacks`, also where torchvision or visdom can't be imported.

    It needs them for a distance and for drawings that aren't used here, and torchvision may be
    there for another torch.
    """
    for name, needed in {"torchvision": {"models": None}, "visdom": {"Visdom": None}}.items():
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):
            sys.modules[name] = types.SimpleNamespace(**needed)  # type: ignore[assignment]
    from adv_lib import attacks

    return attacks


class _ChannelsLast(torch.autograd.Function):
    """Images with their channels next to each other; their gradients are laid out as they were."""

    @staticmethod
    def forward(context: Any, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> Tensor:
        return slopes[0].contiguous()


class _Function(nn.Module):
    """A layer without weights."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


class _Affine(nn.Module):
    """What each channel is multiplied by, and what is added then."""

    def __init__(self, scale: Any, offset: Any) -> None:
        super().__init__()
        self.scale, self.offset = (nn.Parameter(_map(each)) for each in (scale, offset))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


def _map(channels: Any) -> Tensor:
    return torch.from_numpy(np.array(channels, np.float32).reshape(1, -1, 1, 1))


def _normalization(layer: Any) -> nn.Module:
    config = layer.get_config()
    deviation = np.sqrt(np.array(config["variance"]))
    return _Affine(1 / deviation, -np.array(config["mean"]) / deviation)


def _batch_normalization(layer: Any) -> nn.Module:
    gamma, beta, mean, variance = (torch.from_numpy(np.array(each)) for each in layer.get_weights())
    result = nn.BatchNorm2d(len(mean), eps=layer.epsilon)
    result.weight.data, result.bias.data = gamma, beta
    result.running_mean, result.running_var = mean, variance
    return result


def _convolution(layer: Any) -> nn.Module:
    kernel, *bias = (torch.from_numpy(np.array(each)) for each in layer.get_weights())
    height, _, channels, maps = kernel.shape
    stride, side = layer.strides[0], layer.input.shape[1]
    # As many pixels as Keras adds; an odd one goes to the right and below.
    added = max((-(-side // stride) - 1) * stride + height - side, 0)
    even = added % 2 == 0
    result = nn.Conv2d(channels, maps, height, stride, added // 2 if even else 0, bias=bool(bias))
    result.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
    if bias:
        result.bias.data = bias[0]
    before, after = added // 2, added - added // 2
    return result if even else nn.Sequential(nn.ZeroPad2d((before, after, before, after)), result)


def _dense(layer: Any) -> nn.Module:
    kernel, bias = (torch.from_numpy(np.array(each)) for each in layer.get_weights())
    result = nn.Linear(*kernel.shape)
    result.weight.data, result.bias.data = kernel.T.contiguous(), bias
    activation = layer.activation.__name__
    if activation not in ("linear", "relu"):
        raise ValueError(f"{layer.name} has an activation that isn't copied: {activation}")
    return nn.Sequential(result, nn.ReLU()) if activation == "relu" else result


_PARTS: dict[type, Callable[[Any], nn.Module]] = {
    keras.layers.Normalization: _normalization,
    keras.layers.BatchNormalization: _batch_normalization,
    keras.layers.Conv2D: _convolution,
    keras.layers.Dense: _dense,
    keras.layers.ReLU: lambda layer: nn.ReLU(),
    keras.layers.Dropout: lambda layer: nn.Identity(),
    keras.layers.Add: lambda layer: _Function(lambda one, other: one + other),
    keras.layers.Concatenate: lambda layer: _Function(lambda *all: torch.cat(all, 1)),
    keras.layers.AveragePooling2D: lambda layer: nn.AvgPool2d(layer.pool_size),
    keras.layers.GlobalAveragePooling2D: lambda layer: _Function(lambda x: x.mean((2, 3))),
    keras.layers.Flatten: lambda layer: _Function(lambda x: x.permute(0, 2, 3, 1).flatten(1)),
}


def _part(layer: Any) -> nn.Module:
    if isinstance(layer, keras.Model):
        return Copy(layer)
    if type(layer) not in _PARTS:
        raise ValueError(f"{layer.name} is of a kind that isn't copied: {type(layer).__name__}")
    return _PARTS[type(layer)](layer)


def _calls(end: Any, seen: set[int]) -> list[tuple[Any, list[int], int]]:
    """The layers that lead to a tensor of Keras's, with the tensors that they take and give."""
    if id(end) in seen:
        return []
    seen.add(id(end))
    layer, number, _ = end._keras_history
    begins = layer._inbound_nodes[number].arguments.keras_tensors
    before = [call for each in begins for call in _calls(each, seen)]
    return [*before, (layer, [id(each) for each in begins], id(end))]

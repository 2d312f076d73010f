"""How somebody's model takes images and gives classes, as far as the model doesn't tell."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np

from resfool import bounded
from resfool.errors import InputError, UsageError, expanded, reading
from resfool.parameters import Parameters
from resfool.values import Numbers, PixelRange

Preprocessing = Literal["none", "caffe", "torch", "tf"]
SingleOutput = Literal["seen", "logit", "probability"]

# What `preprocess_input` of keras.applications does, by its names for it. Source: Keras's
# documentation of keras.applications.imagenet_utils.preprocess_input.
_PREPROCESSING: dict[str, dict[str, Any]] = {
    "caffe": {
        "input_range": (0.0, 255.0),
        "channel_order": "bgr",
        "mean": (103.939, 116.779, 123.68),
    },
    "torch": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "tf": {"input_range": (-1.0, 1.0)},
}


@dataclass(frozen=True)
class Allowed:
    """What is taken beside models whose outputs are a function of the image with a gradient.

    Attributes:
        without_gradient: models whose outputs depend on the image, but have no gradient by it; it
            is zero then.
        random: models whose outputs differ from pass to pass.
    """

    without_gradient: bool = False
    random: bool = False


class Interface(Parameters):
    """What a stranger's model takes, and what it gives; models trained here know their own."""

    input_range: Annotated[
        PixelRange, "pixel values that the model takes for black and white, such as 0,255."
    ] = (0.0, 1.0)
    preprocessing: Annotated[
        Preprocessing,
        "what keras.applications do to images: caffe (ResNet50, VGG), torch (DenseNet), tf "
        "(MobileNet, Inception); stands for the four that follow.",
    ] = "none"
    channel_order: Annotated[
        Literal["rgb", "bgr"], "order in which the model takes the colours of an image."
    ] = "rgb"
    mean: Annotated[
        Numbers | None,
        "what is taken from each channel, in the model's range and order of channels.",
    ] = None
    std: Annotated[Numbers | None, "what each channel is divided by then."] = None
    input: Annotated[
        str | None, "name of the input that takes the image, if the model has several."
    ] = None
    inputs: Annotated[
        str | None,
        "npz:PATH with a value for each other input by its name, the same for all images.",
    ] = None
    output: Annotated[
        str | None, "name of the output with the classes, if the model has several."
    ] = None
    single_output: Annotated[
        SingleOutput,
        "what a single output unit gives: what is seen from its activation (sigmoid or tanh), or "
        "the logit or probability of the second of two classes.",
    ] = "seen"

    def check(self) -> None:
        """Refuse what says the same thing twice, or divides by nothing."""
        super().check()
        if self.preprocessing != "none":
            for name in ("input_range", "channel_order", "mean", "std"):
                if name in self.given():
                    raise UsageError(
                        f"preprocessing={self.preprocessing} says what {name} is; give one of them"
                    )
        if self.std is not None and min(self.std) <= 0:
            raise UsageError("std must be above 0 for each channel")

    @property
    def plain(self) -> "Interface":
        """The same in numbers, without the name of a preprocessing."""
        return replace(self, preprocessing="none", **_PREPROCESSING.get(self.preprocessing, {}))

    def scale_and_offset(self, channels: int) -> tuple[Any, Any]:
        """What turns pixels from 0 to 1 into what the model takes: x * scale + offset.

        Args:
            channels: of an image.

        Returns:
            Two numbers, or two tuples with a number for each channel.

        Raises:
            InputError: `mean` or `std` is for another number of channels.
        """
        low, high = self.plain.input_range
        if self.plain.mean is None and self.plain.std is None:
            return high - low, low
        means, stds = (
            self._for_each(channels, name, default) for name, default in (("mean", 0), ("std", 1))
        )
        pairs = list(zip(means, stds, strict=True))
        scale = tuple((high - low) / std for _, std in pairs)
        return scale, tuple((low - mean) / std for mean, std in pairs)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """What the model takes for images, (N, H, W, C), as those images: float32 in [0, 1]."""
        scale, offset = self.scale_and_offset(images.shape[-1])
        found = np.clip((images.astype(np.float64) - offset) / scale, 0, 1).astype(np.float32)
        return found[..., ::-1] if self.plain.channel_order == "bgr" else found

    def _for_each(self, channels: int, name: str, default: float) -> tuple[float, ...]:
        found: tuple[float, ...] = getattr(self.plain, name) or (default,)
        if len(found) == 1:
            return found * channels
        if len(found) != channels:
            asked = name if self.preprocessing == "none" else f"preprocessing={self.preprocessing}"
            raise InputError(f"{asked} is for {len(found)} channels; the images have {channels}")
        return found

    @cached_property
    def fixed(self) -> dict[str, np.ndarray]:
        """The values of the other inputs, by name.

        Raises:
            InputError: their file can't be read.
        """
        if self.inputs is None:
            return {}
        path = expanded(self.inputs.removeprefix("npz:"))
        with reading(f"inputs={self.inputs}"):
            return {name: np.asarray(array) for name, array in bounded.npz(path).items()}

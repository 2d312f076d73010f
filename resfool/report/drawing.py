"""What several figures have in common."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes


def colour_of(number: int, count: int) -> Any:
    """One of up to 20 colours that can be told apart."""
    return f"C{number}" if count <= 10 else colormaps["tab20"](number % 20)


@dataclass(frozen=True)
class ExampleView:
    """A perturbed image with what is written under it."""

    image: np.ndarray
    caption: str
    correct: bool


def draw_view(axes: Axes, view: ExampleView) -> None:
    """Draw a perturbed image, and under it whether it is still told rightly."""
    draw_image(axes, view.image)
    mark, colour = ("\N{CHECK MARK}", "tab:green") if view.correct else ("\N{BALLOT X}", "tab:red")
    axes.set_xlabel(f"{mark} {view.caption}", color=colour, fontsize="small")


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image, (H, W, C) in [0, 1]."""
    # Without three channels, the first is shown in grey; what is out of range, at the range's end.
    shown = np.clip(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])

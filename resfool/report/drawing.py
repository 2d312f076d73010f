"""What several figures have in common."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, LogFormatterMathtext, ScalarFormatter

from resfool.wording import label, printable, shortened

_LONGEST_LINE = 120
_SIGNS_OF_AN_INCH = 11  # of a title
_LONGEST_NAME = 40
_LONGEST_CAPTION = 20  # of a name under an image


class Figure(matplotlib.figure.Figure):
    """A figure whose texts are drawn as they are, whatever a name or a user's settings hold."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw it; matplotlib calls this, where it saves a figure too."""
        # Ticks are made while it draws, by the settings.
        plain = rc_context({"text.usetex": False, "text.parse_math": False})
        with plain, warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
            for axes in self.axes:
                for axis in (axes.xaxis, axes.yaxis):
                    _count_without_markup(axis)
            for title in self.texts:
                self._wrap(title)
            for text in self.findobj(Text):
                _say_without_markup(text)
            super().draw(renderer)

    def _wrap(self, title: Text) -> None:
        if "$" not in title.get_text():
            title.set_wrap(True)
        else:  # matplotlib would measure it as mathematics
            width = int(_SIGNS_OF_AN_INCH * self.get_figwidth())
            lines = title.get_text().split("\n")
            title.set_text("\n".join(textwrap.fill(line, width) for line in lines))


def _count_without_markup(axis: Axis) -> None:
    """Have the numbers at an axis' ticks as text, where matplotlib would write mathematics."""
    for formatter, put in (
        (axis.get_major_formatter(), axis.set_major_formatter),
        (axis.get_minor_formatter(), axis.set_minor_formatter),
    ):
        if isinstance(formatter, LogFormatterMathtext):
            put(LogFormatter(labelOnlyBase=formatter.labelOnlyBase))
        elif isinstance(formatter, ScalarFormatter):
            formatter.set_useMathText(False)
            formatter.set_usetex(False)


def _say_without_markup(text: Text) -> None:
    text.set_usetex(False)
    text.set_parse_math(False)
    said = text.get_text()
    shown = "\n".join(shortened(printable(line), _LONGEST_LINE) for line in said.split("\n"))
    if shown != said:
        text.set_text(shown)


def room_for(names: Sequence[str]) -> float:
    """How much wider than usual, in inches, an axis of these names is."""
    return 0.09 * max(0, max(map(len, names), default=0) - 12)


def caption(name: str) -> str:
    """A name as there is room for it at an image."""
    return label(name, _LONGEST_CAPTION)


def legible(name: str) -> str:
    """A name as axes and legends have room for it."""
    short = label(name, _LONGEST_NAME)
    return f" {short}" if short.startswith("_") else short  # which no legend would show


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


def draw_rate(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, *, color: str, **style: Any
) -> None:
    """A rate by its name against epsilon, with a band from _low to _high."""
    epsilons = [row["epsilon"] for row in rows]
    low, high = ([row[f"{name}_{end}"] for row in rows] for end in ("low", "high"))
    axes.plot(epsilons, [row[name] for row in rows], **{"marker": ".", "color": color} | style)
    axes.fill_between(epsilons, low, high, color=color, alpha=0.15, lw=0)

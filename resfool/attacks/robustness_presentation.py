"""What attacks that follow one another leave of the accuracy, in words, tables and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from resfool.report import page
from resfool.report.drawing import Figure, colour_of, draw_rate, legible
from resfool.values import BallNorm, Row, show

if TYPE_CHECKING:
    from resfool.attacks.epsilons import Curve
    from resfool.attacks.examples import Attacked

NAMED = "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"
CAPTION = "Robust accuracy, and which attack fooled how many images first"
NOTE = (
    "Robust accuracy: share of the images that are classified rightly and that no attack fooled. "
    "What was not found may still be there, so it is an upper bound. An image that an attack "
    "fooled is not given to the next ones, and counts as fooled at every larger epsilon."
)
_MOST_TOLD = 4  # epsilons in words
_DOUBTFUL = "doubtful: gradient hidden"  # stands beside robust accuracies then


def labels(curve: "Curve") -> list[str]:
    """What stands before the lines of a model's attacks in a summary."""
    if not curve.attacks:
        return []
    firsts = [f"  fooled first by {name}" for name in curve.attacks]
    return [_titled("  robust accuracy", curve), *firsts]


def lines(rows: Sequence[Row], curve: "Curve", width: int) -> list[str]:
    """Lines of a summary: the robust accuracy, and how many images which attack fooled first.

    Args:
        rows: of the epsilons that are shown.
        curve: of the model; where its method is not of such attacks, there are no lines.
        width: of what stands before the numbers.
    """
    if not curve.attacks:
        return []
    robust, *firsts = labels(curve)
    told = [(robust, NAMED[0]), ("  its 95% interval", NAMED[1]), ("", NAMED[2])]
    told_firsts = zip(firsts, _firsts(curve), strict=True)
    return [
        f"{label:<{width}}  {'':8} " + "".join(f"{row[key]:>8.{digits}f}" for row in rows)
        for digits, part in ((3, told), (0, told_firsts))
        for label, key in part
    ]


def words(curve: "Curve") -> list[str]:
    """Sentences on the robust accuracy at some epsilons."""
    if not curve.attacks:
        return []
    rows = [row for row in curve.rows if row["epsilon"] > 0]
    picked = np.unique(np.linspace(0, len(rows) - 1, _MOST_TOLD).round().astype(int))
    kind = "an l2 norm" if curve.norm == "l2" else "an epsilon"
    exactly = quantiles(curve)
    medians = []
    if median := exactly.get("median_smallest_epsilon"):
        medians.append(f"Half of the images that were attacked are fooled within {median:.4g}.")
    if share := exactly.get("fooled_share_in_8_bits"):
        medians.append(f"Saved in 8 bits, {share:.0%} of those that are fooled still are.")
    return medians + [
        f"Within {kind} of {show(row['epsilon'])} at most {row['robust_accuracy']:.1%} stay right "
        f"(95% interval {row['robust_accuracy_low']:.1%} to {row['robust_accuracy_high']:.1%})."
        for row in (rows[i] for i in picked)
    ]


def doubt(curve: "Curve") -> Row:
    """What stands beside robust accuracies in a table of numbers: how many checks are raised."""
    if not curve.attacks or curve.verdict is None or not curve.verdict.checks:
        return {}
    return {"gradient_masking_checks_raised": float(len(curve.verdict.raised))}


def _titled(title: str, curve: "Curve") -> str:
    """A title of robust accuracies, with the warning where the gradient seems to be hidden."""
    hidden = curve.verdict is not None and curve.verdict.hidden
    return f"{title} ({_DOUBTFUL})" if hidden else title


def quantiles(curve: "Curve") -> Row:
    """Of the smallest epsilons of the images that were attacked, as far as those are finite.

    Beside them, of the images that are fooled, the share that is fooled in 8 bits too.
    """
    if curve.smallest is None:
        return {}
    wrong = curve.clean.classes[0] != curve.labels  # which are left alone, if labels are attacked
    own = curve.smallest[~wrong | np.isfinite(curve.smallest)]
    names = {10: "smallest_epsilon_10", 25: "smallest_epsilon_25", 50: "median_smallest_epsilon"}
    names |= {75: "smallest_epsilon_75", 90: "smallest_epsilon_90"}
    found: Row = {}
    for percent, name in names.items() if len(own) else ():
        # Between two of them there is none: the mean of one and infinity is no epsilon.
        level = float(np.percentile(own, percent, method="inverted_cdf"))
        found |= {name: level} if np.isfinite(level) else {}
    if curve.rounded is not None and np.isfinite(own).any():
        found["fooled_share_in_8_bits"] = float(curve.rounded.sum() / np.isfinite(own).sum())
    return found


def table(curve: "Curve") -> page.Table:
    """The robust accuracy, and how many images which attack fooled first."""
    head = "epsilon", *(label.strip() for label in labels(curve))
    cells = [
        "{robust_accuracy:.3f} ({robust_accuracy_low:.3f} to {robust_accuracy_high:.3f})",
        *(f"{{{key}:.0f}}" for key in _firsts(curve)),
    ]
    rows = [[show(r["epsilon"] or 0), *(c.format_map(r) for c in cells)] for r in curve.rows]
    return page.Table(head, rows)


def fooled_by(curve: "Curve") -> np.ndarray:
    """The name of the attack that fooled each image at its smallest epsilon, or nothing, (N,)."""
    assert curve.first is not None
    names = np.array([*curve.attacks, ""])  # the last one is that of -1
    smallest = (curve.first >= 0).argmax(axis=0)
    return names[curve.first[smallest, np.arange(curve.first.shape[1])]]


def _firsts(curve: "Curve") -> list[str]:
    return [f"fooled_first_by_{name}" for name in curve.attacks]


def figure(results: Sequence["Attacked"], method: str) -> Figure:
    """Robust accuracy against epsilon, and for each model what fooled its images first."""
    count = 1 + len(results)
    drawn = Figure(figsize=(5.75 * min(count, 4), 4.6 * -(-count // 4)), layout="constrained")
    drawn.suptitle(f"{method}, {len(results[0].curve.labels)} images, {results[0].where}")
    curves, *shares = drawn.subplots(-(-count // 4), min(count, 4), squeeze=False).flat
    for number, (a, axes) in enumerate(zip(results, shares, strict=False)):
        colour = colour_of(number, len(results))
        exact = a.curve.smallest is not None
        style = {"label": _titled(legible(a.name), a.curve), "ls": "" if exact else "-"}
        draw_rate(curves, a.curve.rows, "robust_accuracy", color=colour, **style)
        if exact:
            _draw_exactly(curves, a.curve, colour)
        _draw_shares(axes, a.curve)
        axes.set_title(legible(a.name), fontsize="medium")
    for axes in shares[len(results) :]:
        axes.set_axis_off()
    curves.set(ylim=(-0.02, 1.02), xlabel=axis(results[0].curve.norm))
    curves.set_ylabel("robust accuracy (bands: 95% interval)")
    curves.set_xlim(left=0)
    curves.grid(alpha=0.3)
    curves.legend()
    return drawn


def _draw_exactly(axes: Axes, curve: "Curve", colour: str) -> None:
    """The robust accuracy at every epsilon up to the largest, by the smallest of each image."""
    assert curve.smallest is not None
    right = curve.clean.classes[0] == curve.labels
    falls = np.sort(curve.smallest[right & (curve.smallest <= curve.epsilons[-1])])
    left = (right.sum() - np.arange(len(falls) + 1)) / len(right)
    axes.step([0, *falls], left, where="post", color=colour, lw=1)


def axis(norm: BallNorm) -> str:
    """What epsilons are, at an axis."""
    return f"{'epsilon, an l2 norm' if norm == 'l2' else 'epsilon'} (pixels from 0 to 1)"


def _draw_shares(axes: Axes, curve: "Curve") -> None:
    """For each epsilon a bar of all images: wrong as they are, fooled by which attack, or right."""
    total = len(curve.labels)
    wrong = float((curve.clean.classes[0] != curve.labels).sum())
    parts = {"wrong as it is": [wrong for _ in curve.rows]}
    parts |= {
        name: [row[key] for row in curve.rows]
        for name, key in zip(curve.attacks, _firsts(curve), strict=True)
    }
    parts["not fooled"] = [total * row["robust_accuracy"] for row in curve.rows]
    bottom = np.zeros(len(curve.rows))
    ticks = [show(row["epsilon"] or 0) for row in curve.rows]
    ends = {"wrong as it is": "0.75", "not fooled": "0.92"}
    for number, (name, heights) in enumerate(parts.items()):
        colour = ends.get(name) or colour_of(number - 1, len(curve.attacks))
        axes.bar(ticks, heights, bottom=bottom, label=name, color=colour, width=0.8)
        bottom += heights
    axes.tick_params(axis="x", rotation=45)
    axes.set(ylabel="images", xlabel=axis(curve.norm), ylim=(0, total))
    axes.legend(fontsize="small", loc="upper left")  # where few are fooled

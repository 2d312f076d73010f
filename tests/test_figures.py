"""What the figures show is what they were given."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from resfool.attacks.presentation import ExampleRow, FoolingCurve, draw_examples, draw_fooling_rates
from resfool.report.drawing import ExampleView, legible
from resfool.training.presentation import accuracy_curves, trainings
from resfool.trials.presentation import draw_tuning
from resfool.universal.prediction import Kind, Law, Prediction, Spectrum
from resfool.universal.presentation import (
    draw_confusion,
    draw_over_rank,
    draw_spectrum,
)
from resfool.universal.transfer_presentation import draw_transfer
from tests.conftest import ROOT

HISTORY: list[dict[str, float]] = [
    {"step": 100, "train_loss": 2.0, "train_accuracy": 0.3},
    {"step": 200, "train_loss": 1.0, "train_accuracy": 0.5},
    {"step": 200, "test_loss": 1.5, "test_accuracy": 0.4},
]


def test_accuracy_curves_show_every_point() -> None:
    figure = accuracy_curves(HISTORY, "resnet-10 on cifar10")
    accuracy, loss = figure.axes
    for axes, key in ((accuracy, "accuracy"), (loss, "loss")):
        lines = {str(line.get_label()).split()[0]: line for line in axes.get_lines()}
        for label, prefix in (("training", "train"), ("test", "test")):
            points = [(r["step"], r[f"{prefix}_{key}"]) for r in HISTORY if f"{prefix}_{key}" in r]
            drawn = np.asarray(lines[label].get_xydata(), dtype=float)
            np.testing.assert_allclose(drawn, np.array(points))
        assert axes.get_xlabel() == "training step" and key in axes.get_ylabel()
        assert axes.get_legend() is not None
    assert figure.get_suptitle() == "resnet-10 on cifar10"


def test_adversarial_training_is_a_line_of_its_own() -> None:
    extra = {"train_adversarial_loss": 3.0, "train_adversarial_accuracy": 0.1}
    history = [HISTORY[0] | extra, HISTORY[1] | extra, HISTORY[2]]
    for axes, value in zip(accuracy_curves(history, "x").axes, (0.1, 3.0), strict=True):
        clean, adversarial, _ = axes.get_lines()
        assert adversarial.get_label() == "training, adversarial"
        np.testing.assert_allclose(np.asarray(adversarial.get_ydata(), float), [value, value])
        assert adversarial.get_color() != clean.get_color()


def test_a_curve_without_evaluations_is_drawn_too() -> None:
    accuracy, _ = accuracy_curves(HISTORY[:2], "x").axes
    assert len(accuracy.get_lines()) == 1


def fooling_curve(name: str, smallest: Sequence[float] = ()) -> FoolingCurve:
    rates = {"fooling_rate": 0.5, "random_fooling_rate": 0.1}
    rows = [
        {"epsilon": epsilon}
        | {f"{key}{end}": value for key, value in rates.items() for end in ("", "_low", "_high")}
        for epsilon in (0.0, 0.02, 0.1)
    ]
    return FoolingCurve(name, rows, [3.0, 2.0, 1.0], [2.0, 2.0, 2.0], smallest)


def first_heights(axes: Axes) -> list[float]:
    """The first point of every line that has any, which those of the legend have not."""
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    return sorted(float(line[0]) for line in lines if line.size)


def test_fooling_rates_draws_a_curve_and_its_benchmark_for_each_model() -> None:
    # One of the four images has no smallest epsilon.
    curves = [fooling_curve("one"), fooling_curve("two", [0.05, np.inf, 0.01, 0.03])]
    figure = draw_fooling_rates(curves, "a title")
    rates, spectrum, *_ = figure.axes
    drawn = {line.get_label(): line for line in rates.lines}
    np.testing.assert_allclose(np.asarray(drawn["one"].get_ydata()), 0.5)
    np.testing.assert_allclose(np.asarray(drawn["two"].get_xdata()), [0, 0.02, 0.1])
    assert first_heights(rates) == [0.0, 0.1, 0.1, 0.5, 0.5]
    steps = next(line for line in rates.lines if line.get_linestyle() == "-.")
    xs, ys = np.asarray(steps.get_xdata()), np.asarray(steps.get_ydata())
    assert [ys[xs == e].max() for e in (0.01, 0.03, 0.05)] == [0.25, 0.5, 0.75]
    assert first_heights(spectrum) == [2.0, 2.0, 3.0, 3.0]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_examples_puts_image_perturbation_and_views_in_a_row(channels: int) -> None:
    image = np.full((4, 4, channels), 0.25)
    direction = np.ones((4, 4, channels))
    views = [ExampleView(image, "cat 90%", True), ExampleView(image, "dog 60%", False)]
    figure = draw_examples([ExampleRow("cat", direction, views)], [8 / 255], "a title")
    clean, perturbation, moved = figure.axes
    assert clean.get_xlabel().endswith("cat 90%") and clean.get_ylabel() == "cat"
    assert moved.get_xlabel().endswith("dog 60%") and moved.get_title() == "epsilon 8/255"
    np.testing.assert_allclose(np.asarray(clean.images[0].get_array()), 0.25)
    np.testing.assert_allclose(np.asarray(perturbation.images[0].get_array()), 1.0)
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_the_transfer_matrix_shows_every_rate_and_noise_below(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    rates, noise = random.random(shape), np.full(shape, 0.05)
    noise[-1, 0] = 0.02
    rows, columns = ([f"{kind} {i}" for i in range(n)] for kind, n in zip("pm", shape, strict=True))
    figure = draw_transfer(rates, noise, rows, columns, "a title")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == columns
    assert [t.get_text() for t in axes.get_yticklabels()][:-1] == rows
    drawn = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(drawn, [*rates, noise.mean(axis=0)])
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    for (i, j), rate in np.ndenumerate(rates):
        assert texts[j, i] == f"{rate:.3f}"
    assert texts[0, shape[0]] == ("0.020" if shape == (1, 1) else "0.020-0.050")
    assert len(texts) == (shape[0] + 1) * shape[1]
    figure.savefig(io.BytesIO())


def test_networks_are_shown_by_their_means_over_seeds() -> None:
    histories = [
        [{"step": 100, "train_accuracy": a}, {"step": 100, "test_accuracy": a / 2}]
        for a in (0.2, 0.6)
    ]
    figure = trainings({"net": histories, "other": histories[:1]}, "digits")
    left, right = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in left.lines] == [[0.4], [0.2]]
    assert [np.asarray(line.get_ydata()).tolist() for line in right.lines] == [[0.2], [0.1]]
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["net (2 seeds)", "other"]


def test_more_networks_than_ten_have_colours_of_their_own() -> None:
    histories = [[{"step": 100, "train_accuracy": 0.5}]]
    figure = trainings({f"net-{number}": histories for number in range(14)}, "digits")
    assert len({to_hex(line.get_color()) for line in figure.axes[0].lines}) == 14
    (legend,) = figure.legends  # beside the curves, which it would hide
    assert len(legend.get_texts()) == 14


def test_ranks_are_titled_by_the_norm_that_they_are_drawn_at() -> None:
    row: dict[str, float] = {"rank": 1, "l2_norm": 2.0, "equal_l2_norm": 3.0}
    for name in ("fooling_rate", "random_fooling_rate", "sign_noise_fooling_rate"):
        for prefix in ("", "equal_"):
            row |= {f"{prefix}{name}": 0.5, f"{prefix}{name}_std": 0.1}
            row[f"{prefix}clipped_fooling_rate"] = 0.4
    for norm, title in (("none", "as it comes"), ("l2:2", "all scaled to the norm l2:2")):
        figure = draw_over_rank([row], norm, "l2:3", ([2.0], [1.0]), "title")
        assert figure.axes[0].get_title().startswith(title)
        assert figure.axes[1].get_title() == "all scaled to the norm l2:3"
        assert len(figure.axes[2].lines) == 2
        # The best patterns stand in the legend by their names, if there are any.
        more = {f"{prefix}pattern_fooling_rate": 0.3 for prefix in ("", "equal_")}
        spectra = [2.0], [1.0], [2.1]  # and a predicted one
        beside = draw_over_rank([row | more], norm, "l2:3", spectra, "title", ("a", "b"))
        assert len(beside.axes[2].lines) == 3
        texts = [text.get_text() for text in beside.legends[0].get_texts()]
        assert texts[-1] == "best pattern: a (left), b (middle)"
        assert len(texts) == len(figure.legends[0].get_texts()) + 1
        # Only where it varies is the norm drawn, on an axis of its own.
        assert [axes.get_ylabel() for axes in figure.axes].count("l2 norm (dashed)") == (
            norm == "none"
        )


ERRORS: dict[Kind, float] = {"exponential": 0.02, "power": 0.01}


def test_a_predicted_spectrum_is_drawn_beside_the_measured_one() -> None:
    numbers = np.arange(1.0, 9)
    found = {kind: Law(kind, 0.75, 2.0, 2, 6, error) for kind, error in ERRORS.items()}
    measured, predicted = (Spectrum(s / numbers, 1 / numbers, found) for s in (2, 3))
    figure = draw_spectrum(Prediction(measured, predicted, np.ones(8)), "title")
    spectrum, ratios = figure.axes
    labels = [str(line.get_label()) for line in spectrum.lines]
    assert labels[2:] == ["predicted, without solving", "i^-0.75, predicted 0.75 (2 to 6)"]
    np.testing.assert_allclose(np.asarray(spectrum.lines[2].get_ydata()), 3 / numbers)
    whole, shape, random = (np.asarray(line.get_ydata()) for line in ratios.lines[:3])
    np.testing.assert_allclose(whole, 1.5)
    np.testing.assert_allclose(shape, 1)
    np.testing.assert_allclose(random, numbers[: len(random)] / 2)
    none = replace(measured, laws={})
    plain = draw_spectrum(Prediction(none, predicted, np.ones(8)), "title")
    assert len(plain.axes[0].lines) == 3


def test_a_searchs_best_is_that_of_the_finished_trials() -> None:
    settings = [
        {"rate": rate, "kind": kind} for rate, kind in ((1.0, "a"), (100.0, "b"), (2.0, "a"))
    ]
    figure = draw_tuning([0.3, 0.9, 0.5], [False, True, False], {"rate": 0.8}, settings, "net")
    history, bars, coordinates = figure.axes[:3]
    *_, best = history.lines
    assert np.asarray(best.get_ydata()).tolist() == [0.3, 0.3, 0.5]
    assert [bar.get_extents().width for bar in bars.patches] == [
        pytest.approx(0.8 * bars.get_window_extent().width, rel=1e-6)
    ]
    assert [label.get_text() for label in coordinates.get_xticklabels()] == ["rate", "kind"]


def test_a_confusion_of_many_classes_shows_those_that_matter() -> None:
    counts = np.zeros((1000, 1000), np.int64)
    counts[np.arange(5), 999] = 7  # five classes fall into one
    figure = draw_confusion(counts, [f"class {i}" for i in range(1000)], "title")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 40 and set(names) > {"class 0", "class 4", "class 999"}
    assert "40 of 1000 classes" in figure.get_suptitle()
    shown = np.asarray(axes.images[0].get_array())
    assert shown[names.index("class 3"), names.index("class 999")] == 1
    assert max(figure.get_size_inches()) < 30


STRANGE = ("$x$", r"\$\frac{_", "_a", "\x1b[31m\nb", "\udcff", "שלום", "大", r"$\frac{$", "x" * 300)


def test_texts_are_drawn_as_they_are_whatever_they_or_a_users_settings_hold() -> None:
    settings = matplotlib.rc_context({"text.usetex": True, "axes.formatter.use_mathtext": True})
    with settings, warnings.catch_warnings():
        warnings.simplefilter("error")  # missing glyphs, no room
        figure = draw_fooling_rates([fooling_curve(name) for name in STRANGE], " ".join(STRANGE))
        figure.savefig(io.BytesIO(), dpi=40)
        names = list(map(legible, STRANGE))
        confusion = draw_confusion(np.eye(len(names), dtype=int), names, STRANGE[0])
        confusion.savefig(io.BytesIO(), dpi=40)
    rates, spectrum, *_ = figure.axes
    legend = rates.get_legend()
    assert legend is not None
    shown = [text.get_text().strip() for text in legend.get_texts()]
    assert shown[:6] == ["$x$", r"\$\frac{_", "_a", r"\x1b[31m b", r"\xff", "שלום"]
    assert len(shown) == len(STRANGE) + 1 and max(map(len, shown[:-1])) == 40
    drawn = [text for axes in (rates, spectrum) for text in axes.get_xticklabels(which="both")]
    assert not [text for text in drawn if "$" in text.get_text()]
    assert not any(text.get_parse_math() or text.get_usetex() for text in legend.get_texts())
    assert {"1", "2", "3"} <= {text.get_text() for text in spectrum.get_xticklabels(which="both")}


def test_every_figure_of_ours_is_of_the_kind_that_draws_texts_as_they_are() -> None:
    for path in (ROOT / "resfool").rglob("*.py"):
        # What is indented is for types only.
        assert "\nfrom matplotlib.figure import" not in path.read_text(), path

"""What the figures show is what they were given."""

import numpy as np

from resfool import figures

HISTORY: list[dict[str, float]] = [
    {"step": 100, "train_loss": 2.0, "train_accuracy": 0.3},
    {"step": 200, "train_loss": 1.0, "train_accuracy": 0.5},
    {"step": 200, "test_loss": 1.5, "test_accuracy": 0.4},
]


def test_accuracy_curves_show_every_point() -> None:
    figure = figures.accuracy_curves(HISTORY, "resnet-10 on cifar10")
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
    for axes, value in zip(figures.accuracy_curves(history, "x").axes, (0.1, 3.0), strict=True):
        clean, adversarial, _ = axes.get_lines()
        assert adversarial.get_label() == "training, adversarial"
        np.testing.assert_allclose(np.asarray(adversarial.get_ydata(), float), [value, value])
        assert adversarial.get_color() != clean.get_color()


def test_a_curve_without_evaluations_is_drawn_too() -> None:
    accuracy, _ = figures.accuracy_curves(HISTORY[:2], "x").axes
    assert len(accuracy.get_lines()) == 1

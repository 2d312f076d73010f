"""The whole curve of the robust accuracy, against what is known of linear models."""

from typing import Any

import numpy as np
import pytest

from resfool.attacks import presentation
from resfool.attacks import robustness_presentation as robustness
from resfool.attacks.epsilons import Curve, over_epsilons
from resfool.attacks.examples import attacked
from resfool.attacks.options import HowToAttack
from resfool.classifiers import inference
from resfool.errors import InputError
from resfool.values import BallNorm
from tests.attacks.test_minimal import exact_norms, linear_model, random_images

EPSILONS: dict[BallNorm, tuple[float, ...]] = {"linf": (0, 0.01, 0.03), "l2": (0, 0.05, 0.2)}


def curve_of(norm: BallNorm, **options: Any) -> tuple[Curve, np.ndarray]:
    """Of a linear model under attack, and the closed form of its smallest perturbations."""
    model, images = linear_model(4), 0.3 + 0.4 * random_images(40)
    labels = inference.logits(model, images).argmax(axis=1)
    labels[:6] = (labels[:6] + 1) % 4  # those are wrong as they are
    options |= {"norm": norm, "epsilons": EPSILONS[norm]}
    asked = HowToAttack(method="smallest", **options)
    return over_epsilons(model, images, labels, asked), exact_norms(model, images, norm)


@pytest.mark.parametrize("norm", EPSILONS)
def test_the_curve_is_exact(norm: BallNorm) -> None:
    curve, exact = curve_of(norm)
    right = np.arange(40) >= 6
    assert curve.smallest is not None and np.isinf(curve.smallest[~right]).all()
    np.testing.assert_allclose(curve.smallest[right], exact[right], rtol=1e-3, atol=2e-6)
    for row in curve.rows:
        near = np.abs(exact / max(row["epsilon"], 1e-9) - 1) < 1e-3
        assert not near.any(), "the test could not tell"
        assert row["robust_accuracy"] == pytest.approx((right & (exact > row["epsilon"])).mean())
    scalars = robustness.quantiles(curve)
    ordered = [scalars[f"smallest_epsilon_{q}"] for q in (10, 25, 75, 90)]
    assert sorted(ordered) == ordered
    assert scalars["median_smallest_epsilon"] == np.sort(curve.smallest[right])[16]
    told = robustness.words(curve)
    assert "Half of the images" in told[0] and "8 bits" in told[1]
    both = [attacked(name, "here", list("abcd"), curve, 0) for name in ("one", "other")]
    lines = robustness.figure(both, "smallest").axes[0].lines
    assert max(np.size(line.get_xdata()) for line in lines) > len(curve.rows)
    assert "fooled_in_8_bits" in presentation.images_table(both[0])


def test_what_survives_8_bits_can_be_asked_for() -> None:
    curve, exact = curve_of("linf", quantise=8)
    assert curve.smallest is not None
    right = np.arange(40) >= 6
    fooled = curve.smallest[right]
    assert np.isfinite(fooled).all() and (fooled > 0.999 * exact[right]).all()
    moved = curve.move(np.flatnonzero(right), curve.epsilons[-1]) * 255
    there = fooled <= curve.epsilons[-1]
    np.testing.assert_allclose(moved[there], np.rint(moved[there]), atol=1e-3)
    assert robustness.quantiles(curve)["fooled_share_in_8_bits"] == 1


def test_a_solver_that_lacks_the_norm_is_refused() -> None:
    with pytest.raises(InputError, match="ddn knows no norm=linf; closest or deepfool do"):
        HowToAttack(method="smallest", solver="ddn")
    asked = HowToAttack.of({"method": "smallest", "solver": "ddn", "norm": "l2"})
    assert asked.ball == "l2"

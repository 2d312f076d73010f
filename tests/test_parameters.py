"""Checks of the parameters that shape a network."""

from typing import Any

import pytest

from resfool import parameters
from resfool.errors import InputError


def test_defaults_are_the_papers() -> None:
    resnet = parameters.network("resnet")
    assert (resnet.depth, resnet.widths) == (10, (64,) * 5)
    mlp = parameters.network("mlp")
    assert (mlp.depth, mlp.widths) == (5, (100,) * 5)


def test_one_width_serves_all_stages_and_five_are_a_pyramid() -> None:
    assert parameters.network("convnet", width=(8,)).widths == (8,) * 5
    assert parameters.network("convnet", width=(1, 2, 3, 4, 5)).widths == (1, 2, 3, 4, 5)
    assert parameters.network("mlp", depth=3, width=(7,)).widths == (7,) * 3


@pytest.mark.parametrize(
    ("arch", "arguments", "sentence"),
    [
        ("resnet", {"depth": 7}, "depth=7"),
        ("convnet", {"depth": 0}, "multiple of 5"),
        ("convnet", {"width": (0,)}, "width=0"),
        ("convnet", {"width": (1, 2)}, "give one or 5"),
        ("resnet", {"width": (8, 8, 4, 4, 4)}, "may only grow"),
        ("multiresnet", {"convs_per_unit": 2}, "for resnet and highway"),
        ("resnet", {"convs_per_unit": 3}, "must be 1 or 2"),
        ("resnet", {"convs_per_unit": 2, "depth": 25}, "even number"),
        ("resnet", {"batch_norm": False}, "plain convnet only"),
    ],
)
def test_what_does_not_fit_is_refused(
    arch: parameters.Arch, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        parameters.network(arch, **arguments)

"""How parameters are declared and checked, their values, and those that shape a network."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pytest
from pydantic import TypeAdapter, ValidationError

from resfool import commands, evaluator, limits, values
from resfool.attacks.options import MeasureParameters
from resfool.declarations import Known, Parameter
from resfool.errors import InputError, UsageError
from resfool.networks import shape
from resfool.parameters import Limits, Parameters, plainly
from resfool.values import (
    BatchSize,
    ByteCount,
    Counts,
    Epsilon,
    Norm,
    PositiveCount,
    SizedNorm,
    show,
)


class Batched(Parameters):
    batch_size: Annotated[BatchSize, "images per pass."] = 5


def test_defaults_are_the_papers() -> None:
    resnet = shape.network("resnet")
    assert (resnet.depth, resnet.widths) == (10, (64,) * 5)
    mlp = shape.network("mlp")
    assert (mlp.depth, mlp.widths) == (5, (100,) * 5)


def test_one_width_serves_all_stages_and_five_are_a_pyramid() -> None:
    assert shape.network("convnet", width=(8,)).widths == (8,) * 5
    assert shape.network("convnet", width=(1, 2, 3, 4, 5)).widths == (1, 2, 3, 4, 5)
    assert shape.network("mlp", depth=3, width=(7,)).widths == (7,) * 3


@pytest.mark.parametrize(
    ("arch", "arguments", "sentence"),
    [
        ("resnet", {"depth": 7}, "depth=7"),
        ("convnet", {"depth": 0}, "depth=0"),
        ("convnet", {"depth": 3}, "multiple of 5"),
        ("convnet", {"width": (0,)}, "width=0"),
        ("convnet", {"width": (1, 2)}, "give one or 5"),
        ("resnet", {"width": (8, 8, 4, 4, 4)}, "may only grow"),
        ("multiresnet", {"convs_per_unit": 2}, "for resnet and highway"),
        ("resnet", {"convs_per_unit": 3}, "must be 1 or 2"),
        ("resnet", {"convs_per_unit": 2, "depth": 25}, "even number"),
        ("resnet", {"batch_norm": False}, "plain convnet only"),
    ],
)
def test_what_does_not_fit_is_refused(arch: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        shape.network(arch, **arguments)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("0.03", 0.03),
        ("3e-2", 0.03),
        ("0", 0.0),
        ("0/255", 0.0),
        ("1", 1.0),
        ("255/255", 1.0),
    ],
)
def test_an_epsilon_is_a_number_or_a_quotient(text: str, value: float) -> None:
    assert values.parse_epsilon(text) == value
    assert TypeAdapter(Epsilon).validate_python(text) == value
    assert TypeAdapter(Epsilon).validate_python(value) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be a number"),
        ("eight", "must be a number"),
        ("8/", "must be a number"),
        ("/255", "must be a number"),
        ("8/255/2", "must be a number"),
        ("0.03,0.06", "must be a number"),
        ("1/0", "divides by zero"),
        ("0/0", "divides by zero"),
        ("-0.1", "must be from 0 to 1"),
        ("-8/255", "must be from 0 to 1"),
        ("-8/-255", "must be from 0 to 1"),
        ("8", "must be from 0 to 1"),
        ("256/255", "must be from 0 to 1"),
        ("nan", "must be from 0 to 1"),
        ("nan/255", "must be from 0 to 1"),
        ("1/nan", "must be from 0 to 1"),
        ("inf", "must be from 0 to 1"),
        ("1/inf", "must be from 0 to 1"),
    ],
)
def test_what_is_no_epsilon_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        values.parse_epsilon(text)
    with pytest.raises(ValidationError, match=sentence):
        TypeAdapter(Epsilon).validate_python(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (1 / 255, "1/255"),
        (0.2, "0.2"),  # 51/255, but short
        (0.001, "0.001"),
        (0.123456789, "0.123456789"),
        (8.0, "8.0"),
        (1234567890.0, "1234567890.0"),
        (float("nan"), "nan"),
        ((8 / 255, 0.1), "8/255,0.1"),
    ],
)
def test_numbers_are_shown_as_they_are_typed(value: object, text: str) -> None:
    assert show(value) == text


def test_every_pixel_level_is_read_back_as_it_is_shown() -> None:
    for level in range(256):
        assert values.parse_epsilon(show(level / 255)) == level / 255


@pytest.mark.parametrize(("given", "value"), [("auto", "auto"), ("12", 12), ("12.0", 12), (1, 1)])
def test_a_batch_size_is_a_count_or_auto(given: Any, value: Any) -> None:
    assert Batched.of({"batch_size": given}).batch_size == value


@pytest.mark.parametrize("given", ["0", "-3", "2.5", "Auto", "none", "", 0, 10**9])
def test_what_is_no_batch_size_is_refused(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Batched.of({"batch_size": given})
    assert str(caught.value) == (
        f"batch_size={given} isn't allowed: "
        "batch_size must be auto or a whole number from 1 to 1000000"
    )


@pytest.mark.parametrize(
    ("text", "norm"),
    [
        ("none", Norm("none")),
        ("l2:3", Norm("l2", 3.0)),
        (" l2 : 0.5 ", Norm("l2", 0.5)),
        ("linf:10/255", Norm("linf", 10 / 255)),
        ("linf:1", Norm("linf", 1.0)),
    ],
)
def test_norms_are_read_and_shown_again(text: str, norm: Norm) -> None:
    read = TypeAdapter(SizedNorm).validate_python(text)
    assert read == norm
    assert show(read) == text.replace(" ", "")
    assert TypeAdapter(SizedNorm).validate_python(norm) == norm


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3", "must be a norm and its size, such as none, l2:3 or linf:10/255"),
        ("l1:3", "must be a norm and its size"),
        ("l2", "must be a norm and its size"),
        ("l2:x", "must be a norm and its size"),
        ("l2:1/0", "must be a norm and its size"),
        ("l2:0", "must have a size above 0"),
        ("l2:-1", "must have a size above 0"),
        ("l2:inf", "must have a size above 0"),
        ("l2:nan", "must have a size above 0"),
        ("linf:8", "must be at most linf:1"),
    ],
)
def test_what_is_no_norm_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TypeAdapter(SizedNorm).validate_python(text)


def test_sizes_of_memory_are_bytes() -> None:
    sizes = {"500MB": 500_000_000, "1.5 GiB": 3 * 2**29, "2kb": 2000, "42": 42}
    assert {text: TypeAdapter(ByteCount).validate_python(text) for text in sizes} == sizes
    for text in ("0GB", "much", "-1GB", "8.GB", "1e9", "GB"):
        with pytest.raises(ValidationError, match="must be a size such as 500MB or 8GB"):
            TypeAdapter(ByteCount).validate_python(text)


def test_limits_are_in_force_during_a_call() -> None:
    def told(asked: Limits) -> tuple[int, float]:
        assert limits.days() == 365
        return limits.memory(), limits.seconds()

    assert plainly(told, Limits)(memory_limit="2GB", time_limit=5) == (2_000_000_000, 5)
    free = psutil.virtual_memory().available
    assert told(Limits())[0] == pytest.approx(0.9 * free, rel=0.5)
    assert limits.seconds() == 60


# Texts of which each parameter takes one or more.
TEXTS = (
    "3",
    "8GB",
    "20",
    "0.5",
    "8/255",
    "yes",
    "10,20",
    "0,1",
    "28,28,1",
    "l2:3",
    "a b,c",
    "none",
)


def parameters() -> list[Any]:
    """Every declared parameter of every command and of the evaluator."""
    kinds = [kind for one in commands.COMMANDS.values() for kind in one.takes]
    kinds.append(MeasureParameters)
    found = [one for kind in kinds for one in kind.declared().values()]
    different = {(one.name, repr(one.hint)): one for one in found}
    return [pytest.param(one, id=one.name) for one in different.values()]


def as_python_has(value: Any) -> list[Any]:
    """What people give in Python for a value that a parameter has."""
    if value is None or isinstance(value, Norm):
        return [value, str(value).lower()]
    if isinstance(value, str):
        return [value, Path(value), np.str_(value)]
    if isinstance(value, tuple):
        single = [value[0], *as_python_has(value[0])] if len(value) == 1 else []
        return [value, list(value), np.array(value), list(np.array(value)), *single]
    return [value, np.asarray(value), np.asarray(value)[()], str(value)]


@pytest.mark.parametrize("parameter", parameters())
def test_python_gives_values_as_the_command_line_does(parameter: Parameter) -> None:
    taken = 0
    for text in (*TEXTS, *parameter.choices):
        try:
            value = parameter.checked(text)
        except UsageError:
            continue
        taken += 1
        for given in as_python_has(value):
            assert parameter.checked(given) == value, (text, given)
    assert taken, "no text is taken, so nothing was tested"


# How parameters are declared

SHAPES = {"round": 1, "square": 2}


class Size(Parameters):
    """How large."""

    size: Annotated[PositiveCount | None, "how large."] = None


class Thing(Size):
    """A thing of some size."""

    weight: Annotated[float, "how heavy."] = 1  # not a float, and kept as it stands
    shape: Annotated[Annotated[str, Known(SHAPES)], "which one."]
    sizes: Annotated[Annotated[Counts, Known({1: 0, 2: 0})], "of all."] = (1,)

    def check(self) -> None:
        if self.shape == "square" and self.size == 3:
            raise InputError("a square of size=3 can't be")


def test_what_must_be_given_comes_first_then_a_classs_own_then_its_bases() -> None:
    assert list(Thing.declared()) == ["shape", "weight", "sizes", "size"]
    assert Thing.declared()["size"].text == "how large."


def test_values_are_checked_however_they_are_made() -> None:
    thing = Thing(shape="round", size="4")  # type: ignore[arg-type]
    assert thing.size == 4
    assert replace(thing, size="none").size is None  # type: ignore[arg-type]
    ways: list[Callable[[], Thing]] = [
        lambda: Thing(shape="rond"),
        lambda: replace(thing, shape="rond"),
        lambda: Thing.of({"shape": "rond"}),
    ]
    for make in ways:
        with pytest.raises(UsageError, match=r"unknown shape 'rond'; did you mean 'round'\?"):
            make()
    with pytest.raises(InputError, match="a square of size=3"):
        replace(thing, shape="square", size=3)
    with pytest.raises(AttributeError):
        thing.size = 5  # type: ignore[misc]


def test_a_default_stays_as_it_stands_and_what_is_like_it_is_checked() -> None:
    assert type(Thing(shape="round").weight) is int
    assert type(Thing(shape="round", weight="1").weight) is float  # type: ignore[arg-type]
    assert Thing(shape="round", weight=1.0).given() == {"shape": "round"}


def test_what_is_registered_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "oval", 3)
    assert Thing(shape="oval").shape == "oval"
    assert Thing.declared()["shape"].choices == ("round", "square", "oval")


def test_two_classes_share_what_both_declare() -> None:
    assert Thing(shape="round", size=2).shared(Size) == {"size": 2}


def test_a_function_of_parameters_is_called_with_keyword_arguments() -> None:
    def weigh(asked: Thing, factor: float = 1.0) -> float:
        """Weigh it."""
        return asked.weight * factor

    plain = plainly(weigh, Thing)
    assert plain(shape="round", weight=3) == 3 and plain(2.0, shape="round", weight=3) == 6
    with pytest.raises(UsageError, match=r"unknown parameter 'wait'; did you mean 'weight'\?"):
        plain(shape="round", wait=3)
    names = inspect.signature(plain).parameters
    assert list(names) == ["factor", "shape", "weight", "sizes", "size"]
    assert names["shape"].default is inspect.Parameter.empty and names["size"].default is None
    assert plain.__doc__ is not None and "weight: how heavy." in plain.__doc__


# Both name all experiments, so that all their parameters are known.
assert commands and evaluator


def test_every_public_parameter_is_declared_once_or_with_another_type_or_default() -> None:
    declared: dict[str, list[Any]] = {}
    for kind in _all_below(Parameters):
        if kind.__module__.startswith("resfool."):
            for name in inspect.get_annotations(kind):
                one = kind.declared()[name]
                declared.setdefault(name, []).append((repr(one.hint), one.default))
    for name, ways in declared.items():
        assert len(set(map(str, ways))) == len(ways), f"{name} is declared twice in the same way"


def _all_below(kind: type[Parameters]) -> set[type[Parameters]]:
    below = kind.__subclasses__()
    return {*below, *(each for sub in below for each in _all_below(sub))}

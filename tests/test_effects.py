"""What was given and has no effect is refused by one rule, wherever it is declared."""

import warnings
from typing import Annotated, Any

import pytest

from resfool import command_line
from resfool.attacks.options import MeasureParameters
from resfool.commands import COMMANDS
from resfool.declarations import GIVEN, Known, Needs
from resfool.errors import InputError, UselessWarning
from resfool.parameters import Parameters
from resfool.training.recipe import TrainParameters
from resfool.trials import tune
from resfool.values import show


class Way:
    """An entry of a registry."""

    def __init__(self, *takes: str) -> None:
        self.takes = takes


WAYS = {"walk": Way("shoes"), "ride": Way("horse"), "lead": Way("horse", "shoes")}


class Journey(Parameters):
    """Of somebody."""

    ways: Annotated[Annotated[tuple[str, ...], Known(WAYS)], "which."] = ("walk",)
    shoes: Annotated[int, "how many."] = 2
    horse: Annotated[str | None, "whose."] = None
    saddle: Annotated[bool, Needs(horse=GIVEN), "whether."] = False
    map: Annotated[str | None, "of what."] = None
    scale: Annotated[int, Needs(map=("town", "land")), Needs(shoes=(2,), horse=GIVEN), "of it."] = 1
    wind: Annotated[int, Needs(sails=GIVEN), "which others may need sails for."] = 0


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({}, ""),
        ({"ways": ("ride",), "shoes": 2}, ""),  # at its default, it says nothing
        ({"ways": ("ride",), "shoes": 4}, "ways=ride; it needs ways=walk or lead"),
        ({"horse": "mine"}, "ways=walk; it needs ways=ride or lead"),
        ({"ways": ("walk", "lead"), "horse": "mine", "shoes": 6, "saddle": True}, ""),
        ({"saddle": True}, "horse=none; it needs horse"),
        ({"scale": 5, "map": "land"}, ""),
        ({"scale": 5, "ways": ("lead",), "horse": "mine"}, ""),
        (
            {"scale": 5, "map": "sea"},
            "map=sea and horse=none; it needs map=town or land or shoes=2 and horse",
        ),
        ({"wind": 3}, ""),  # no such others are here
    ],
)
def test_a_parameter_needs_what_it_says_or_what_a_registry_says(
    given: dict[str, Any], needs: str
) -> None:
    if not needs:
        assert Journey.of(given) == Journey(**given)
        return
    with pytest.raises(InputError) as caught:
        Journey.of(given)
    assert str(caught.value).endswith(f" has no effect with {needs}")
    assert Journey(**given).given() == given, "what the program makes itself is its own business"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train arch=resnet gate_bias=-2", "gate_bias=-2.0 has no effect with arch=resnet"),
        ("sweep arch=resnet,highway gate_bias=-2", ""),
        ("train arch=resnet data_seed=3", "data_seed=3 has no effect with dataset=cifar10"),
        ("tune arch=resnet data_seed=3", ""),  # it sets images aside
        ("train arch=mlp dataset=digits data_dir=here", "needs dataset=cifar10, cifar100, mnist"),
        ("train arch=mlp dataset=folder:x crop=none", "image_size=none; it needs image_size"),
        ("train arch=mlp image_size=8,8", "it needs dataset=folder:PATH or parquet:PATH"),
        ("sweep arch=mlp ray_address=auto", "backend=none; it needs backend=ray"),
        ("sweep arch=mlp backend=serial workers=3", "it needs backend=none, joblib or ray"),
        (
            "train arch=mlp adversarial=fgsm adversarial_weight=0 adversarial_epsilon=0.1",
            "adversarial_weight=0.0; it needs adversarial=fgsm and adversarial_weight",
        ),
        ("sweep arch=mlp gpus_per_trial=1", "gpus_per_trial=1.0 has no effect with backend=none"),
        ("attack model=m pgd_steps=3", "method=fgsm; it needs method=pgd"),
        ("attack model=m method=pgd tolerance=1", "it needs method=smallest_epsilon"),
        ("attack model=m norm=l2:3", "norm=l2:3 has no effect with perturbation=none"),
        (
            "attack model=m perturbation=p clip=false",
            "it needs perturbation=none",
        ),
        ("attack model=m perturbation=p norm=l2:3", ""),
        ("attack model=m norm=l2", "norm=l2 has no effect with method=fgsm; it needs method="),
        ("attack model=m method=apgd norm=l2", ""),
        ("attack model=m method=standard effort=plus components=apgd,fab norm=linf", ""),
        ("attack model=m method=apgd effort=quick", "method=apgd; it needs method=standard"),
        ("attack model=m method=standard queries=9", "method=standard; it needs method=square"),
        ("attack model=m modules=mine", "trust=false; it needs trust=true"),
        ("universal model=m epsilon=0.1", "algorithm=2; it needs algorithm=3"),
        ("universal model=m algorithm=1 norm=l2:3 workers=3", "it needs algorithm=2, 3 or 4"),
        ("universal model=m gpus_per_worker=1", "backend=none; it needs matrix=none and backend="),
        ("universal model=m algorithm=3 matrix=x label_source=prediction", "needs matrix=none"),
        ("universal model=m algorithm=1 norm=l2:3 draws=3", "it needs algorithm=2, 3 or 4"),
        ("universal model=m algorithm=random norm=l2:3 clip=false", "it needs algorithm="),
        (
            "universal model=m algorithm=gradient norm=l2:3 loss=cosine target=1",
            "it needs loss=margin, cross_entropy or logit",
        ),
        ("mnist coefficients=first draws=9", "it needs coefficients=gaussian or singular"),
        ("mnist coefficients=first", ""),
        ("reproduce target=all report_only=true dry_run=true", "it needs report_only=false"),
        ("reproduce target=figure7 precision=bfloat16", "target=figure7; it needs other targets"),
        ("reproduce target=all scale=quick data_dir=here", "scale=quick; it needs scale=paper"),
    ],
)
def test_commands_refuse_what_has_no_effect(line: str, sentence: str) -> None:
    name, *words = line.split()
    argv = [f"--{word}" for word in words]
    if not sentence:
        command_line.parse(*COMMANDS[name].takes, argv=argv)
        return
    with pytest.raises(InputError) as caught:
        command_line.parse(*COMMANDS[name].takes, argv=argv)
    assert " has no effect with " in str(caught.value) and sentence in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_may_be_given(name: str) -> None:
    required = {"arch": "mlp", "model": "m"}
    required |= {"target": "all"} if name == "reproduce" else {}
    required |= {"norm": "l2:3", "algorithm": "random"} if name == "universal" else {}
    parameters = COMMANDS[name].parameters.items()
    given = {n: required.get(n, show(one.default)) for n, one in parameters}
    command_line.parse(*COMMANDS[name].takes, argv=[f"--{n}={v}" for n, v in given.items()])


def test_who_is_named_as_needed_is_there() -> None:
    kinds = {kind for one in COMMANDS.values() for kind in one.takes} | {MeasureParameters}
    known = {name for kind in kinds for name in kind.declared()}
    for kind in kinds:
        for one in kind.declared().values():
            assert all(needs.among(known) for needs in one.needs), one.name


def test_drops_of_the_rate_that_come_too_late_are_said() -> None:
    given: dict[str, Any] = {"arch": "mlp", "steps": 10, "lr_drop": (5, 10, 20)}
    with pytest.warns(UselessWarning, match=r"^lr_drop=10,20 has no effect with steps=10$"):
        TrainParameters.of(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainParameters.of(given | {"lr_drop": (5, 9)})


@pytest.mark.parametrize("given", [{}, {"per_class": (5, 5)}, {"dataset": "digits"}])
def test_the_command_that_a_search_ends_with_is_allowed(given: dict[str, Any]) -> None:
    searched = TrainParameters(arch="mlp", data_seed=3, validation_share=0.1, **given)
    words = [word for word in tune._command(searched).split() if "=" in word]
    (trained, _) = command_line.parse(*COMMANDS["train"].takes, argv=[f"--{w}" for w in words])
    assert ("data_seed" in trained.given()) == bool(given)

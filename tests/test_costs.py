"""What nobody can wait for or no memory holds is refused, and nothing that anybody does."""

from typing import Any

import pytest

from resfool import command_line
from resfool.commands import COMMANDS
from resfool.costs import Cost, Data
from resfool.errors import InputError, UsageError
from resfool.networks import architectures, shape
from resfool.parameters import within
from resfool.values import in_bytes


def asked(line: str) -> None:
    """Refuse a command as it is refused before any work."""
    name, *words = line.split()
    argv = [f"--{word}" for word in [*words, "memory_limit=16GB"]]
    with within(*command_line.parse(*COMMANDS[name].takes, argv=argv)):
        pass


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train arch=resnet depth=1000000", "depth=1000000 is deeper than Keras can build"),
        ("train arch=mlp depth=1000000", "mlp takes 440 at most"),
        ("train arch=mlp width=1000000", "width=1000000 takes at least 48 TB of memory"),
        ("train arch=resnet batch_size=1000000000", "batch_size=1000000000 takes at least"),
        ("train arch=mlp steps=1000000000000", "steps=1000000000000 takes at least 1,157 days"),
        ("train arch=resnet dataset=folder:x image_size=90000,90000", "image_size=90000,90000 ta"),
        ("sweep arch=resnet seeds=1000000000", "seeds=1000000000 takes at least"),
        ("sweep arch=mlp seeds=9000 workers=100000", "and memory_limit allows 16 GB"),
        ("tune arch=resnet trials=1000000000", "trials=1000000000 takes at least 1 TB of memory"),
        ("attack model=m samples=1000000000000", "samples=1000000000000 takes at least 3,472 days"),
        (
            "attack model=m method=pgd pgd_steps=999999 samples=9999999",
            "samples=9999999 takes at least 32",
        ),
        ("universal model=m draws=1000000000", "draws=1000000000 takes at least 256 GB of memory"),
        ("mnist steps=1000000000000", "ask for less, or raise work_limit"),
        ("reproduce target=all seeds=1000000000", "ask for less, or raise memory_limit"),
        ("train arch=mlp steps=90000 work_limit=1e-9", "steps=90000 takes at least 0.000105 days"),
    ],
)
def test_what_no_machine_does_is_refused_and_the_parameter_named(line: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        asked(line)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "train arch=multiresnet depth=100 width=128 batch_size=128 steps=1000000",
        "sweep arch=convnet,resnet,highway depth=10,25,50 seeds=100 workers=900 backend=ray"
        " ray_address=auto",
        "tune arch=highway trials=10000",
        "attack model=m method=pgd pgd_steps=1000 samples=50000",
        "universal model=m samples=50000 draws=1000",
        "reproduce target=all seeds=100",
    ],
)
def test_what_somebody_does_on_a_cluster_is_not(line: str) -> None:
    asked(line)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("attack model=m pgd_steps=1000000000 method=pgd", "less than or equal to 1000000"),
        ("sweep arch=mlp workers=1000000", "less than or equal to 100000"),
        ("sweep arch=mlp cpus_per_trial=1000000", "less than or equal to 4096"),
        (f"attack model=m epsilons={','.join(['0.5'] * 300_000)}", "has 300,000 entries, and may"),
        (f"train arch=mlp width={','.join(['1'] * 300_000)}", "have 10,000 at most"),
        (f"train arch=mlp depth={'9' * 5000}", "depth must be at most 10^15"),
        ("train arch=mlp steps=1e400", "steps must be at most 10^15"),
        ("train arch=mlp steps=-1e400", "greater than or equal to 1"),
        ("train arch=mlp steps=1_000", "steps must be a whole number, such as 10"),
        ("train arch=mlp steps=٣", "steps must be a whole number, such as 10"),
        ("train arch=mlp steps=0x10", "steps must be a whole number, such as 10"),
        ("train arch=mlp steps=nan", "steps must be a whole number, such as 10"),
        ("train arch=mlp learning_rate=1_0", "learning_rate must be a number, such as 0.5"),
        ("train arch=mlp learning_rate=1e400", "learning_rate must be a finite number"),
        ("attack model=m epsilons=1_0/255", "must be a number such as 0.03 or 8/255"),
    ],
)
def test_numbers_beyond_all_use_are_no_numbers(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(line)
    assert sentence in str(caught.value) and len(str(caught.value)) < 300


def test_a_whole_number_may_have_an_exponent() -> None:
    (train, _) = command_line.parse(*COMMANDS["train"].takes, argv=["--arch=mlp", "--steps=1e4"])
    assert train.settings()["steps"] == 10_000


@pytest.mark.parametrize("arch", ["highway", "multiresnet", "mlp"])
def test_a_networks_size_is_that_of_its_keras_model(arch: str) -> None:
    network = shape.network(arch, depth=10 if arch == "multiresnet" else 5, width=(4,))
    blueprint: dict[str, Any] = {"classes": 2, "mean": [0.5], "std": [1.0]}
    model = architectures.build(network, image_shape=(32, 32, 1), **blueprint)
    size = shape.size(network)
    hidden = [w for w in model.weights if "kernel" in w.path and w.shape[-1] == 4]
    first = hidden[0]  # of the stem, or of the first layer, which depends on the images
    assert size.weights == sum(w.numpy().size for w in hidden) - first.numpy().size
    convolved = 2 * size.multiplications / architectures.count_flops(model)
    assert 0.2 < convolved < 1 if arch != "mlp" else convolved < 1


def test_costs_add_up() -> None:
    assert Cost(1, 5) + Cost(2, 3) == Cost(3, 5)
    assert Cost(86_400).days == 1
    assert Data(images=3, pixels=10).memory == 120
    sizes = {2e9: "2 GB", 1.234e6: "1.23 MB", 512: "512 bytes", 1.5e16: "15,000 TB"}
    assert {size: in_bytes(size) for size in sizes} == sizes

"""What a reproduction makes, and what it finds again."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from resfool import command_line, experiments, paper
from resfool.datasets import Dataset
from resfool.errors import InputError, NonFiniteLossError
from resfool.experiments import estimating, identity, reproducing
from resfool.experiments.reproducing import SCALES, Job, plan
from resfool.monitor import FinishedRun, Monitor
from resfool.parameters import Arch, network


def jobs_of(*targets: str, seeds: int = 1) -> list[Job]:
    return plan(targets, SCALES["paper"], seeds, "float32", None)


def test_a_table_is_its_rows_with_the_papers_settings() -> None:
    jobs = jobs_of("table1")
    assert {(j.settings["arch"], j.settings["depth"]) for j in jobs} == set(paper.TABLE_1)
    for job in jobs:
        s = job.settings
        assert (s["steps"], s["batch_size"], s["learning_rate"]) == (10_000, 64, 0.001)
        assert (s["dataset"], s["augment"], s["width"], s["lr_drop"]) == (
            *("cifar10", "none", None, None),
        )
    long = jobs_of("table2")
    assert {(j.settings["arch"], j.settings["depth"]) for j in long} == set(paper.TABLE_2)
    assert {(j.settings["steps"], j.settings["lr_drop"]) for j in long} == {(50_000, (32_000,))}


def test_each_run_is_made_once_and_models_come_before_what_is_done_with_them() -> None:
    everything = (*paper.RESULTS, reproducing.READINGS)
    jobs = jobs_of(*everything)
    keys = [(j.label, identity.key(j.settings, "")) for j in jobs]
    assert len(set(keys)) == len(jobs) == 25
    # 8 + 4 of the tables, 3 + 5 with 10 layers, the 5-layer network; 3 attacks, 1 perturbation.
    assert sum(j.experiment == "train" for j in jobs) == 21
    for place, job in enumerate(jobs):
        assert job.of is None or job.of in jobs[:place]
    assert {j.label for name in everything for j in jobs_of(name)} == {j.label for j in jobs}
    assert len({(j.label, j.seed) for j in jobs_of(*everything, seeds=3)}) == 75


@pytest.mark.parametrize(
    ("figure", "networks"),
    [
        ("figure3", {"resnet", "convnet"}),
        ("figure4", {"highway", "resnet"}),
        ("figure5", {"multiresnet", "resnet"}),
    ],
)
def test_a_figure_is_the_rows_that_it_overlays(figure: str, networks: set[str]) -> None:
    labels = {j.label for j in jobs_of(figure)}
    assert labels == {("short", arch, depth) for arch in networks for depth in (25, 50)}
    assert labels < {j.label for j in jobs_of("table1")}


@pytest.mark.parametrize("arch", ["convnet", "resnet", "highway", "multiresnet"])
def test_estimated_work_grows_as_the_multiplications_do(arch: Arch) -> None:
    from resfool import architectures

    found = []
    for depth in (5, 15, 25):
        shape = network(arch, depth=depth, width=(8,))
        options: Any = {"image_shape": (32, 32, 3), "classes": 10, "mean": [0.5], "std": [0.2]}
        flops = architectures.count_flops(architectures.build(shape, **options))
        found.append(estimating.multiplications(shape) / flops)
    # Stem and head, which aren't counted, weigh less the deeper the network is.
    assert found[1] == pytest.approx(found[2], rel=0.08)
    assert found[0] < found[1] < found[2]


def test_a_sweeps_trainings_are_those_of_the_table() -> None:
    rest = command_line.without(experiments.train, *experiments.SWEPT)
    words = ["--arch=resnet", "--depth=25,50", "--seeds=2"]
    swept, training = command_line.parse(experiments.sweep, rest, argv=words)
    row = ("short", "resnet", 25)
    (job,) = [j for j in jobs_of("table1", seeds=2) if j.label == row and j.seed == 1]
    own = training | {"arch": swept["arch"][0], "depth": swept["depth"][0], "seed": 1}
    assert identity.key(own, "digest") == identity.key(job.settings, "digest")


class FakeMaker:
    """Keeps runs in a dict; trains nothing."""

    def __init__(self) -> None:
        self.there: dict[frozenset[tuple[str, str]], FinishedRun] = {}
        self.made: list[str] = []
        self.interrupt_after: int | None = None
        self.fails: dict[str, Exception] = {}
        self.added: dict[str, dict[str, float]] = {}

    def find(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        return self.there.get(frozenset(facts.items()))

    def find_interrupted(self, facts: Mapping[str, str]) -> str | None:
        return None

    def make(
        self, experiment: Any, settings: dict[str, Any], data: Dataset, resume: str | None
    ) -> FinishedRun:
        if len(self.made) == self.interrupt_after:
            raise KeyboardInterrupt
        what = f"{experiment} {settings.get('arch') or settings['model']}"
        if what in self.fails:
            raise self.fails[what]
        self.made.append(what)
        metrics = {"final_test_accuracy": 0.5, "papers_way_test_accuracy": 0.5}
        run = FinishedRun(f"run{len(self.made)}", metrics=metrics)
        facts = identity.facts(experiment, settings, data.digest)
        self.there[frozenset(facts.items())] = run
        return run

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> None:
        self.added[run.run_id] = dict(metrics)


class Begun(Monitor):
    begun = 0

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Any]) -> None:
        self.begun += 1


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_step_seconds", lambda settings, data: (1.0, 0.1))


def run(maker: FakeMaker, said: list[str] | None = None, **options: Any) -> Any:
    said = [] if said is None else said
    given = {"target": ("figure11", "figure7"), "scale": "quick"} | options
    return experiments.reproduce(Begun(), maker, said.append, **given)


def test_what_is_there_is_not_made_again() -> None:
    maker, said = FakeMaker(), list[str]()
    first = run(maker)
    assert len(maker.made) == 8 and not first.missing and not first.failed
    again = run(maker, said)
    assert len(maker.made) == 8
    assert again.runs == first.runs
    assert said[-1] == "nothing to make; 8 of 8 runs are there"
    # Other settings are another run.
    assert run(maker, precision="bfloat16").runs != first.runs
    assert len(maker.made) == 8 + 6


def test_an_interrupted_reproduction_goes_on_where_it_was() -> None:
    maker = FakeMaker()
    maker.interrupt_after = 3
    with pytest.raises(KeyboardInterrupt):
        run(maker)
    before = list(maker.made)
    maker.interrupt_after = None
    run(maker)
    assert len(before) == 3 and maker.made[:3] == before
    assert len(maker.made) == len(set(maker.made)) == 8


def test_a_dry_run_only_says_what_it_would_do() -> None:
    maker, said, monitor = FakeMaker(), list[str](), Begun()
    options: Any = {"target": ("table1",), "scale": "quick", "dry_run": True}
    assert experiments.reproduce(monitor, maker, said.append, **options) is None
    assert not maker.made and not monitor.begun
    # Each training is 1 s to compile, 0.1 s a step and more; the deeper ones multiply that.
    assert sum(line.startswith("to make") for line in said) == 8
    assert said[-1].startswith("8 runs to make, 0 are there; about ")


def test_a_failure_leaves_the_others() -> None:
    maker, said = FakeMaker(), list[str]()
    maker.fails = {"train resnet": NonFiniteLossError("the training loss became nan at step 3")}
    found = run(maker, said)
    assert len(maker.made) == 6
    assert set(found.failed) == {
        "resnet-10, 200 steps, seed 0",
        "attack on resnet-10, 200 steps, seed 0",
    }
    assert any("failed: the training loss became nan" in line for line in said)


def test_a_report_alone_makes_nothing() -> None:
    maker = FakeMaker()
    run(maker, target=("figure7",))
    found = run(maker, report_only=True)
    assert len(maker.made) == 2 == len(found.runs)
    # What stands on a model that isn't there isn't either.
    assert len(found.missing) == 6


@pytest.mark.parametrize("name", ["tabel1", "figure12", "figure2", ""])
def test_unknown_targets_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown target"):
        run(FakeMaker(), target=(name,))

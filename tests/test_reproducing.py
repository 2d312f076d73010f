"""What a reproduction makes, and what it finds again."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfool import devices, experiments, identity, paper
from resfool.archive import Archive, FinishedRun, InterruptedRun, ModelSource
from resfool.datasets.sets import Dataset, load_data
from resfool.errors import NonFiniteLossError, UsageError
from resfool.monitor import Monitor
from resfool.networks.shape import network, size
from resfool.parallel import Failure
from resfool.reproduction import estimates, reproduce
from resfool.reproduction.plan import (
    EXPERIMENTS,
    TARGETS,
    Asked,
    Job,
    ReproduceParameters,
    plan,
)
from resfool.training.recipe import TrainParameters
from resfool.trials.options import SweepParameters
from resfool.trials.recorder import Trained, Trial
from resfool.values import show


def jobs_of(*targets: str, **more: Any) -> list[Job]:
    return plan(ReproduceParameters(target=targets, **more))


def test_a_table_is_its_rows_with_the_papers_settings() -> None:
    jobs = jobs_of("table1")
    assert {(j.training.arch, j.training.depth) for j in jobs} == set(paper.TABLE_1)
    for job in jobs:
        t = job.training
        assert (t.steps, t.batch_size, t.rules.learning_rate) == (10_000, 64, 0.001)
        assert (t.dataset, t.recipe, t.width, t.lr_drop) == ("cifar10", "paper", None, None)
    long = [job.training for job in jobs_of("table2")]
    assert {(t.arch, t.depth) for t in long} == set(paper.TABLE_2)
    assert {(t.steps, t.lr_drop) for t in long} == {(50_000, (32_000,))}


def test_each_run_is_made_once_and_models_come_before_what_is_done_with_them() -> None:
    jobs = jobs_of("all")
    keys = [(j.label, identity.key(j.experiment, j.asked.settled(), "")) for j in jobs]
    assert len(set(keys)) == len(jobs) == 33
    # 8 + 4 of the tables, 4 with 10 layers, 12 readings, the 5-layer network; 3 attacks, and 1
    # universal perturbation.
    assert sum(j.experiment == "train" for j in jobs) == 29
    for place, job in enumerate(jobs):
        assert job.of is None or job.of in jobs[:place]
    singly = {j.label for name in TARGETS for j in jobs_of(name)}
    assert singly == {j.label for j in jobs_of(*TARGETS)} == {j.label for j in jobs}
    assert len({(j.label, j.seed) for j in jobs_of("all", seeds=3)}) == 99


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
def test_estimated_work_grows_as_the_multiplications_do(arch: str) -> None:
    from resfool.networks import architectures

    found = []
    for depth in (5, 15, 25):
        shape = network(arch, depth=depth, width=(8,))
        options: Any = {"image_shape": (32, 32, 3), "classes": 10, "mean": [0.5], "std": [0.2]}
        flops = architectures.count_flops(architectures.build(shape, **options))
        found.append(size(shape).multiplications / flops)
    # Stem and head, which aren't counted, weigh less the deeper the network is.
    assert found[1] == pytest.approx(found[2], rel=0.08)
    assert found[0] < found[1] < found[2]


def test_a_training_is_estimated_from_its_steps_and_evaluations() -> None:
    (job,) = [j for j in jobs_of("table2", scale="quick") if j.training.arch == "convnet"]
    data = load_data(job.training)
    # 1 s compiles, 0.1 s is a step; one image's forward pass is a third of its part of a step.
    (seconds,) = estimates.seconds_of([job], {job: data})
    forward = 0.1 / job.training.batch_size / 3
    evaluations = 13 * len(data.test) * forward  # one each 50 of 600 steps, and the last
    assert seconds == pytest.approx(estimates._START + 1.0 + 600 * 0.1 + evaluations)


def test_a_sweeps_trainings_are_those_of_the_table() -> None:
    archs = "convnet,resnet,highway,multiresnet"
    swept = SweepParameters.of({"arch": archs, "depth": "25,50", "downsample": "pool"})
    rows = {(j.training.arch, j.training.depth): j for j in jobs_of("table1")}
    for (arch, depth), job in rows.items():
        own = swept.training(arch, depth, job.seed).settled()
        assert identity.key("train", own, "digest") == identity.key(
            "train", job.asked.settled(), "digest"
        )
    assert len(rows) == 8


class FakeMaker(Archive):
    """Makes runs that it keeps in a dict; trains nothing."""

    def __init__(self) -> None:
        self.there: dict[frozenset[tuple[str, str]], FinishedRun] = {}
        self.made: list[str] = []
        self.interrupt_after: int | None = None
        self.fails: dict[str, Exception] = {}
        self.interrupted: dict[frozenset[tuple[str, str]], InterruptedRun] = {}
        self.resumed: list[str] = []
        self.metrics = {"final_test_accuracy": 0.5, "papers_way_test_accuracy": 0.5}
        self.added: dict[str, dict[str, float]] = {}

    def find_finished(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        return self.there.get(frozenset(facts.items()))

    def find_interrupted(self, facts: Mapping[str, str]) -> InterruptedRun | None:
        return self.interrupted.get(frozenset(facts.items()))

    def read(self, run_id: str) -> FinishedRun:
        return next(run for run in self.there.values() if run.run_id == run_id)

    def make(self, asked: Asked, data: Dataset, resume: str | None) -> str:
        if len(self.made) == self.interrupt_after:
            raise KeyboardInterrupt
        (experiment,) = [n for n, e in EXPERIMENTS.items() if isinstance(asked, e.parameters)]
        about = asked.arch if isinstance(asked, TrainParameters) else show(asked.model)
        what = f"{experiment} {about}"
        if what in self.fails:
            raise self.fails[what]
        self.made.append(what)
        self.resumed += [resume] if resume else []
        run = FinishedRun(f"run{len(self.made)}", metrics=self.metrics)
        facts = identity.facts(experiment, asked.settled(), data.digest)
        self.there[frozenset(facts.items())] = run
        return run.run_id

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> FinishedRun:
        assert "papers_way_test_accuracy" not in run.metrics, "it has been judged"
        self.added[run.run_id] = dict(metrics)
        return super().add_metrics(run, metrics)


class Listener(Monitor):
    def __init__(self) -> None:
        self.begun = 0
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Any]) -> None:
        self.begun += 1


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_step_seconds", lambda asked, data: (1.0, 0.1))


def run(
    maker: FakeMaker, monitor: Monitor | None = None, workers: Any = None, **options: Any
) -> Any:
    given = {"target": ("figure11", "figure7"), "scale": "quick"} | options
    return experiments.reproduce(maker.make, monitor or Listener(), maker, workers, **given)


def test_what_is_there_is_not_made_again() -> None:
    maker, listener = FakeMaker(), Listener()
    first = run(maker)
    assert len(maker.made) == 8 and not first.missing and not first.failed
    again = run(maker, listener)
    assert len(maker.made) == 8
    assert again.runs == first.runs
    assert listener.said[-1] == "nothing to make; 8 of 8 runs are there"
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
    maker, listener = FakeMaker(), Listener()
    assert run(maker, listener, target=("table1",), dry_run=True) is None
    assert not maker.made and not listener.begun
    # Each training is 1 s to compile, 0.1 s a step and more; the deeper ones multiply that.
    assert sum(line.startswith("to make") for line in listener.said) == 8
    assert listener.said[-1].startswith("8 runs to make, 0 are there; about ")


def test_the_plan_warns_of_a_slow_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bfloat16_slowdown", lambda: 10.0)
    for precision, warnings in (("bfloat16", 1), ("float32", 0)):
        listener = Listener()
        run(FakeMaker(), listener, precision=precision, dry_run=True)
        said = [line for line in listener.said if "precision=float32 will be faster" in line]
        assert len(said) == warnings


def minutes(line: str) -> float:
    """What a line of the plan expects, in minutes."""
    number, unit = line.partition(": about ")[2].partition(",")[0].split()
    return float(number) / {"s": 60, "min": 1, "h": 1 / 60}[unit]


def test_a_training_that_goes_on_takes_what_is_left_of_it() -> None:
    maker, before, after = FakeMaker(), Listener(), Listener()
    run(maker, before, target=("table2",), dry_run=True)
    whole = next(line for line in before.said if line.startswith("to make resnet-25"))
    (job,) = [j for j in jobs_of("table2", scale="quick") if j.training.arch == "resnet"]
    facts = identity.facts("train", job.asked.settled(), load_data(job.training).digest)
    maker.interrupted[frozenset(facts.items())] = InterruptedRun("cut", step=450)  # of 600
    run(maker, after, target=("table2",))
    rest = next(line for line in after.said if line.startswith("to make resnet-25"))
    assert rest.endswith("goes on with run cut from step 450")
    assert minutes(rest) == pytest.approx(minutes(whole) / 4, rel=0.3)  # both are rounded
    assert maker.resumed == ["cut"]


def test_what_was_made_corrects_the_estimate_once_it_tells() -> None:
    left = reproduce.time_left
    assert left([10.0, 1000.0, 500.0], []) == 1510
    assert left([10.0, 1000.0, 500.0], [100.0]) == 1500  # too short to tell
    assert left([10.0, 990.0, 500.0], [20.0, 1980.0]) == 1000  # all takes twice as long
    assert left([10.0, 990.0, 500.0], [1980.0, None]) == 500 * 198  # the failed one says nothing
    assert left([10.0], [1.0]) == 0


def test_trainings_are_judged_in_the_papers_way(tmp_path: Path) -> None:
    import keras

    # It calls everything a three, whatever the images.
    image = keras.Input((28, 28, 1))
    zeros = keras.layers.Dense(10, kernel_initializer="zeros", name="head")
    model = keras.Model(image, zeros(keras.layers.Flatten()(image)))
    model.get_layer("head").bias.assign(np.eye(10)[3])
    model.save(tmp_path / "threes.keras")

    class OneModel(FakeMaker):
        def find_model(self, uri: str) -> ModelSource:
            name = "gone" if uri == "runs:/run2/model" else "threes"
            return super().find_model(str(tmp_path / f"{name}.keras"))

    maker, listener = OneModel(), Listener()
    maker.metrics = {"final_test_accuracy": 0.1}
    found = run(maker, listener, target=("figure11", "figure3"))
    # The four of the figure but for one that is gone; those with 10 layers are in no table.
    assert len(maker.added) == 3
    assert any("in the paper's way is left out: " in line for line in listener.said)
    for label, runs in found.runs.items():
        if runs[0].run_id in maker.added:
            metrics = maker.added[runs[0].run_id]
            assert label[0] == "short" and label[2] in (25, 50)
            assert {key: runs[0].metrics[key] for key in metrics} == metrics
            mean = metrics["batch_statistics_test_accuracy"]
            std = metrics["batch_statistics_test_accuracy_std"]
            # A tenth of the test images are threes: 10 parts of 100 scatter by 0.03 around it.
            assert mean == pytest.approx(0.1, abs=0.03)
            assert mean + 0.5 * std < metrics["papers_way_test_accuracy"] <= mean + 3 * std


def test_moved_data_is_found_by_whatever_needs_it() -> None:
    for job in jobs_of("figure11", "figure7", data_dir="/moved"):
        assert job.asked.data_dir == "/moved"


def test_a_failure_leaves_the_others() -> None:
    maker, listener = FakeMaker(), Listener()
    maker.fails = {"train resnet": NonFiniteLossError("the training loss became nan at step 3")}
    found = run(maker, listener)
    assert len(maker.made) == 6
    assert set(found.failed) == {
        "resnet-10, 200 steps, seed 0",
        "attack on resnet-10, 200 steps, seed 0",
    }
    assert any("failed: the training loss became nan" in line for line in listener.said)


class FakePool(contextlib.AbstractContextManager["FakePool"]):
    """Workers that train nothing; those of some architectures fail, or are interrupted."""

    def __init__(self, maker: FakeMaker, trial: Trial, receive: Any) -> None:
        self.maker, self.trial, self.receive = maker, trial, receive
        self.jobs: list[Job] = []

    def submit(self, job: Job, asked: TrainParameters) -> None:
        assert asked == job.training and self.trial.data is not None
        self.jobs.append(job)

    def finished(self) -> Iterator[tuple[Job, Any]]:
        for job in self.jobs:
            self.receive(job, ("begin", (job.name, {}, [])))
            assert self.trial.data is not None
            try:
                self.maker.make(job.asked, self.trial.data, None)
                yield job, Trained(job.name, "test", {}, b"")
            except LookupError as error:
                yield job, Failure.of(error)

    def __exit__(self, *error: object) -> None:
        pass


def test_trainings_are_shared_out_and_the_rest_is_made_here() -> None:
    maker, kept = FakeMaker(), list[str]()
    workers = partial(FakePool, maker), lambda *outcome: kept.append(outcome[1].network)
    maker.fails = {"train resnet": LookupError("no such thing")}
    maker.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(maker, workers=workers)
    assert len(kept) == 2
    maker.interrupt_after = None
    found = run(maker, workers=workers)
    trainings = [what for what in maker.made if what.startswith("train")]
    assert maker.made[: len(trainings)] == trainings and len(kept) == len(trainings)
    assert len(set(trainings)) == len(trainings), "none is made twice"
    assert len(maker.made) == 6, "all eight but a training and the attack on it"
    assert "LookupError: no such thing" in found.failed.values()


def test_a_training_that_was_cut_off_goes_on_here_rather_than_anew_in_a_worker() -> None:
    maker = FakeMaker()
    job = jobs_of("figure7", scale="quick")[0]
    facts = identity.facts("train", job.asked.settled(), load_data(job.training).digest)
    maker.interrupted[frozenset(facts.items())] = InterruptedRun("cut", step=10)
    kept: list[Any] = []
    run(maker, workers=(partial(FakePool, maker), kept.append), target=("figure7",))
    assert maker.resumed == ["cut"] and not kept


def test_a_report_alone_makes_nothing() -> None:
    maker = FakeMaker()
    run(maker, target=("figure7",))
    found = run(maker, report_only=True)
    assert len(maker.made) == 2 == len(found.runs)
    # What stands on a model that isn't there isn't either.
    assert len(found.missing) == 6


@pytest.mark.parametrize("name", ["tabel1", "figure12", "figure2", ""])
def test_unknown_targets_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown target"):
        run(FakeMaker(), target=(name,))

"""Trials: what reaches the runs of a sweep or a tuning, whatever befalls the workers."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pytest

from resfool import experiments
from resfool.datasets import sets
from resfool.datasets.sets import Dataset, Split
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.parallel.tasks import Failure
from resfool.training.recipe import TrainParameters
from resfool.trials.recorder import Message, Recorder, Trained, Trial, _Telling
from tests.conftest import QUICK

Row = Mapping[str, float]


class Notes(Monitor):
    """A monitor that remembers what it was told, and its parts."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.warnings: list[str] = []
        self.name = ""
        self.facts: dict[str, Any] = {}
        self.parts: list[Self] = []
        self.ended: str | None = None

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Any]) -> None:
        self.name = name
        self.facts = dict(facts)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value

    def point(self, row: Row) -> None:
        self.rows.append(dict(row))

    @contextlib.contextmanager
    def beside(self) -> Iterator[Self]:
        part = type(self)()
        self.parts.append(part)
        try:
            yield part
        except BaseException as error:
            part.ended = type(error).__name__
            raise
        part.ended = "well"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return sets.load("digits", per_class=(20, 0, 5))


def recorder(monitor: Monitor, data: Dataset, kept: list[Any] | None = None) -> Recorder:
    kept = [] if kept is None else kept
    return Recorder(monitor, data, lambda *arguments: kept.append(arguments))


def point(step: int, **figures: float) -> Message:
    return "point", ({"step": step} | (figures or {"train_accuracy": step / 10}),)


BEGIN: Message = ("begin", ("a network", {"seed": 0}, [("train", "training")]))


def test_what_a_worker_tells_is_told_to_the_runs_monitor(data: Dataset) -> None:
    told: list[Message] = []

    def report(message: Message) -> bool:
        told.append(message)
        return False

    worker = _Telling(report)
    worker.begin("a network", {"seed": 0}, [(data, "train", "training")])
    worker.warn("it may take long")
    worker.fact("parameter_count", 9)
    worker.point({"step": 1, "train_accuracy": 0.1})
    whole = Notes()
    with recorder(whole, data) as record:
        for message in told:
            record.receive("a", message)
    (part,) = whole.parts
    assert whole.warnings == ["it may take long"]
    assert (part.name, part.facts) == ("a network", {"seed": 0, "parameter_count": 9})
    assert part.rows == [{"step": 1, "train_accuracy": 0.1}]


def test_a_second_attempt_goes_on_in_the_same_run_without_doubled_steps(data: Dataset) -> None:
    whole = Notes()
    kept: list[Any] = []
    done = Trained("net", "test", {"final_test_accuracy": 0.5}, b"")
    with recorder(whole, data, kept) as record:
        for message in (BEGIN, point(1), point(2), point(2, test_accuracy=0.3), point(3)):
            record.receive("a", message)
        # Its worker is killed; the pool starts it again from the beginning.
        for message in (BEGIN, point(1), point(2), point(2, test_accuracy=0.3), point(3), point(4)):
            record.receive("a", message)
        assert record.end("a", done) is done
    (part,) = whole.parts
    assert part.ended == "well"
    assert [(row["step"], *row) for row in part.rows] == [
        (1, "step", "train_accuracy"),
        (2, "step", "train_accuracy"),
        (2, "step", "test_accuracy"),
        (3, "step", "train_accuracy"),
        (4, "step", "train_accuracy"),
    ]
    ((place, outcome, monitor, curve),) = kept
    assert (place, outcome, monitor) == ("a", done, part)
    assert curve == part.rows


def test_trials_that_are_open_together_are_kept_apart(data: Dataset) -> None:
    whole = Notes()
    with recorder(whole, data) as record:
        for message in (BEGIN, point(1)):
            record.receive("a", message)
            record.receive("b", message)
        record.receive("a", point(2))
        assert record.end("b", Failure("ValueError", "no luck")) is None
        assert record.end("a", None) is None
    first, second = whole.parts
    assert [row["step"] for row in first.rows] == [1, 2]
    assert [row["step"] for row in second.rows] == [1]
    assert (first.ended, second.ended) == ("well", "TrialError")
    assert first.facts["pruned"] is True


def test_what_all_trials_warn_of_is_said_once(data: Dataset) -> None:
    whole = Notes()
    with recorder(whole, data) as record:
        for place in range(3):
            record.receive(place, BEGIN)
            record.receive(place, ("warn", ("it is slow",)))
            record.end(place, None)
    assert whole.warnings == ["it is slow"]


def test_what_is_open_when_the_user_interrupts_ends_so(data: Dataset) -> None:
    whole = Notes()
    with pytest.raises(KeyboardInterrupt), recorder(whole, data) as record:
        record.receive("a", BEGIN)
        raise KeyboardInterrupt
    assert whole.parts[0].ended == "KeyboardInterrupt"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("method", ["begin", "fact"])
def test_a_run_ends_whose_store_fails_or_is_interrupted(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, method: str, error: type[BaseException]
) -> None:
    def failing(*arguments: Any) -> None:
        raise error

    whole = Notes()
    monkeypatch.setattr(Notes, method, failing)
    with pytest.raises(error), recorder(whole, data) as record:
        record.receive("a", BEGIN)
        record.end("a", None)  # pruned, which is a fact
    assert whole.parts[0].ended == error.__name__


def test_a_worker_sends_home_what_a_training_gives() -> None:
    told: list[Message] = []

    def report(message: Message) -> bool:
        told.append(message)
        return False

    outcome = Trial()(TrainParameters(**QUICK, steps=30), report)
    plain = experiments.train(**(QUICK | {"steps": 30}))
    assert outcome is not None
    assert outcome.metrics == plain.final_metrics
    rows = [arguments[0] for kind, arguments in told if kind == "point"]
    assert rows == plain.history
    for mine, theirs in zip(outcome.load_model().weights, plain.model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_worker_that_is_told_to_stop_stops() -> None:
    steps: list[int] = []

    def report(message: Message) -> bool:
        kind, arguments = message
        if kind == "point":
            steps.append(arguments[0]["step"])
        return kind == "point"

    assert Trial()(TrainParameters(**QUICK, steps=500), report) is None
    assert steps == [100]


def test_what_is_set_aside_is_a_share_of_each_class(data: Dataset) -> None:
    apart = data.with_validation(0.25, seed=3)
    assert np.bincount(apart.validation.labels).tolist() == [5] * 10
    assert np.bincount(apart.train.labels).tolist() == [15] * 10
    both = np.concatenate([apart.train.images, apart.validation.images]).reshape(200, -1)
    before = data.train.images.reshape(200, -1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, before))
    assert apart.test is data.test
    again, other = (data.with_validation(0.25, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(apart.train.images, again.train.images)
    assert (apart.train.images != other.train.images).any()
    with pytest.raises(InputError, match=r"validation_share=0\.01 of 200 training images"):
        data.with_validation(0.01, seed=0)
    with pytest.raises(InputError, match="leaves a class without any to train on"):
        data.with_validation(0.999, seed=0)


def test_with_images_set_aside_the_test_set_is_not_looked_at(data: Dataset) -> None:
    apart = data.with_validation(0.2, seed=0)
    spoiled = Split(np.full_like(data.test.images, np.nan), data.test.labels)
    hidden = Dataset(
        apart.name, apart.train, apart.validation, spoiled, apart.class_names, apart.source
    )
    options = QUICK | {"steps": 20, "validation_share": 0.2}
    result = experiments.train(None, hidden, **options)
    assert result.part == "validation"
    assert np.isfinite(result.test.loss)
    assert {name for row in result.history for name in row} == {
        "step",
        *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    }

"""Training, step by step: seeded, resumable, and the same bits however it is cut into pieces."""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool import interrupts, paper
from resfool.arrayfiles import DamagedError, Wanted, check
from resfool.classifiers.scores import Score
from resfool.errors import NonFiniteLossError
from resfool.monitor import Advance, quiet
from resfool.networks import architectures
from resfool.training.augmentation import GENERATOR, augmented
from resfool.training.optimizers import optimizer
from resfool.training.steps import Steps
from resfool.values import Row
from resfool.wording import told

_CALL_SECONDS = 0.5  # steps are run in calls of about this length, so that Ctrl-C acts soon
_FIGURE = re.compile("(train|train_adversarial|validation|test)_(loss|accuracy)")


class Trainer:
    """A model in training: its optimizer, the step it has reached and its curve so far.

    Batch i depends on (seed, i) alone, so that a training that was stopped and restored goes on
    as if nothing had happened.

    Args:
        model: from images to logits; its weights are changed in place.
        images: float32 (N, H, W, C) in [0, 1], the training set.
        labels: int (N,).
        asked: how to train.
        seed: of the batches and their augmentation.
    """

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        asked: Steps,
        *,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.step = 0
        self.history: list[Row] = []
        self._figures = ["train_loss", "train_accuracy"]  # what is measured in each step
        if asked.adversarial == "fgsm":
            self._figures += ["train_adversarial_loss", "train_adversarial_accuracy"]
        self._window: list[tuple[float, ...]] = []  # those of the steps since the last point
        self._images = tf.constant(images)
        self._labels = tf.constant(labels, tf.int32)
        self._asked, self._rules = asked, asked.rules
        self._seed = seed
        *_, last = (v.path for v in model.trainable_variables if v.path.endswith("/kernel"))
        self._optimizer = optimizer(asked, last)
        self._optimizer.exclude_from_weight_decay(
            var_list=[v for v in model.trainable_variables if not v.path.endswith("/kernel")]
        )
        self._optimizer.build(model.trainable_variables)
        averaged = model.trainable_variables if self._rules.ema else []
        self._averages = [keras.Variable(v, name="average", trainable=False) for v in averaged]
        # XLA fuses the elementwise passes on a GPU; on a CPU its convolutions are far slower.
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._learn = tf.function(self._update, jit_compile=on_gpu)
        self._run = tf.function(self._steps)

    def advance(self, steps: int) -> None:
        """Run some steps and record the curve's points that they complete.

        Raises:
            NonFiniteLossError: the loss of a step isn't finite.
        """
        # Were a signal to cut in between, the weights would be ahead of the step.
        with interrupts.deferred():
            measured = self._run(tf.constant(self.step), tf.constant(steps))
            for figures in measured.numpy().tolist():
                self.step += 1
                for figure in figures:
                    if not math.isfinite(figure):
                        raise NonFiniteLossError(
                            f"the training loss became {figure} at step {self.step}; "
                            "a lower learning_rate usually helps"
                        )
                self._window.append(tuple(figures))
                if self.step % paper.AVERAGED_STEPS == 0:
                    self.close_window()

    def close_window(self) -> None:
        """Record the averages of the figures since the last point, if there are any steps."""
        if self._window:
            averages = np.mean(self._window, axis=0).tolist()
            row = dict(zip(self._figures, averages, strict=True))
            self.history.append({"step": self.step} | row)
            self._window.clear()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that a later process needs to go on: arrays and JSON facts."""
        arrays = {f"variable{i}": np.asarray(v) for i, v in enumerate(self._variables())}
        facts = {"step": self.step, "history": self.history, "window": self._window}
        return arrays, facts

    def restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Go back to a `state` of a trainer that was made with the same arguments.

        Raises:
            DamagedError: it is none.
        """
        variables = {f"variable{i}": v for i, v in enumerate(self._variables())}
        kinds = {name: np.dtype(v.dtype).kind for name, v in variables.items()}
        check(arrays, {n: Wanted(kinds[n], tuple(v.shape)) for n, v in variables.items()})
        _check_progress(facts, self._asked.steps, len(self._figures))
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.step = facts["step"]
        self.history = list(facts["history"])
        self._window = [tuple(figures) for figures in facts["window"]]

    def _variables(self) -> list[Any]:
        # `variables`, unlike `weights`, has the seed states of dropout too.
        return [*self.model.variables, *self._optimizer.variables, *self._averages]

    def give_weights(self, other: keras.Model) -> None:
        """Give the same network, built again, the weights: the averaged ones where there are any.

        Statistics of batch normalisation are this network's own.
        """
        architectures.copy_weights(self.model, other)
        variables = other.trainable_variables if self._averages else []
        for average, variable in zip(self._averages, variables, strict=True):
            variable.assign(average)

    def _steps(self, first: Any, count: Any) -> Any:
        """Steps `first` to `first + count`, as one graph: their figures, (count, figures)."""
        measured = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            # Drawn outside of what XLA compiles: it has random numbers of its own.
            images, labels = self._batch(first + i)
            measured = measured.write(i, self._learn(images, labels))
        return measured.stack()

    def _update(self, images: Any, labels: Any) -> Any:
        """One step on a batch: its figures before the update.

        With fast-gradient examples, the weights w go down the gradient of

            (1 - a) J(w, x, y) + a J(w, x + e sign(grad_x J(w, x, y)), y)

        in which the examples count as constants. Source: Goodfellow et al. 2015, arXiv:1412.6572,
        section 6 (whose alpha is 1 - a).
        """
        figures, gradients, image_gradient = self._gradients(images, labels)
        if self._asked.adversarial == "fgsm":
            share = self._asked.adversarial_weight
            moved = images + self._asked.adversarial_epsilon * tf.sign(image_gradient)
            # Each pass normalises by its own batch and moves the averages: the finished model,
            # which normalises by them, is to meet images of both kinds.
            more_figures, more_gradients, _ = self._gradients(
                tf.clip_by_value(moved, 0.0, 1.0), labels
            )
            figures += more_figures
            gradients = [
                (1 - share) * clean + share * adversarial
                for clean, adversarial in zip(gradients, more_gradients, strict=True)
            ]
        done = tf.cast(self._optimizer.iterations, tf.float32)
        self._optimizer.apply(gradients, self.model.trainable_variables)
        self._average(done)
        return tf.stack(figures)

    def _average(self, done: Any) -> None:
        """Take the weights into their averages, after so many steps before this one.

        The first steps count less than the decay would have them, since they are far off.
        """
        decay = tf.minimum(self._rules.ema, (1 + done) / (10 + done))
        variables = self.model.trainable_variables if self._averages else []
        for average, variable in zip(self._averages, variables, strict=True):
            average.assign_add((1 - decay) * (variable - average))

    def _gradients(self, images: Any, labels: Any) -> tuple[list[Any], list[Any], Any]:
        """Loss and accuracy on a batch, and the loss's gradients: of the weights, of the images."""
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            # One backward pass gives both kinds; where the images' is not used, it isn't computed.
            tape.watch(images)
            logits = self.model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
            learnt = self._smoothed(loss, logits)
        *gradients, image_gradient = tape.gradient(learnt, [*variables, images])
        hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
        accuracy = tf.reduce_mean(tf.cast(hits, tf.float32))
        return [loss, accuracy], gradients, image_gradient

    def _smoothed(self, loss: Any, logits: Any) -> Any:
        """The loss by labels that spread a share of their weight evenly over all classes."""
        share = self._rules.label_smoothing
        if not share:
            return loss
        even = -tf.reduce_mean(tf.nn.log_softmax(logits))
        return (1 - share) * loss + share * even

    def _batch(self, step: Any) -> tuple[Any, Any]:
        """Batch number `step`: a function of the seed and the step alone."""
        rows = tf.random.stateless_uniform(
            (self._asked.batch_size,),
            (self._seed, step),
            0,
            len(self._labels),
            tf.int32,
            alg=GENERATOR,
        )
        images, labels = tf.gather(self._images, rows), tf.gather(self._labels, rows)
        return augmented(images, self._rules.augment, (self._seed, step)), labels


def _check_progress(facts: Mapping[str, Any], steps: int, figures: int) -> None:
    """Refuse what a training of some steps, with some figures of each, can't have come to."""
    step = facts["step"]
    if type(step) is not int or not 0 <= step <= steps:
        raise DamagedError(f"it is at step {told(step)} of {steps}")
    for row in facts["history"]:
        point = {name: value for name, value in row.items() if name != "step"}
        if not point or not all(map(_FIGURE.fullmatch, point)) or not _are_floats(point.values()):
            raise DamagedError("its curve has points that no training has")
        if type(row["step"]) is not int or not 0 <= row["step"] <= step:
            raise DamagedError(f"its curve is at step {told(row['step'])} and it at {step}")
    for row in facts["window"]:
        if len(row) != figures or not _are_floats(row):
            raise DamagedError("it has steps without their figures")


def _are_floats(values: Iterable[Any]) -> bool:
    return all(isinstance(value, float) for value in values)


def train_to(
    trainer: Trainer,
    steps: int,
    *,
    eval_every: int,
    evaluate: Callable[[], Score],
    evaluated: str = "test",
    report: Callable[[Row], None] = lambda row: None,
    progress: Advance = quiet,
    save: Callable[[], None] = lambda: None,
    save_seconds: float = 30.0,
) -> list[Row]:
    """Train to a number of steps, from wherever the trainer stands.

    Args:
        trainer: new, or restored from a checkpoint.
        steps: the step to stop at.
        eval_every: steps between two evaluations; the last step is evaluated in any case.
        evaluate: judges the model as it stands.
        evaluated: what its figures are called after: the part of the data set that it looks at.
        report: is given each point of the curve, from the first on, those restored included.
        progress: is told how many more steps are done, and the latest accuracies.
        save: keeps the trainer's state; called at the start, every `save_seconds`, when
            interrupted and at the end.
        save_seconds: seconds between two saves.

    Returns:
        The curve: every point, in order.

    Raises:
        NonFiniteLossError: the loss of a step isn't finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state was saved.
    """
    reported = advanced = 0

    def tell() -> None:
        nonlocal reported, advanced
        while reported < len(trainer.history):
            reported += 1  # before, or what `report` raises would have it told twice
            report(trainer.history[reported - 1])
        progress(trainer.step - advanced, _summary(trainer.history))
        advanced = trainer.step

    save()
    saved = time.monotonic()
    call_steps = 1  # the first call compiles, so it stays short
    try:
        while True:
            if trainer.step == steps:
                trainer.close_window()
            if _evaluation_due(trainer, steps, eval_every, f"{evaluated}_loss"):
                tell()
                score = evaluate()
                row = {"step": trainer.step, f"{evaluated}_loss": score.loss}
                trainer.history.append(row | {f"{evaluated}_accuracy": score.accuracy})
            tell()
            if trainer.step == steps:
                break
            count = min(
                call_steps,
                paper.AVERAGED_STEPS - trainer.step % paper.AVERAGED_STEPS,
                eval_every - trainer.step % eval_every,
                steps - trainer.step,
            )
            started = time.monotonic()
            trainer.advance(count)
            seconds = time.monotonic() - started
            call_steps = max(1, min(paper.AVERAGED_STEPS, int(count * _CALL_SECONDS / seconds)))
            if time.monotonic() - saved > save_seconds:
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        save()
        raise
    finally:
        tell()
    save()
    return trainer.history


def _evaluation_due(trainer: Trainer, steps: int, eval_every: int, figure: str) -> bool:
    if trainer.step == 0 or (trainer.step % eval_every and trainer.step != steps):
        return False
    return not any(r["step"] == trainer.step and figure in r for r in trainer.history[-2:])


def _summary(history: Sequence[Row]) -> str:
    """The latest accuracies, for a progress bar."""
    latest: Row = {}
    for row in history[-40:]:
        latest |= row
    kinds = ("train", "validation", "test")
    return ", ".join(
        f"{k} {latest[f'{k}_accuracy']:.3f}" for k in kinds if f"{k}_accuracy" in latest
    )

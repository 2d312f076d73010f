"""Training one network (sections III to V)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resfool import checkpoints, devices, identity
from resfool.datasets.sets import Dataset, load_data
from resfool.monitor import Monitor, Use
from resfool.networks.shape import Network
from resfool.training.recipe import Judged, TrainParameters, check_same_training
from resfool.values import Precision, Row, show

if TYPE_CHECKING:
    import keras

    from resfool.classifiers.scores import Score

_SLOW = 3  # times as long as in float32, from which on bfloat16 is advised against


@dataclass(frozen=True)
class Training:
    """What a training leaves.

    Attributes:
        model: plain Keras, float32, from raw pixels to logits.
        history: the curve: training figures of every 100 steps, test figures of every evaluation.
        train: the last point's training accuracy and loss.
        test: the finished model's accuracy and loss on the whole test set, or on the validation
            images if some were set aside.
        part: which of the two.
        dataset: what it was trained and tested on.
        network: its shape, defaults filled in.
    """

    model: "keras.Model"
    history: list[Row]
    train: "Score"
    test: "Score"
    part: Judged
    dataset: Dataset
    network: Network

    @property
    def final_metrics(self) -> dict[str, float]:
        """The final figures by their names in MLflow."""
        scores = {"train": self.train, self.part: self.test}
        return {
            f"final_{part}_{figure}": float(getattr(score, figure))
            for part, score in scores.items()
            for figure in ("accuracy", "loss")
        }


def train(
    asked: TrainParameters, monitor: Monitor | None = None, data: Dataset | None = None
) -> Training:
    """Train one of the paper's architectures (sections III to V).

    Args:
        asked: its parameters.
        monitor: is told how it goes, and says where the checkpoint is kept.
        data: what `load_data` gives, if it is here already.

    Returns:
        The trained model, its curve and its final figures.

    Raises:
        InputError: a parameter can't be used; nothing expensive has been done by then.
        NonFiniteLossError: the loss isn't finite any more.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the checkpoint is up to date.
    """
    monitor = monitor or Monitor()
    network = asked.network
    data = data or load_data(asked)
    part: Judged = "validation" if asked.validation_share else "test"
    images = data.split(part)
    asked.check_affordable(data.train.known)
    uses: list[Use] = [(data, "train", "training"), (data, part, "testing")]
    checkpoint = monitor.begin(title(asked), facts(asked, data, part), uses)
    same = {"settings": asked.settled(), "dataset_digest": data.digest}
    arrays: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.exists():
        arrays, stored = checkpoints.load(checkpoint)
        with checkpoints.reading(checkpoint):
            check_same_training(stored, asked, data.digest)
    elif checkpoint is not None:
        # Without a state yet, so that a run killed before its first step can be resumed too.
        checkpoints.save(checkpoint, {}, same)

    devices.start_keras()
    if warning := slowness(asked.precision):
        monitor.warn(warning)
    from resfool.classifiers.scores import Score, evaluate
    from resfool.networks import architectures
    from resfool.training.judged import JudgedModel
    from resfool.training.trainer import Trainer, train_to

    blueprint: dict[str, Any] = {
        "image_shape": data.image_shape,
        "classes": data.classes,
        "mean": data.train.images.mean(axis=(0, 1, 2), dtype="float64"),
        "std": data.train.images.std(axis=(0, 1, 2), dtype="float64"),
        "seed": asked.seed,
    }

    def build(network: Network) -> "keras.Model":
        return architectures.build(network, fused=True, precision=asked.precision, **blueprint)

    model = build(network)
    plain = architectures.build(network, **blueprint)
    monitor.fact("parameter_count", plain.count_params())
    monitor.fact("flops_per_image", architectures.count_flops(plain))
    trainer = Trainer(model, data.train.images, data.train.labels, asked, seed=asked.seed)
    if checkpoint is not None and arrays:
        with checkpoints.reading(checkpoint):
            trainer.restore(arrays, stored)

    judged = JudgedModel(
        trainer,
        asked.rules,
        lambda: build(replace(network, dropout=0.0)),
        data.train.images,
        asked.seed,
    )

    def save() -> None:
        if checkpoint is not None:
            arrays, state = trainer.state()
            checkpoints.save(checkpoint, arrays, same | state)

    history = train_to(
        trainer,
        asked.steps,
        eval_every=asked.eval_every,
        evaluate=lambda: evaluate(judged.model(), images.images, images.labels),
        evaluated=part,
        report=monitor.point,
        progress=monitor.counter(asked.steps),
        save=save,
        save_seconds=asked.checkpoint_seconds,
    )
    architectures.copy_weights(judged.model(), plain)
    last = next(row for row in reversed(history) if "train_loss" in row)
    return Training(
        model=plain,
        history=history,
        train=Score(last["train_accuracy"], last["train_loss"]),
        test=evaluate(plain, images.images, images.labels),
        part=part,
        dataset=data,
        network=network,
    )


def facts(asked: TrainParameters, data: Dataset, part: Judged) -> dict[str, Any]:
    """What a run says of a training from its beginning.

    Args:
        asked: its parameters.
        data: that it has.
        part: of the data, which it is judged on.
    """
    settings, network = asked.settled(), asked.network
    more = {
        "network": network.name,
        "layers": network.depth,
        "widths": network.widths,
        "dataset_digest": data.digest,
        "train_images": len(data.train),
        f"{part}_images": len(data.split(part)),
    }
    return settings | more | identity.facts("train", settings, data.digest)


def title(asked: TrainParameters) -> str:
    """What a training's run is called."""
    against = ""
    if asked.adversarial != "none":
        against = f" {asked.adversarial} {show(asked.adversarial_epsilon)}"
    return f"{asked.network.name}{against} {asked.dataset} seed {asked.seed}"


def slowness(precision: Precision) -> str:
    """A warning, if this machine is much slower in a precision than in float32, else nothing."""
    if precision == "float32" or devices.bfloat16_slowdown() <= _SLOW:
        return ""
    return (
        f"bfloat16 takes this machine more than {_SLOW} times as long as float32, as measured "
        "on a convolution; precision=float32 will be faster"
    )

"""Training one network (sections III to V)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resfool import checkpoints, devices, identity, paper
from resfool.datasets import sets
from resfool.datasets.sets import load_data
from resfool.monitor import Monitor, Use
from resfool.networks import shape
from resfool.parameters import (
    Adversarial,
    Arch,
    Augment,
    Counts,
    Epsilon,
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    Optimizer,
    PositiveCount,
    PositiveFloat,
    Precision,
    Seed,
    Share,
    show,
)
from resfool.training.recipe import Judged, check, check_same_training

if TYPE_CHECKING:
    import keras

    from resfool.classifiers.scores import Score
    from resfool.parameters import Row


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
    history: list["Row"]
    train: "Score"
    test: "Score"
    part: Judged
    dataset: sets.Dataset
    network: shape.Network

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
    monitor: Monitor | None = None,
    data: sets.Dataset | None = None,
    /,
    *,
    arch: Arch,
    depth: PositiveCount | None = None,
    width: Counts | None = None,
    convs_per_unit: PositiveCount = 1,
    batch_norm: bool = True,
    gate_bias: FiniteFloat = -1.0,
    dropout: Fraction = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    dataset: str = "cifar10",
    data_dir: str | None = None,
    per_class: Counts | None = None,
    data_seed: Seed = 0,
    validation_share: Fraction = 0.0,
    steps: PositiveCount = paper.STEPS,
    batch_size: PositiveCount = paper.BATCH_SIZE,
    learning_rate: PositiveFloat = paper.LEARNING_RATE,
    optimizer: Optimizer = "adam",
    lr_drop: Counts | None = None,
    augment: Augment = "none",
    adversarial: Adversarial = "none",
    adversarial_epsilon: Epsilon = 8 / 255,
    adversarial_weight: Share = 0.5,
    precision: Precision = "float32",
    seed: Seed = 0,
    eval_every: PositiveCount = 1000,
    checkpoint_seconds: NonNegativeFloat = 30.0,
) -> Training:
    """Train one of the paper's architectures (sections III to V).

    Args:
        monitor: is told how it goes, and says where the checkpoint is kept.
        data: what `load_data` gives, if it is here already.
        arch: convnet, resnet, highway, multiresnet or mlp.
        depth: 3x3 convolutions of the five stages, a multiple of 5; none is 10 (mlp: hidden layers,
            none is 5).
        width: feature maps of every stage, or five numbers such as 16,32,64,64,128; none is 64
            (mlp: nodes of each layer, none is 100).
        convs_per_unit: convolutions that a shortcut spans: 1 as in the paper, 2 as in He et al.
            (resnet, highway).
        batch_norm: false leaves the normalisation out of the plain convnet.
        gate_bias: initial bias of the highway's transform gate.
        dropout: share of the activations that is dropped in each unit, from 0 to below 1.
        weight_decay: decoupled decay of the kernels.
        dataset: cifar10, mnist, mnist5k, digits, or npz:PATH with your own arrays.
        data_dir: folder with the official files; none looks into Keras's cache, then downloads.
        per_class: images per class for training, validation and test, such as 500,50,50; none is
            all of them, or the set's own division.
        data_seed: seed of such subsets, and of what is set aside.
        validation_share: share of the training images that is set aside, to evaluate on instead of
            the test set.
        steps: training steps.
        batch_size: images per step, drawn at random from the training set.
        learning_rate: step size of the optimizer.
        optimizer: adam, momentum (0.9) or sgd.
        lr_drop: steps after which the rate is divided by 10, such as 32000; several, comma
            separated.
        augment: none, or crop_flip for random shifts by up to 4 pixels and mirror images.
        adversarial: none, or fgsm to mix the loss on fast-gradient examples of each batch into the
            training loss.
        adversarial_epsilon: the most that such an example changes a pixel by, where pixels go from
            0 to 1.
        adversarial_weight: share of the loss on such examples, from 0 to 1.
        precision: float32, or bfloat16 for activations and gradients; weights stay float32.
        seed: seed of the initial weights, the batches, dropout and augmentation.
        eval_every: steps between two evaluations.
        checkpoint_seconds: seconds between two checkpoints.

    Returns:
        The trained model, its curve and its final figures.

    Raises:
        InputError: an argument can't be used; nothing expensive has been done by then.
        NonFiniteLossError: the loss isn't finite any more.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the checkpoint is up to date.
    """
    settings = {n: v for n, v in locals().items() if n not in ("monitor", "data")}
    monitor = monitor or Monitor()
    network = check(settings)
    data = data or load_data(settings)
    part: Judged = "validation" if validation_share else "test"
    judged = data.split(part)
    facts = (
        settings
        | {
            "network": network.name,
            "layers": network.depth,
            "widths": network.widths,
            "dataset_digest": data.digest,
            "train_images": len(data.train),
            f"{part}_images": len(judged),
        }
        | identity.facts("train", settings, data.digest)
    )
    against = "" if adversarial == "none" else f" {adversarial} {show(adversarial_epsilon)}"
    name = f"{network.name}{against} {dataset} seed {seed}"
    uses: list[Use] = [(data, "train", "training"), (data, part, "testing")]
    checkpoint = monitor.begin(name, facts, uses)
    same = {"settings": settings, "dataset_digest": data.digest}
    arrays: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    if checkpoint is not None and checkpoint.exists():
        arrays, stored = checkpoints.load(checkpoint)
        check_same_training(stored, settings, data.digest)
    elif checkpoint is not None:
        # Without a state yet, so that a run killed before its first step can be resumed too.
        checkpoints.save(checkpoint, {}, same)

    devices.start_tensorflow()
    if warning := slowness(precision):
        monitor.warn(warning)
    from resfool.classifiers.scores import Score, evaluate
    from resfool.networks import architectures
    from resfool.training.trainer import Trainer, train

    blueprint: dict[str, Any] = {
        "image_shape": data.image_shape,
        "classes": data.classes,
        "mean": data.train.images.mean(axis=(0, 1, 2), dtype="float64"),
        "std": data.train.images.std(axis=(0, 1, 2), dtype="float64"),
        "seed": seed,
    }
    model = architectures.build(network, fused=True, precision=precision, **blueprint)
    plain = architectures.build(network, **blueprint)
    monitor.fact("parameter_count", plain.count_params())
    monitor.fact("flops_per_image", architectures.count_flops(plain))
    trainer = Trainer(
        model,
        data.train.images,
        data.train.labels,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        lr_drop=lr_drop or (),
        weight_decay=weight_decay,
        augment=augment,
        adversarial=adversarial,
        adversarial_epsilon=adversarial_epsilon,
        adversarial_weight=adversarial_weight,
        seed=seed,
    )
    if arrays:
        trainer.restore(arrays, stored)

    def save() -> None:
        if checkpoint is not None:
            arrays, state = trainer.state()
            checkpoints.save(checkpoint, arrays, same | state)

    history = train(
        trainer,
        steps,
        eval_every=eval_every,
        evaluate=lambda: evaluate(model, judged.images, judged.labels),
        evaluated=part,
        report=monitor.point,
        progress=monitor.progress,
        save=save,
        save_seconds=checkpoint_seconds,
    )
    architectures.copy_weights(model, plain)
    last = next(row for row in reversed(history) if "train_loss" in row)
    return Training(
        model=plain,
        history=history,
        train=Score(last["train_accuracy"], last["train_loss"]),
        test=evaluate(plain, judged.images, judged.labels),
        part=part,
        dataset=data,
        network=network,
    )


def slowness(precision: Precision) -> str:
    """A warning, if this machine is much slower in a precision than in float32, else nothing."""
    if precision == "float32" or devices.bfloat16_slowdown() <= _SLOW:
        return ""
    return (
        f"bfloat16 takes this machine more than {_SLOW} times as long as float32, as measured "
        "on a convolution; precision=float32 will be faster"
    )

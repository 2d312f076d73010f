"""The fast gradient sign of foolbox, ART and cleverhans, each by its own means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Array = np.ndarray


@dataclass(frozen=True)
class Library:
    """A library's attack on one model.

    Attributes:
        gradient: images and labels to the loss gradient, the images' shape, in any scale.
        attack: images, labels and an epsilon to images clipped to [0, 1].
    """

    gradient: Callable[[Array, Array], Array]
    attack: Callable[[Array, Array, float], Array]


def foolbox(model: keras.Model) -> Library:
    """LinfFastGradientAttack, without its random start."""
    import eagerpy
    import foolbox

    target = foolbox_model(model)
    fgsm = foolbox.attacks.LinfFastGradientAttack(random_start=False)

    def gradient(images: Array, labels: Array) -> Array:
        x, y = (eagerpy.astensor(tf.constant(a)) for a in (images, labels))
        return np.asarray(fgsm.value_and_grad(fgsm.get_loss_fn(target, y), x)[1].numpy())

    def attack(images: Array, labels: Array, epsilon: float) -> Array:
        _, clipped, _ = fgsm(target, tf.constant(images), tf.constant(labels), epsilons=epsilon)
        return np.asarray(clipped)

    return Library(gradient, attack)


def foolbox_model(model: keras.Model) -> Any:
    """The model as foolbox wants it."""
    import foolbox

    return foolbox.TensorFlowModel(compiled(model), bounds=(0, 1))


def art(model: keras.Model) -> Library:
    """FastGradientMethod on a TensorFlowV2Classifier."""
    from art.attacks.evasion import FastGradientMethod

    target = art_classifier(model)

    def attack(images: Array, labels: Array, epsilon: float) -> Array:
        method = FastGradientMethod(target, eps=epsilon, batch_size=len(images))
        return np.asarray(method.generate(images, labels))

    def gradient(images: Array, labels: Array) -> Array:
        return np.asarray(target.loss_gradient(images, np.eye(target.nb_classes)[labels]))

    return Library(gradient, attack)


def art_classifier(model: keras.Model, *, clip: bool = True) -> Any:
    """The model as ART wants it, with labels given as numbers; its attacks clip, or don't."""
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        compiled(model),
        nb_classes=model.output_shape[-1],
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0, 1) if clip else None,
    )


def cleverhans(model: keras.Model) -> Library:
    """The fast_gradient_method of cleverhans.tf2."""
    repair_numpy()
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
    from cleverhans.tf2.utils import compute_gradient

    loss = tf.nn.sparse_softmax_cross_entropy_with_logits

    def gradient(images: Array, labels: Array) -> Array:
        x, y = tf.constant(images), tf.constant(labels)
        return np.asarray(compute_gradient(model, loss, x, y, False))

    def attack(images: Array, labels: Array, epsilon: float) -> Array:
        x, y = tf.constant(images), tf.constant(labels)
        return np.asarray(
            fast_gradient_method(model, x, epsilon, np.inf, clip_min=0.0, clip_max=1.0, y=y)
        )

    return Library(gradient, attack)


# By the names under which they are imported.
LIBRARIES: dict[str, Callable[[keras.Model], Library]] = {
    "foolbox": foolbox,
    "art": art,
    "cleverhans": cleverhans,
}


def compiled(model: keras.Model) -> Callable[..., Any]:
    """The model as a graph: foolbox and ART run it a third faster than layer by layer."""
    return tf.function(lambda images, training=False: model(images, training=False))


def repair_numpy() -> None:
    """Give NumPy 2 the function of NumPy 1 that cleverhans 4.0, its last release, still calls."""
    numpy: Any = np
    numpy.find_common_type = lambda arrays, scalars: np.result_type(*arrays)

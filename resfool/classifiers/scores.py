"""How well a classifier does on labelled images."""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import binomtest

from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
from resfool.values import Row

CONFIDENCE_LEVEL = 0.95  # of the intervals around the rates


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) and mean cross-entropy (nats) over a set of images."""

    accuracy: float
    loss: float


def evaluate(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, batch_size: int = BATCH_SIZE
) -> Score:
    """Judge a model on labelled images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], at least one.
        labels: int (N,).
        batch_size: images per forward pass.
    """
    z = inference.logits(model, images, batch_size).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_likelihood = z[np.arange(len(labels)), labels] - np.log(np.exp(z).sum(axis=1))
    return Score(
        accuracy=float((z.argmax(axis=1) == labels).mean()), loss=float(-log_likelihood.mean())
    )


def chunk_accuracies(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    chunk: int,
    chunks: int,
    seed: int,
) -> np.ndarray:
    """Accuracies on random parts of a set, normalised by the statistics of each part.

    That is how code of the paper's time used to watch its trainings: an evaluation takes a few
    hundred images, batch normalisation stays in its training mode, and the best evaluation is
    what is printed. The best of many noisy figures lies above the accuracy on the whole set.

    Args:
        model: from images to logits, without dropout; it is left as it was.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,).
        chunk: images of a part, drawn without replacement; all N if there are fewer.
        chunks: parts.
        seed: of the draws.

    Returns:
        float64 (chunks,).
    """
    random = np.random.default_rng(seed)
    weights = model.get_weights()  # the moving averages would go on moving
    judge = tf.function(lambda batch: tf.argmax(model(batch, training=True), axis=1))
    found = np.empty(chunks)
    try:
        for number in range(chunks):
            drawn = random.choice(len(labels), min(chunk, len(labels)), replace=False)
            found[number] = (judge(tf.constant(images[drawn])).numpy() == labels[drawn]).mean()
    finally:
        model.set_weights(weights)
    return found


def rate(name: str, hits: np.ndarray) -> Row:
    """The share of hits, bool (N,), under its name; _low and _high end Wilson's 95% interval."""
    share = binomtest(int(hits.sum()), hits.size)
    interval = share.proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return {
        name: float(hits.mean()),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }

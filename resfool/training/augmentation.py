"""What is done to the images of a batch at random."""

from collections.abc import Collection
from typing import Any

import tensorflow as tf

GENERATOR = "philox"  # named, since the default depends on the device
_MARGIN = 4  # pixels that a shift may move an image by
_CUT = 4  # a cut square has a side of the image's over this: 8 pixels of 32


def augmented(images: Any, kinds: Collection[str], seed: Any) -> Any:
    """Images with their random changes.

    Args:
        images: float32 (N, H, W, C).
        kinds: of `steps.AUGMENTATIONS`.
        seed: two integers, which settle the result.

    Returns:
        A tensor of the same shape.
    """
    wanted = {"shift", "mirror"} if "crop_flip" in kinds else set()
    wanted |= set(kinds)
    # The batch was drawn with this very seed, so numbers are drawn from folds of it.
    shift_seed, mirror_seed = tf.unstack(tf.random.split(seed, alg=GENERATOR))
    if wanted & {"shift", "mirror"}:
        images = _moved(images, shift_seed, mirror_seed, wanted)
    if "cutout" in wanted:
        images = _cut_out(images, tf.random.fold_in(seed, 2, alg=GENERATOR))
    return images


def _moved(images: Any, shift_seed: Any, mirror_seed: Any, wanted: Collection[str]) -> Any:
    """Shifted by up to 4 pixels each way, reflected at the edges; half of them mirrored.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2, where zeros come in. Their dark edges are
    in no image that the network is judged on, which costs a short training some hundredths.
    """
    count, height, width, _ = images.shape
    most = min(_MARGIN, height - 1, width - 1)
    rows, columns = tf.range(height)[tf.newaxis], tf.range(width)[tf.newaxis]
    rows, columns = tf.tile(rows, [count, 1]), tf.tile(columns, [count, 1])
    if "shift" in wanted:
        images = tf.pad(images, [[0, 0], [most] * 2, [most] * 2, [0, 0]], "REFLECT")
        shifts = tf.random.stateless_uniform(
            (2, count, 1), shift_seed, 0, 2 * most + 1, tf.int32, alg=GENERATOR
        )
        rows, columns = rows + shifts[0], columns + shifts[1]
    if "mirror" in wanted:
        mirrored = tf.random.stateless_uniform((count, 1), mirror_seed, alg=GENERATOR) < 0.5
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _cut_out(images: Any, seed: Any) -> Any:
    """A square of each image is grey, which may stand over the edge.

    Source: DeVries and Taylor 2017, arXiv:1708.04552.
    """
    count, *sizes, _ = images.shape
    inside = []
    for axis, size in enumerate(sizes):
        own = tf.random.fold_in(seed, axis, alg=GENERATOR)
        centers = tf.random.stateless_uniform((count, 1), own, 0, size, tf.int32, alg=GENERATOR)
        side = max(1, size // _CUT)
        first = centers - side // 2
        places = tf.range(size)[tf.newaxis]
        inside.append((places >= first) & (places < first + side))
    hidden = inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis, :]
    return tf.where(hidden[..., tf.newaxis], 0.5, images)

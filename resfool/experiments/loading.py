"""Models and images for an experiment, as its parameters name them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resfool import classifiers, datasets
from resfool.errors import InputError
from resfool.monitor import ModelSource

if TYPE_CHECKING:
    import keras

SAMPLES = 1000  # images, where nothing else is asked for


def load_classifier(
    source: ModelSource,
    name: str,
    data: datasets.Dataset,
    input_range: tuple[float, float],
    trust: bool,
) -> "keras.Model":
    """A classifier from images in [0, 1] to logits.

    Args:
        source: where it is.
        name: that it shall have.
        data: what it must fit.
        input_range: pixel values that it takes for black and white.
        trust: load it without any check.

    Returns:
        A Keras model.

    Raises:
        InputError: it can't be loaded, or doesn't fit the data.
    """
    model = source.load_trusted() if trust else classifiers.load(source.path)
    try:
        return classifiers.as_classifier(
            model,
            image_shape=data.image_shape,
            classes=data.classes,
            input_range=input_range,
            name=name,
        )
    except InputError as error:
        raise InputError(f"model={source.uri} doesn't fit {data.name}: {error}") from error


def load_data(
    sources: Sequence[ModelSource],
    name: str | None,
    data_dir: str | None,
    per_class: tuple[int, ...] | None,
    data_seed: int,
) -> datasets.Dataset:
    """The data set that was asked for, or else the one that the models were trained on.

    Args:
        sources: the models.
        name: of a data set, or None for theirs.
        data_dir: folder with the official files, or None for where the training looked.
        per_class: images per class, or None for as many as in the training.
        data_seed: seed of a subset, where a name is given.

    Returns:
        The data set.

    Raises:
        InputError: it can't be loaded, isn't known, or isn't that of all models.
    """
    if name is not None:
        return datasets.load(name, data_dir=data_dir, per_class=per_class, seed=data_seed)
    stranger = next((source.uri for source in sources if not source.training), None)
    if stranger is not None:
        raise InputError(
            f"dataset is missing, and model={stranger} has no training run of this project that "
            "would tell; give dataset=cifar10, another name or npz:PATH with your own arrays"
        )
    training = sources[0].training
    stored_counts = training["per_class"]
    if per_class is None and stored_counts != "none":
        per_class = tuple(int(count) for count in stored_counts.split(","))
    stored_dir = training["data_dir"]
    data = datasets.load(
        training["dataset"],
        data_dir=data_dir or (None if stored_dir == "none" else stored_dir),
        per_class=per_class,
        seed=int(float(training["data_seed"])),
    )
    for source in sources:
        digest = source.training["dataset_digest"]
        if digest != data.digest:
            raise InputError(
                f"model={source.uri} was trained on other data ({source.training['dataset']}, "
                f"digest {digest}) than what was found here ({data.name}, digest {data.digest}); "
                f"to use the latter all the same, say so: dataset={data.name}"
            )
    return data


def draw(count: int, samples: int | None, seed: int, what: str) -> "np.ndarray":
    """Numbers of images, drawn at random; more of them begin with the fewer of the same seed.

    Args:
        count: of images that there are.
        samples: how many to draw; None is 1000, or all if there are fewer.
        seed: of the draw.
        what: what the images are called.

    Returns:
        int (samples,), from 0 to count - 1, each at most once.

    Raises:
        InputError: more are wanted than there are.
    """
    import numpy as np

    if samples is not None and samples > count:
        raise InputError(f"samples={samples} is more than the {count} {what}")
    return np.random.default_rng(seed).permutation(count)[: samples or SAMPLES]

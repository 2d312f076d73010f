"""Models and images for an experiment, as its parameters name them."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resfool.classifiers import adapting, files
from resfool.datasets import sets
from resfool.datasets.sets import load_data as load_training_data
from resfool.errors import InputError
from resfool.monitor import ModelSource, Monitor

if TYPE_CHECKING:
    import keras


def find_models(monitor: Monitor, uris: Sequence[str], trust: bool) -> list[ModelSource]:
    """The models that somebody named, each once, found and checked but not loaded.

    Args:
        monitor: finds them.
        uris: of the models.
        trust: leave out the checks.

    Returns:
        The models, in the order given.

    Raises:
        InputError: there is no such model, or it brings code of its own.
    """
    sources = [monitor.find_model(uri) for uri in dict.fromkeys(uris)]
    if not trust:
        for source in sources:
            files.check_keras_file(files.find_keras_file(source.path))
    return sources


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that can be told apart: those that are the same are numbered."""
    times = Counter(names)
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} ({seen[name]})" if times[name] > 1 else name)
    return distinct


def load_classifiers(
    sources: Sequence[ModelSource],
    names: Sequence[str],
    data: sets.Dataset,
    input_range: tuple[float, float],
    trust: bool,
) -> "list[keras.Model]":
    """Classifiers from images in [0, 1] to logits.

    Args:
        sources: where they are.
        names: that they shall have.
        data: what they must fit.
        input_range: pixel values that a stranger's model takes for black and white.
        trust: load them without any check.

    Returns:
        Keras models, in the order given.

    Raises:
        InputError: one can't be loaded, or doesn't fit the data.
    """
    return [
        load_classifier(source, name, data, input_range, trust)
        for source, name in zip(sources, names, strict=True)
    ]


def range_of(source: ModelSource, input_range: tuple[float, float]) -> tuple[float, float]:
    """The pixel values that a model takes for black and white.

    Args:
        source: where it is.
        input_range: those of a stranger's model; ours take pixels as they are.
    """
    return (0.0, 1.0) if source.training else input_range


def load_classifier(
    source: ModelSource,
    name: str,
    data: sets.Dataset,
    input_range: tuple[float, float],
    trust: bool,
) -> "keras.Model":
    """A classifier from images in [0, 1] to logits.

    Args:
        source: where it is.
        name: that it shall have.
        data: what it must fit.
        input_range: pixel values that a stranger's model takes for black and white.
        trust: load it without any check.

    Returns:
        A Keras model.

    Raises:
        InputError: it can't be loaded, or doesn't fit the data.
    """
    if trust:
        model = files.load_trusted(source.load_trusted, source.uri)
    else:
        model = files.load(source.path)
    try:
        return adapting.as_classifier(
            model,
            image_shape=data.image_shape,
            classes=data.classes,
            input_range=range_of(source, input_range),
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
) -> sets.Dataset:
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
        return sets.load(name, data_dir=data_dir, per_class=per_class, seed=data_seed)
    stranger = next((source.uri for source in sources if not source.training), None)
    if stranger is not None:
        raise InputError(
            f"dataset is missing, and model={stranger} has no training run of this project that "
            "would tell; give dataset=cifar10, another name or npz:PATH with your own arrays"
        )
    training = sources[0].training
    stored_counts, stored_dir = _stored(training["per_class"]), _stored(training["data_dir"])
    if per_class is None and stored_counts is not None:
        per_class = tuple(int(count) for count in stored_counts.split(","))
    data = load_training_data(
        {
            "dataset": training["dataset"],
            "data_dir": data_dir or stored_dir,
            "per_class": per_class,
            "data_seed": int(float(training["data_seed"])),
            # Runs from before there was this parameter set nothing aside.
            "validation_share": float(training.get("validation_share", 0)),
        }
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


def _stored(text: str) -> str | None:
    """A recorded parameter; `mlflow run` records it as it was given: none, None or NONE."""
    return None if text.lower() == "none" else text

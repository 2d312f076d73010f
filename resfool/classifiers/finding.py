"""Models and images for an experiment, as its parameters name them."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from resfool.archive import Archive, ModelSource
from resfool.classifiers import files
from resfool.classifiers.interface import Interface
from resfool.datasets import sets
from resfool.datasets.kinds import kind_of
from resfool.errors import DataWarning, InputError, UsageError
from resfool.parameters import Limits, OwnImages, Subset
from resfool.values import Addresses, Names, show

if TYPE_CHECKING:
    import keras

_MODEL = (
    "runs:/RUN_ID/model, models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or the path of a "
    ".keras or .h5 file or of a folder of MLflow's"
)


class AnyModel(Interface, Subset, Limits):
    """How somebody's model is loaded, and with which images."""

    dataset: Annotated[
        str | None,
        f"{sets.OWN_OR_NAMED}; none is what the model was trained on.",
    ] = None
    trust: Annotated[
        bool, "yes also loads models that bring code of their own, which may do anything."
    ] = False
    modules: Annotated[
        Names | None,
        "with trust=yes, where its own classes are: names that Python can import or paths of .py "
        "files, comma separated.",
    ] = None

    def check(self) -> None:
        """Refuse a data set that nobody knows, and code that nobody vouches for."""
        super().check()
        if self.modules is not None and not self.trust:
            raise UsageError(
                f"modules={show(self.modules)} brings code, which runs with trust=yes alone"
            )
        if self.dataset is not None:
            sets.check_known(self.dataset)


class OneModel(AnyModel):
    """A model, and images for it."""

    model: Annotated[str, f"{_MODEL}."]


class Models(AnyModel):
    """Models, and images for them."""

    model: Annotated[
        Addresses,
        f"{_MODEL}; several, comma separated, are compared. A file's path may have commas.",
    ]


def find_models(archive: Archive, uris: Sequence[str], trust: bool) -> list[ModelSource]:
    """The models that somebody named, each once and in that order, checked but not loaded.

    Args:
        archive: finds them.
        uris: of the models.
        trust: leave out the checks.

    Raises:
        InputError: there is no such model, or it brings code of its own.
    """
    sources = [archive.find_model(uri) for uri in dict.fromkeys(uris)]
    if not trust:
        for source in sources:
            files.check(files.find_file(source.path))
    return sources


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that can be told apart: those that are the same are numbered."""
    return [
        f"{name} ({names[: number + 1].count(name)})" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]


def load_classifiers(
    sources: Sequence[ModelSource], names: Sequence[str], data: sets.Dataset, asked: AnyModel
) -> "list[keras.Model]":
    """Several classifiers in the order given, as `load_classifier` gives one."""
    return [
        load_classifier(source, name, data, asked)
        for source, name in zip(sources, names, strict=True)
    ]


def interface_of(source: ModelSource, asked: AnyModel) -> Interface:
    """How a model takes images; ours take pixels as they are."""
    return Interface() if source.training else Interface(**asked.shared(Interface))


def load_classifier(
    source: ModelSource, name: str, data: sets.Dataset, asked: AnyModel
) -> "keras.Model":
    """A classifier from images in [0, 1] to logits.

    Args:
        source: where it is.
        name: that it shall have.
        data: what it must fit.
        asked: how to load it.

    Raises:
        InputError: it can't be loaded, or doesn't fit the data.
    """
    if asked.trust:
        model = files.load_trusted(source.path, source.load_trusted, asked.modules or ())
    else:
        model = files.load(source.path)
    from resfool.classifiers import adapting

    try:
        classifier = adapting.as_classifier(
            model,
            image_shape=data.image_shape,
            classes=data.classes if data.exact else None,
            interface=interface_of(source, asked),
            name=name,
        )
        _check_labels(data, classifier.output_shape[-1])
    except InputError as error:
        hint = _size_hint(model, data)
        raise InputError(f"model={source.uri} doesn't fit {data.name}: {error}{hint}") from error
    return classifier


def _size_hint(model: "keras.Model", data: sets.Dataset) -> str:
    """The size that pictures could be brought to, if the model takes another one than they have."""
    kind = kind_of(data.name)
    shapes = [tuple(each.shape[1:]) for each in getattr(model, "inputs", None) or ()]
    if kind is None or "image_size" not in kind[0].takes or shapes in ([data.image_shape], []):
        return ""
    shape = shapes[0]
    fixed = len(shape) == 3 and None not in shape and shape[2] in (1, 3)
    return f"; image_size={show(shape)} brings them to what the model takes" if fixed else ""


def _check_labels(data: sets.Dataset, classes: int) -> None:
    """Refuse data with labels that a model's classes don't have; say if names may be others."""
    largest = max(int(s.labels.max(initial=0)) for s in (data.train, data.validation, data.test))
    if largest >= classes:
        hint = "; if the labels count from 1, let them count from 0" if largest == classes else ""
        raise InputError(
            f"the data set has the label {largest} ({data.class_names[largest]}), and the model's "
            f"{classes} classes are 0 to {classes - 1}{hint}"
        )
    named = any(name != str(number) for number, name in enumerate(data.class_names))
    if named and not data.exact and data.classes < classes:
        warnings.warn(
            f"{data.name} has {data.classes} of the model's {classes} classes, and they count as "
            f"its first: {data.class_names[0]} is 0, {data.class_names[-1]} is {data.classes - 1}",
            DataWarning,
            stacklevel=2,
        )


def load_data(sources: Sequence[ModelSource], asked: AnyModel) -> sets.Dataset:
    """The data set that was asked for, or else the one that the models were trained on.

    Raises:
        InputError: it can't be loaded, isn't known, or isn't that of all models.
    """
    if asked.dataset is not None:
        return sets.loaded(asked.dataset, asked)
    stranger = next((source.uri for source in sources if not source.training), None)
    if stranger is not None:
        raise InputError(
            f"dataset is missing, and model={stranger} has no training run of this project that "
            f"would tell; give dataset=, one of {sets.OWN_OR_NAMED}"
        )
    training = sources[0].training
    recorded = {name: training[name] for name in OwnImages.declared() if name in training}
    given = {name: value for name, value in asked.given().items() if name in OwnImages.declared()}
    # As they were recorded: `mlflow run` does so as they were given, such as none, None or NONE.
    data = sets.load_data(
        sets.TrainingData(
            dataset=training["dataset"],
            data_dir=asked.data_dir or training["data_dir"],
            per_class=asked.per_class or training["per_class"],  # type: ignore[arg-type]
            data_seed=int(float(training["data_seed"])),
            # Runs from before there was a parameter are as at its default.
            validation_share=float(training.get("validation_share", 0)),
            **recorded | given,
        )
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

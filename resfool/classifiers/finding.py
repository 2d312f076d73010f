"""Models and images for an experiment, as its parameters name them."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from resfool.archive import Archive, ModelSource, as_given, is_address
from resfool.classifiers import files, rehearsal
from resfool.classifiers.interface import Allowed, Interface
from resfool.datasets import kinds, sets
from resfool.declarations import Needs, without_effect
from resfool.errors import DataWarning, InputError
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
        bool,
        "yes also loads models that bring code of their own, which may do anything, and takes "
        "those whose outputs differ from pass to pass.",
    ] = False
    modules: Annotated[
        Names | None,
        Needs(trust=(True,)),
        "with trust=yes, where its own classes are: names that Python can import or paths of .py "
        "files, comma separated.",
    ] = None

    def check(self) -> None:
        """Refuse a data set that nobody knows."""
        super().check()
        if self.dataset is not None:
            sets.check_known(self.dataset)

    def check_effects(self) -> None:
        """Refuse what means nothing to the data set, too."""
        super().check_effects()
        if self.dataset is not None:
            kinds.check_use(self.dataset, self, sets.DATASETS)

    def check_places(self) -> None:
        """Refuse files and folders that are not what they should be."""
        super().check_places()
        if self.dataset is not None:
            sets.check_given(self.dataset, self)
        find_models(Archive(), [uri for uri in self.models if not is_address(uri)], self.trust)

    @property
    def models(self) -> tuple[str, ...]:
        """Where they are."""
        return ()

    @property
    def allowed(self) -> Allowed:
        """What is taken beside the usual: with trust, models that differ from pass to pass."""
        return Allowed(random=self.trust)


class OneModel(AnyModel):
    """A model, and images for it."""

    model: Annotated[str, f"{_MODEL}."]

    @property
    def models(self) -> tuple[str, ...]:
        """Where it is."""
        return (self.model,)


class Models(AnyModel):
    """Models, and images for them."""

    model: Annotated[
        Addresses,
        f"{_MODEL}; several, comma separated, are compared. A file's path may have commas.",
    ]

    @property
    def models(self) -> tuple[str, ...]:
        """Where they are."""
        return self.model


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
            with as_given(source.uri, source.path):
                files.check(files.find_file(source.path))
    return sources


@dataclass(frozen=True)
class _Loading:
    """How a classifier is loaded, here or in another process.

    Attributes:
        source: where it is.
        name: that it shall have.
        image_shape: (H, W, C) of the images that it must take.
        classes: that it must have; None takes the model's.
        asked: how to load it.
    """

    source: ModelSource
    name: str
    image_shape: tuple[int, int, int]
    classes: int | None
    asked: AnyModel

    def __call__(self) -> rehearsal.Told:
        """Load and run it in another process; what was seen of it."""
        from resfool.classifiers import adapting

        return asdict(adapting.look(self.model(), **self._fitting()))

    def model(self) -> "keras.Model":
        """The model as it is stored."""
        if self.asked.trust:
            loader, modules = self.source.load_trusted, self.asked.modules or ()
            return files.load_trusted(self.source.path, loader, modules)
        return files.load(self.source.path)

    def classifier(self, model: "keras.Model", told: rehearsal.Told) -> "keras.Model":
        """That model, from images in [0, 1] to logits.

        Args:
            model: as it is stored.
            told: what was seen of it in another process; empty where it was refused there.
        """
        from resfool.classifiers import adapting, endings

        seen = endings.Seen(**told) if told else None
        return adapting.as_classifier(model, **self._fitting(), name=self.name, seen=seen)

    def _fitting(self) -> dict[str, Any]:
        """What it must fit."""
        return {
            "image_shape": self.image_shape,
            "classes": self.classes,
            "interface": interface_of(self.source, self.asked),
            "allowed": self.asked.allowed,
        }


def load_classifiers(
    sources: Sequence[ModelSource], names: Sequence[str], data: sets.Dataset, asked: AnyModel
) -> "list[keras.Model]":
    """Several classifiers in the order given, as `load_classifier` gives one."""
    classes = data.classes if data.exact else None
    loadings = [
        _Loading(source, name, data.image_shape, classes, asked)
        for source, name in zip(sources, names, strict=True)
    ]
    # All of them before one is loaded here, which starts TensorFlow: it takes longer then.
    told = [rehearsal.rehearse(f"model={each.source.uri}", each) for each in loadings]
    return [_loaded(*each, data) for each in zip(loadings, told, strict=True)]


def _loaded(loading: _Loading, told: rehearsal.Told, data: sets.Dataset) -> "keras.Model":
    with as_given(loading.source.uri, loading.source.path):
        model = loading.model()
    try:
        classifier = loading.classifier(model, told)
        _check_labels(data, classifier.output_shape[-1])
    except InputError as error:
        hint = _size_hint(model, data)
        uri = loading.source.uri
        raise InputError(f"model={uri} doesn't fit {data.name}: {error}{hint}") from error
    return classifier


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
        InputError: it can't be loaded, takes more than it may, or doesn't fit the data.
    """
    (classifier,) = load_classifiers([source], [name], data, asked)
    return classifier


def _size_hint(model: "keras.Model", data: sets.Dataset) -> str:
    """The size that pictures could be brought to, if the model takes another one than they have."""
    kind = kinds.kind_of(data.name)
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


def _check_interface(sources: Sequence[ModelSource], asked: AnyModel) -> None:
    """Refuse to say how models take images of which all are known to take them as they are."""
    for name in Interface.declared().keys() & asked.given().keys():
        if all(source.training for source in sources):
            of_ours = f"model={sources[0].uri}, which was trained here and takes pixels as they are"
            value = getattr(asked, name)
            raise without_effect(name, value, of_ours, "a model from elsewhere")


def load_data(sources: Sequence[ModelSource], asked: AnyModel) -> sets.Dataset:
    """The data set that was asked for, or else the one that the models were trained on.

    Raises:
        InputError: it can't be loaded, isn't known, or isn't that of all models.
    """
    _check_interface(sources, asked)
    if asked.dataset is not None:
        return sets.loaded(asked.dataset, asked)
    stranger = next((source.uri for source in sources if not source.training), None)
    if stranger is not None:
        raise InputError(
            f"dataset is missing, and model={stranger} has no training run of this project that "
            f"would tell; give dataset=, one of {sets.OWN_OR_NAMED}"
        )
    data = _trained_on(sources[0], asked)
    for source in sources:
        digest = source.training["dataset_digest"]
        if digest != data.digest:
            raise InputError(
                f"model={source.uri} was trained on other data ({source.training['dataset']}, "
                f"digest {digest}) than what was found here ({data.name}, digest {data.digest}); "
                f"to use the latter all the same, say so: dataset={data.name}"
            )
    return data


def _trained_on(source: ModelSource, asked: AnyModel) -> sets.Dataset:
    """What a model was trained on; where that is and how it is read may be given.

    Raises:
        InputError: it can't be loaded, or what was recorded of the training isn't allowed.
    """
    # Runs from before there was a parameter are as at its default. `mlflow run` records values as
    # they were given, such as none, None or NONE.
    names = sets.TrainingData.declared()
    recorded = {name: value for name, value in source.training.items() if name in names}
    places = {name: getattr(asked, name) for name in ("data_dir", "per_class")}
    given = {name: value for name, value in asked.given().items() if name in OwnImages.declared()}
    given |= {name: value for name, value in places.items() if value}
    try:
        return sets.load_data(sets.TrainingData.recalled(recorded | given))
    except InputError as error:
        raise InputError(
            f"the data that model={source.uri} was trained on can't be used: {error}; dataset= "
            "names others"
        ) from error

"""Universal perturbations on other models than the one that each was fitted on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resfool import devices
from resfool.archive import Archive, PerturbationSource
from resfool.arrayfiles import open_plain, read_npy, using
from resfool.attacks import lowrank
from resfool.classifiers.finding import find_models, load_classifiers, load_data
from resfool.datasets import sets
from resfool.datasets.sets import choose
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.universal.options import TransferParameters
from resfool.values import Norm, Row
from resfool.wording import distinct_names, metric_keys


@dataclass(frozen=True)
class Transfer:
    """How well P universal perturbations fool M models.

    Attributes:
        perturbations: their names.
        models: their names.
        where: the images, such as "mnist5k test".
        images: how many.
        l2_norms: float64 (P,), of the perturbations as they were applied.
        linf_norms: float64 (P,).
        rates: by name, float64 (P, M) each: fooling_rate and error_rate, the same with clipping
            (clipped_...) and under Gaussian noise of the same l2 norm (random_...), the ends of
            their 95% intervals (..._low and ..._high), and clean_accuracy.
    """

    perturbations: list[str]
    models: list[str]
    where: str
    images: int
    l2_norms: np.ndarray
    linf_norms: np.ndarray
    rates: dict[str, np.ndarray]


def transfer(
    asked: TransferParameters, monitor: Monitor | None = None, archive: Archive | None = None
) -> Transfer:
    """Measure how well universal perturbations fool models that they may not be fitted on.

    Each is added to the same images for every model, with and without clipping, beside Gaussian
    noise of its l2 norm: one draw, scaled.

    Args:
        asked: the parameters.
        monitor: is told how it goes.
        archive: finds models and perturbations.

    Raises:
        InputError: an argument can't be used, or a model can't be loaded; nothing was run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the models that were done are recorded.
    """
    monitor, archive = monitor or Monitor(), archive or Archive()
    # Not in `check`: the command `attack` makes these parameters where it transfers nothing, too.
    if asked.perturbation is None:
        raise InputError(
            "perturbation is missing; give perturbation=runs:/RUN_ID of a universal run, or a "
            ".npy file"
        )
    sources = find_models(archive, asked.model, asked.trust)
    found = [archive.find_perturbation(uri) for uri in dict.fromkeys(asked.perturbation)]
    data = load_data(sources, asked)
    vectors = np.stack([_load(source, data, asked.norm) for source in found])
    chosen = choose(data, asked.split, asked.samples, asked.seed)

    devices.import_keras()
    from resfool.attacks.memory import enough_for, images_per_pass
    from resfool.classifiers import inference
    from resfool.universal import judging

    names = distinct_names([source.name for source in sources])
    perturbations = distinct_names([source.name for source in found])
    loaded = load_classifiers(sources, names, data, asked)
    facts = asked.settings() | {
        "perturbation_name": tuple(perturbations),
        "dataset": data.name,
        "dataset_digest": data.digest,
        "attacked_images": len(chosen),
    }
    where = f"{data.name} {asked.split}"
    title = f"{', '.join(perturbations)} applied to {', '.join(names)}, {where}"
    monitor.begin(title, facts, [(data.outline, asked.split, "attacked")])
    sizes = {f"{kind}_norm": lowrank.sizes(vectors, kind) for kind in ("l2", "linf")}
    passes = judging.passes_of_transferred(len(chosen), len(vectors))
    by_model = []
    for number, (source, name, classifier) in enumerate(zip(sources, names, loaded, strict=True)):
        with monitor.part_of(names, number, facts | {"model": source.uri}) as part:
            size = images_per_pass(asked.batch_size, classifier, len(chosen), part)
            with enough_for(inference.even(len(chosen), size)):
                rows = judging.transferred(
                    classifier,
                    chosen.images,
                    chosen.labels,
                    vectors,
                    seed=asked.seed,
                    batch_size=size,
                    progress=monitor.counter(len(names) * passes, name, number * passes),
                )
            part.fact("model_name", name)
            part.fact("parameter_count", classifier.count_params())
            part.point({"step": 0} | _metrics(perturbations, rows, sizes))
            by_model.append(rows)
    rates = {
        key: np.array([[row[key] for row in rows] for rows in by_model]).T for key in by_model[0][0]
    }
    l2, linf = sizes["l2_norm"], sizes["linf_norm"]
    return Transfer(perturbations, names, where, len(chosen), l2, linf, rates)


def _load(source: PerturbationSource, data: sets.Dataset, norm: Norm) -> np.ndarray:
    """A perturbation that fits a data set's images, float32 (H, W, C), rescaled to a norm."""
    given = f"perturbation={source.uri}"
    with using(given), open_plain(source.path, os.O_RDONLY, follow=True) as file:
        stored = read_npy(file)
    whole = stored.shape
    if len(whole) == 4 and len(stored) == 1:
        stored = stored[0]
    if stored.shape != data.image_shape:
        raise InputError(
            f"{given} has the shape {whole}, and the images of {data.name} have "
            f"{data.image_shape}{_how_to_fit(whole, data.image_shape)}"
        )
    if stored.dtype.kind != "f":
        raise InputError(
            f"{given} holds {stored.dtype}; it must hold floats, in pixel units: divide bytes by "
            "255"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        vector = stored.astype(np.float32)
        if not np.isfinite(vector).all():
            raise InputError(f"{given} has values that are not finite")
        rescaled = lowrank.rescaled(vector[np.newaxis], norm)
        if norm.kind != "none" and not np.allclose(lowrank.sizes(rescaled, norm.kind), norm.size):
            raise InputError(f"{given} is too close to zero to be rescaled to norm={norm}")
    largest = float(np.abs(rescaled).max())
    if largest > 1 and norm.kind == "none" and not source.in_pixels:
        signed = " or by 2 if its pixels go from -1 to 1" if largest <= 2 else ""
        raise InputError(
            f"{given} has values up to {largest:.4g}, and pixels go from 0 to 1 here; divide it by "
            f"255 if it is of bytes{signed}, or say how large it shall be, as by norm=linf:10/255"
        )
    return rescaled[0]


def _how_to_fit(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What makes a perturbation of one shape one of another, if little does, for a sentence."""
    if len(shape) == 4 and shape[1:] == wanted:
        return f"; it holds {shape[0]}, of which each must have a file of its own"
    if shape[-3:] == (wanted[2], *wanted[:2]):
        return "; its channels must come last"
    return ""


def _metrics(
    perturbations: Sequence[str], rows: Sequence[Row], sizes: Mapping[str, np.ndarray]
) -> Row:
    """A model's figures by name; of several perturbations, as fooling_rate/NAME."""
    norms = [{key: float(size[n]) for key, size in sizes.items()} for n in range(len(rows))]
    whole = [row | own for row, own in zip(rows, norms, strict=True)]
    if len(whole) == 1:
        return whole[0]
    found = {"clean_accuracy": rows[0]["clean_accuracy"]}
    for name, row in zip(metric_keys(perturbations), whole, strict=True):
        for key, value in row.items():
            if key != "clean_accuracy" and not key.endswith(("_low", "_high")):
                # MLflow's charts have a section for all metrics before the same slash.
                found[f"{key}/{name}"] = value
    return found

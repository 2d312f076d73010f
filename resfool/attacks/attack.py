"""Attacking classifiers along the sign of their loss gradient (sections VI.A, VII)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resfool import comparing, devices, identity
from resfool.classifiers.finding import distinct_names, find_models, load_classifiers, load_data
from resfool.datasets import sets
from resfool.datasets.sets import choose
from resfool.monitor import ModelSource, Monitor
from resfool.parameters import (
    Counts,
    Epsilon,
    Epsilons,
    LabelSource,
    Method,
    Names,
    Part,
    PixelRange,
    PositiveCount,
    PositiveFloat,
    Seed,
    epsilon_step,
)

if TYPE_CHECKING:
    from resfool.attacks import examples

# In pixel units: from what nobody sees to what is mostly noise.
EPSILONS = (0, *(n / 255 for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)))

# Is told a model's part of the monitor, where it came from, its result, data set and split.
Record = Callable[[Any, ModelSource, "examples.Attacked", sets.Dataset, Part], None]


def _no_record(*arguments: Any) -> None:
    pass


def attack(
    monitor: Monitor | None = None,
    record: Record = _no_record,
    /,
    *,
    model: Names,
    method: Method = "fgsm",
    epsilons: Epsilons = EPSILONS,
    dataset: str | None = None,
    data_dir: str | None = None,
    per_class: Counts | None = None,
    data_seed: Seed = 0,
    split: Part = "test",
    samples: PositiveCount | None = None,
    label_source: LabelSource = "true",
    input_range: PixelRange = (0.0, 1.0),
    clip: bool = True,
    tolerance: PositiveFloat = 1e-4,
    pgd_steps: PositiveCount = 20,
    pgd_step_size: Epsilon | None = None,
    seed: Seed = 0,
    batch_size: PositiveCount = 250,
    trust: bool = False,
) -> list["examples.Attacked"]:
    """Measure how easily classifiers are fooled along the sign of their loss gradient (equation 5).

    Args:
        monitor: is told how it goes, and finds models.
        record: is given each model's result, and what it belongs to, as soon as it is there.
        model: runs:/RUN_ID/model, models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or the
            path of a .keras file; several, comma separated, are compared.
        method: fgsm, smallest_epsilon (also finds each image's own) or pgd (many small steps).
        epsilons: largest changes of a pixel, where pixels go from 0 to 1, such as 0,8/255,0.1.
        dataset: cifar10, mnist, mnist5k, digits or npz:PATH; none is what the model was trained on.
        data_dir: folder with the official files; none looks where the training did.
        per_class: images per class for training, validation and test, such as 500,50,50; none is as
            in the training.
        data_seed: seed of such subsets.
        split: part of the data set to take images from: test, validation or train.
        samples: number of images, drawn at random; none is 1000, or all if there are fewer.
        label_source: raise the loss of the true label, or of the model's own prediction.
        input_range: pixel values that the model takes for black and white, such as 0,255; models
            trained here know their own.
        clip: keep perturbed images within the range of pixels.
        tolerance: of the smallest epsilon, where pixels go from 0 to 1.
        pgd_steps: gradient steps of pgd.
        pgd_step_size: length of one; none is 2.5 epsilon / pgd_steps.
        seed: seed of the choice of images, of the random signs and of pgd's starts.
        batch_size: images per pass.
        trust: yes also loads models that bring code of their own, which may do anything.

    Returns:
        A result for each model, in the order given.

    Raises:
        InputError: an argument can't be used, or a model can't be attacked; nothing was run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the models that were done are recorded.
    """
    settings = {n: v for n, v in locals().items() if n not in ("monitor", "record")}
    monitor = monitor or Monitor()
    sources = find_models(monitor, model, trust)
    data = load_data(sources, dataset, data_dir, per_class, data_seed)
    chosen = choose(data, split, samples, seed)

    devices.start_tensorflow()
    from resfool.attacks import examples
    from resfool.attacks.epsilons import sweep

    names = distinct_names([source.name for source in sources])
    loaded = load_classifiers(sources, names, data, input_range, trust)
    facts = (
        settings
        | {
            "dataset": data.name,
            "dataset_digest": data.digest,
            "attacked_images": len(chosen),
        }
        | identity.facts("attack", settings, data.digest)
    )
    title = f"{method} on {', '.join(names)}, {data.name} {split}"
    monitor.begin(title, facts, [(data, split, "attacked")])
    results = []
    for number, (source, name, classifier) in enumerate(zip(sources, names, loaded, strict=True)):
        own = identity.facts("attack", settings | {"model": (source.uri,)}, data.digest)
        with comparing.part(monitor, names, number, facts | own | {"model": source.uri}) as part:
            swept = sweep(
                classifier,
                chosen.images,
                chosen.labels,
                epsilons,
                method=method,
                label_source=label_source,
                clip=clip,
                tolerance=tolerance,
                pgd_steps=pgd_steps,
                pgd_step_size=pgd_step_size,
                seed=seed,
                batch_size=batch_size,
                progress=comparing.progress(monitor, names, number),
            )
            part.fact("model_name", name)
            part.fact("parameter_count", classifier.count_params())
            for row in swept.rows:
                part.point({"step": epsilon_step(row["epsilon"])} | row)
            attacked = examples.attacked(
                name, f"{data.name} {split}", data.class_names, swept, seed
            )
            record(part, source, attacked, data, split)
            results.append(attacked)
    return results

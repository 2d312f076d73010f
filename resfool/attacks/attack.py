"""Attacking classifiers along the sign of their loss gradient (sections VI.A, VII)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resfool import devices, identity
from resfool.archive import Archive, ModelSource
from resfool.attacks.options import AttackParameters
from resfool.classifiers.finding import find_models, load_classifiers, load_data
from resfool.datasets import sets
from resfool.monitor import Monitor
from resfool.values import Part, epsilon_step
from resfool.wording import distinct_names

if TYPE_CHECKING:
    from resfool.attacks.examples import Attacked

# Is told a model's part of the monitor, where it came from, its result, data set and split.
Record = Callable[[Any, ModelSource, "Attacked", sets.Dataset, Part], None]


def no_record(*arguments: Any) -> None:
    """Keep nothing."""


def attack(
    asked: AttackParameters,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    record: Record = no_record,
) -> list["Attacked"]:
    """Measure how easily classifiers are fooled along the sign of their loss gradient (equation 5).

    Args:
        asked: which models, by which method, on which images.
        monitor: is told how it goes.
        archive: finds models.
        record: is given each model's result, and what it belongs to, as soon as it is there.

    Returns:
        A result for each model, in the order given.

    Raises:
        InputError: a model can't be attacked, or there are no such images; nothing was run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the models that were done are recorded.
    """
    monitor = monitor or Monitor()
    settings = asked.settings()
    sources = find_models(archive or Archive(), asked.model, asked.trust)
    data = load_data(sources, asked)
    chosen = sets.choose(data, asked.split, asked.samples, asked.seed)
    asked.check_affordable(chosen.known)
    asked.check_images(data.image_shape)

    devices.import_keras()
    from resfool.attacks.epsilons import over_epsilons
    from resfool.attacks.examples import attacked
    from resfool.attacks.memory import enough_for, images_per_pass
    from resfool.classifiers import inference

    names = distinct_names([source.name for source in sources])
    loaded = load_classifiers(sources, names, data, asked)
    of_data = {"dataset": data.name, "dataset_digest": data.digest, "attacked_images": len(chosen)}
    facts = settings | of_data | identity.facts("attack", settings, data.digest)
    where = f"{data.name} {asked.split}"
    title = f"{asked.method} on {', '.join(names)}, {where}"
    outline = data.outline
    monitor.begin(title, facts, [(outline, asked.split, "attacked")])
    passes = asked.passes_of(len(chosen))
    results = []
    for number, (source, name, classifier) in enumerate(zip(sources, names, loaded, strict=True)):
        own = identity.facts("attack", settings | {"model": (source.uri,)}, data.digest)
        with monitor.part_of(names, number, facts | own | {"model": source.uri}) as part:
            size = images_per_pass(
                asked.batch_size, classifier, len(chosen), part, solving=asked.pursues
            )
            with enough_for(inference.even(len(chosen), size)):
                curve = over_epsilons(
                    classifier,
                    chosen.images,
                    chosen.labels,
                    asked,
                    seed=asked.seed,
                    batch_size=size,
                    progress=monitor.counter(len(names) * passes, name, number * passes),
                )
                class_names = data.names_of(classifier.output_shape[-1])
                result = attacked(name, where, class_names, curve, asked.seed)
            part.fact("model_name", name)
            part.fact("parameter_count", classifier.count_params())
            for row in curve.rows:
                part.point({"step": epsilon_step(row["epsilon"])} | row)
            record(part, source, result, outline, asked.split)
            results.append(result)
    return results

"""Attacking classifiers along the sign of their loss gradient (sections VI.A, VII)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from resfool import devices, identity
from resfool.archive import Archive, ModelSource
from resfool.attacks.options import AttackParameters, HowToAttack
from resfool.classifiers.finding import find_models, interface_of, load_classifiers, load_data
from resfool.datasets import sets
from resfool.datasets.lazy import ImageRows
from resfool.errors import expanded
from resfool.monitor import Monitor
from resfool.values import Part, epsilon_step, show
from resfool.wording import distinct_names

if TYPE_CHECKING:
    import keras

    from resfool.attacks.examples import Attacked
    from resfool.classifiers.keeping import Kept
    from resfool.classifiers.spreading import Blocks, Map

# Is told a model's part of the monitor, where it came from, its result, data set and split.
Record = Callable[[Any, ModelSource, "Attacked", sets.Dataset, Part], None]


def no_record(*arguments: Any) -> None:
    """Keep nothing."""


def attack(
    asked: AttackParameters,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    record: Record = no_record,
    map: "Map | None" = None,
) -> list["Attacked"]:
    """Measure how easily classifiers are fooled along the sign of their loss gradient (equation 5).

    Args:
        asked: which models, by which method, on which images.
        monitor: is told how it goes.
        archive: finds models.
        record: is given each model's result, and what it belongs to, as soon as it is there.
        map: runs blocks of images in workers, such as `parallel.map`; None has none.

    Returns:
        A result for each model, in the order given.

    Raises:
        InputError: a model can't be attacked, or there are no such images; nothing was run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the models that were done are recorded, and of
            another one the blocks of images that were done are kept for the same command.
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
    from resfool.attacks.found import blocks_of
    from resfool.attacks.memory import enough_for, images_per_pass
    from resfool.attacks.sharing import workers_for
    from resfool.classifiers import inference
    from resfool.classifiers.keeping import identity_of, settle

    names = distinct_names([source.name for source in sources])
    loaded = load_classifiers(sources, names, data, asked)
    images = ImageRows(chosen)
    images.check()
    parts = blocks_of(images, chosen.labels, asked, None)
    keeps = [
        _Keeping(
            asked,
            identity_of(classifier, data.image_shape, interface_of(source, asked)),
            data.digest,
            parts,
            classifier.output_shape[-1],
        )
        for source, classifier in zip(sources, loaded, strict=True)
    ]
    for keeping in keeps:
        keeping.check()
    of_data = {"dataset": data.name, "dataset_digest": data.digest, "attacked_images": len(chosen)}
    facts = settings | of_data | identity.facts("attack", settings, data.digest)
    where = f"{data.name} {asked.split}"
    title = f"{asked.method} on {', '.join(names)}, {where}"
    outline = data.outline
    monitor.begin(title, facts, [(outline, asked.split, "attacked")])
    passes = asked.passes_of(len(chosen))
    results = []
    for number, (source, name, classifier, keeping) in enumerate(
        zip(sources, names, loaded, keeps, strict=True)
    ):
        own = identity.facts("attack", settings | {"model": (source.uri,)}, data.digest)
        with monitor.part_of(names, number, facts | own | {"model": source.uri}) as part:
            size = images_per_pass(
                asked.batch_size, classifier, parts.size, part, solving=asked.pursues
            )
            workers = workers_for(
                classifier,
                parts,
                asked,
                map,
                part,
                batch_size=size,
                chosen=len(parts) > 1 and _long(classifier, asked, len(chosen)),
            )
            part.fact("attacked_by", "one process" if workers is None else "workers")
            kept = keeping.kept[workers is not None]
            if done := sum(parts.count(number) for number in kept.done()):
                part.say(f"going on with an interrupted attack, of which {done} images are done")
            with enough_for(inference.even(parts.size, size)):
                curve = over_epsilons(
                    classifier,
                    images,
                    chosen.labels,
                    asked,
                    seed=asked.seed,
                    batch_size=size,
                    block=parts.most,
                    workers=workers,
                    kept=kept,
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
            settle(kept.stored, curve)
    return results


_NAME = "attack-"  # of a folder, before its digest
_PASSES_OF_SOLVE = 300  # of an image, as far as workers pay: two threads share large passes well


@dataclass(frozen=True)
class _Keeping:
    """Where blocks of a model's images are kept once they are done.

    Attributes:
        asked: of the attack.
        model: what tells it from others.
        data: its digest.
        parts: blocks of the images.
        classes: of the model.
    """

    asked: AttackParameters
    model: Mapping[str, Any]
    data: str
    parts: "Blocks"
    classes: int

    def check(self) -> None:
        """Refuse what an interrupted attack can't have left.

        Raises:
            InputError: it isn't what it should be.
        """
        if any(expanded(self.asked.solve_dir).glob(f"{_NAME}*")):
            for kept in self.kept.values():
                kept.done()

    @cached_property
    def kept(self) -> dict[bool, "Kept"]:
        """The folders, by whether workers do it, whose threads are of a number."""
        return {spread: self._kept(spread) for spread in (False, True)}

    def _kept(self, spread: bool) -> "Kept":
        """The folder, which is named by all that decides what is in it."""
        from resfool.attacks.found import LARGE, check_block
        from resfool.attacks.memory import largest
        from resfool.classifiers.keeping import Kept, digest

        asked = self.asked
        threads = [asked.cpus_per_worker, asked.gpus_per_worker] if spread else None
        problem: dict[str, Any] = {
            name: show(value) for name, value in asked.shared(HowToAttack).items()
        }
        problem |= {n: show(getattr(asked, n)) for n in ("split", "samples", "seed")}
        problem |= {**self.model, "data": self.data, "code": identity.VERSIONS["attack"]}
        problem |= {"batch_size": largest(asked.batch_size)}
        problem |= {"block": self.parts.size, "threads": threads}
        folder = expanded(asked.solve_dir)
        name = f"{_NAME}{digest(json.dumps(problem, sort_keys=True))}"
        shape, epsilons = self.parts.arrays[0][:1].shape[1:], len(asked.positive_epsilons)
        own: Any = {"shape": shape, "classes": self.classes, "epsilons": epsilons}
        return Kept(folder / name, self.parts, LARGE, partial(check_block, **own))


def _long(model: "keras.Model", asked: AttackParameters, count: int) -> bool:
    """Whether an attack is worth the start of workers: decided by the work alone."""
    from resfool.classifiers import spreading

    slow = asked.way is not None and asked.way.slow
    return slow or spreading.pays(model, count * asked.passes_each / _PASSES_OF_SOLVE)

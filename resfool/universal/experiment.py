"""One perturbation for all images (section VI): fitted on training images, judged on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool import devices, identity
from resfool.archive import Archive, as_given
from resfool.classifiers.finding import find_models, interface_of, load_classifier, load_data
from resfool.datasets.lazy import ImageRows
from resfool.datasets.sets import Split, draw
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.universal.options import UniversalParameters
from resfool.values import Row, show

if TYPE_CHECKING:
    from resfool.attacks.minimal import Outcome
    from resfool.universal.judging import Judged, Ranked, Verdict
    from resfool.universal.matrices import Matrix
    from resfool.universal.prediction import Prediction
    from resfool.universal.screening import Patterns
    from resfool.universal.work import Work

_CHOICE = "passes to choose the best pattern"
_SHOWN = 6  # images that a figure has


@dataclass(frozen=True)
class Fooling:
    """A universal perturbation and how it was found and judged.

    Attributes:
        name: of the model.
        where: the images it was judged on, such as "mnist5k test".
        class_names: by class.
        asked: the experiment's parameters.
        verdict: the perturbation on held-out images.
        ranked: fooling rates over the number of singular vectors; None where there is no matrix.
        matrix: of Algorithms 2, 3 and 4; None for the others.
        singular_values: of the matrix, largest first, and of a random one with the same row norms.
        fit_rates: the fooling rate on the fitting images after each pass (Algorithm 1, gradient).
        patterns: the best patterns of the same norms, on the same held-out images.
        tried: all patterns (patterns) or layers (singular), a row each.
        identity: what a matrix must have in common with a run that uses it again.
        target: class that images of others should become; None if there was none.
        pictures: a few of the images worth a look, float32 (H, W, C), by their numbers.
        prediction: of Algorithm 2's singular values; None of others', or if the matrix isn't known
            to be of the fitting images.
        left_out: what the spectrum may lack, for people; empty if it is whole.
    """

    name: str
    where: str
    class_names: tuple[str, ...]
    asked: UniversalParameters
    verdict: "Verdict"
    ranked: "Ranked | None"
    matrix: "Matrix | None"
    singular_values: tuple[np.ndarray, np.ndarray] | None
    fit_rates: list[float]
    patterns: "Patterns"
    tried: Sequence[dict[str, Any]]
    identity: dict[str, Any]
    target: int | None
    pictures: Mapping[int, np.ndarray]
    prediction: "Prediction | None" = None
    left_out: str = ""

    @property
    def rates(self) -> Row:
        """Rates and norms of the perturbation, of noise and of the best patterns."""
        found = self.verdict.rates | self.patterns.rates
        if self.target is None:
            return found
        success = self.verdict.success_rates(self.target)
        return found | success | self.patterns.success_rates(self.target)

    @property
    def solved(self) -> "Outcome | None":
        """How the fitting images' smallest perturbations were found, if Algorithm 2 did it now."""
        return None if self.matrix is None else self.matrix.solved

    def settle(self) -> None:
        """Say that it is recorded: what an interrupted run would go on with goes when this does."""
        if self.matrix is not None:
            self.matrix.settle()


def universal(
    asked: UniversalParameters,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    map: Callable[..., list[Any]] | None = None,
) -> Fooling:
    """Fit one perturbation for all images and judge it on held-out ones (section VI.B).

    Args:
        asked: the parameters.
        monitor: is told how it goes.
        archive: finds the model, and the matrix of an earlier run.
        map: runs blocks of images in workers, such as `parallel.map`; None has none.

    Raises:
        InputError: an argument can't be used; nothing was solved.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was solved is kept for the same command.
    """
    monitor, archive = monitor or Monitor(), archive or Archive()
    (source,) = find_models(archive, [asked.model], asked.trust)
    data = load_data([source], asked)
    use = "universal fits on training images and judges on test images"
    data.check_has("train", use)
    data.check_has("test", use)
    fitting = _chosen(data.train, asked.samples, asked.seed, f"training images of {data.name}")
    held_out = _chosen(
        data.test, asked.test_samples, asked.seed, f"test images of {data.name}", "test_samples"
    )
    asked.check_affordable(min(fitting, held_out, key=len).known)
    asked.check_fits(data.image_shape)
    path = None if asked.matrix is None else archive.find_matrix(asked.matrix)

    devices.import_keras()
    from resfool.attacks.memory import enough_for, images_per_pass, largest
    from resfool.classifiers import inference, reaching
    from resfool.classifiers.keeping import identity_of
    from resfool.universal import judging, screening, target_class
    from resfool.universal.matrices import read_matrix
    from resfool.universal.solving import check_kept
    from resfool.universal.work import Work

    model = load_classifier(source, source.name, data, asked)
    if asked.layer is not None:
        reaching.named(model, asked.layer)  # refused before a run begins, too
    same = identity_of(model, data.image_shape, interface_of(source, asked))
    names, target, judge, moved = data.names_of(model.output_shape[-1]), None, model, held_out
    if asked.target is not None:
        target = target_class.number_of(asked.target, names)
        judge = target_class.reached(model, target)
        fitting, moved = (
            split.chosen(
                target_class.of_other_classes(
                    model, ImageRows(split), target, largest(asked.batch_size)
                )
            )
            for split in (fitting, held_out)
        )
    images, matrix = ImageRows(fitting), None
    labels = fitting.labels if asked.label_source == "true" else None
    if asked.matrix is not None and path is not None:
        with as_given(asked.matrix, path):
            matrix = read_matrix(path, f"matrix={asked.matrix}", same, asked.made_by)
    elif asked.procedure.makes_matrix:
        check_kept(asked, same, images, labels, judge)
    settings = asked.settings()
    facts = settings | identity.facts("universal", settings, data.digest)
    facts |= {"model_name": source.name, "dataset": data.name, "dataset_digest": data.digest}
    title = f"universal {asked.algorithm} on {source.name}, {data.name}"
    outline = data.outline
    monitor.begin(title, facts, [(outline, "train", "fitted"), (outline, "test", "judged")])
    most = max(len(fitting), len(held_out))
    solving = "solver" in asked.procedure.takes
    size = images_per_pass(asked.batch_size, model, most, monitor, solving=solving)
    judged_on = ImageRows(held_out)
    seen = judged_on if moved is held_out else ImageRows(moved)
    work = Work(model, judge, fitting, images, seen, asked, same, monitor, map, size, target)
    ranked, spectra, prediction, left_out, rates, tried = None, None, None, "", [], ()
    with enough_for(inference.even(most, size)):
        if asked.procedure.makes_matrix:
            matrix = matrix or _fitted_matrix(work)
            ranked, spectra, left_out = _approximated(work, matrix)
            prediction = _predicted(work, matrix, spectra[1])
            vector = ranked.vector
        else:
            fit = asked.procedure.fit(work)
            vector, rates, tried = fit.vector, fit.rates, fit.tried
        options: Any = {"seed": asked.seed, "batch_size": size}
        verdict = judging.verdict(model, judged_on, vector, **options)
        advance = monitor.counter(2 * work.screen.passes, _CHOICE)
        patterns = screening.beside(work.screen, model, judged_on, vector, advance)
    return Fooling(
        name=source.name,
        where=f"{data.name} test",
        class_names=names,
        asked=asked,
        verdict=verdict,
        ranked=ranked,
        matrix=matrix,
        singular_values=spectra,
        fit_rates=rates,
        patterns=patterns,
        tried=tried,
        identity=same | asked.made_by,
        target=target,
        pictures=_worth_a_look(verdict.universal, judged_on, target),
        prediction=prediction,
        left_out=left_out,
    )


def _worth_a_look(found: "Judged", images: ImageRows, target: int | None) -> dict[int, np.ndarray]:
    """The first images that are fooled or, if there is a target, that become it."""
    moved = found.fooled != found.clean
    if target is not None:
        moved &= found.fooled == target
    return {int(number): images[number] for number in np.flatnonzero(moved)[:_SHOWN]}


def _chosen(
    split: Split, samples: int | None, seed: int, what: str, name: str = "samples"
) -> Split:
    return split.chosen(draw(len(split), samples, seed, what, name))


def _fitted_matrix(work: "Work") -> "Matrix":
    matrix: Matrix = work.asked.procedure.fit(work)
    if lost := matrix.dropped:
        work.monitor.say(f"no perturbation was found for {lost} of {len(work.fitting)} images")
    if not len(matrix.images):
        raise InputError("no perturbation was found for any image, so there is no matrix")
    return matrix


def _approximated(
    work: "Work", matrix: "Matrix"
) -> tuple["Ranked", tuple[np.ndarray, np.ndarray], str]:
    """Low-rank approximations, judged, the spectrum beside a random one's, and what it may lack."""
    from resfool.attacks import lowrank
    from resfool.universal import judging, screening

    asked, monitor = work.asked, work.monitor
    first = asked.coefficients == "first"
    most = max(asked.rank, *(asked.ranks or judging.RANKS))
    decomposition = lowrank.decompose(matrix.rows, kept=1 if first else most)
    if decomposition.missed:
        monitor.say(decomposition.missed)
        monitor.point({"step": 0, "left_out_stretch": decomposition.error})
    rank, note = lowrank.clamped(1 if first else asked.rank, decomposition)
    if note is not None:
        monitor.say(note)
    monitor.fact("numerical_rank", decomposition.numerical_rank)
    monitor.point({"step": 0, "energy_of_10_directions": decomposition.energy(10)})
    others = {n for n in asked.ranks or judging.RANKS if n <= decomposition.numerical_rank}
    ranks = [rank] if first else sorted(others | {rank})
    if lost := sorted(set(asked.ranks or ()) - others):
        most = decomposition.numerical_rank
        monitor.say(f"ranks={show(tuple(lost))} are left out: the matrix's rank is {most}")
    names = "equal_norm", "draws", "seed", "clip"
    options: Any = {name: getattr(asked, name) for name in names} | {"norm": asked.size}
    comparison = judging.Comparison(ranks, rank, asked.coefficients, **options)
    ranked = judging.over_ranks(
        work.judge,
        work.images,
        work.held_out,
        decomposition,
        comparison,
        batch_size=work.batch_size,
        progress=monitor.counter(comparison.vectors, "perturbations fitted and judged"),
    )
    norms: Any = {"norm": asked.size, "equal_norm": asked.equal_norm}
    choices = screening.choices(**norms)
    advance = monitor.counter(choices * work.screen.passes, _CHOICE)
    ranked = screening.beside_ranks(
        work.screen, work.held_out, ranked, rank, **norms, progress=advance
    )
    if work.target is not None:  # the judge's fooling rates are success rates
        rows = [{n.replace("fooling", "success"): r for n, r in row.items()} for row in ranked.rows]
        ranked = replace(ranked, rows=rows)
    for row in ranked.rows:
        monitor.point({"step": int(row["rank"])} | row)
    noise = lowrank.singular_values(lowrank.GaussianRows(matrix.rows, asked.seed))
    share = lowrank.energy(noise, 10, decomposition.squares)  # its rows have the same norms
    monitor.point({"step": 0, "random_energy_of_10_directions": share})
    return ranked, (decomposition.singular_values, noise), decomposition.missed


def _predicted(work: "Work", matrix: "Matrix", noise: np.ndarray) -> "Prediction | None":
    """What the network predicts of the spectrum of Algorithm 2's matrix, if it is of our images."""
    from resfool.classifiers import inference
    from resfool.universal import prediction

    if "solver" not in work.asked.procedure.takes:
        return None
    images = work.images
    if matrix.fitted_on != images.digest or matrix.images[-1] >= len(images):
        return None
    advance = work.monitor.counter(len(matrix.images), "images linearised")
    options: Any = {"batch_size": work.batch_size, "progress": advance, "clip": work.asked.clip}
    picked = inference.picked(images, matrix.images)
    return prediction.predicted(work.judge, matrix.rows, picked, noise, **options)

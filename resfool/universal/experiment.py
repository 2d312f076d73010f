"""One perturbation for all images (section VI): fitted on training images, judged on others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool import checkpoints, devices, identity
from resfool.classifiers.finding import find_models, load_classifier, load_data, range_of
from resfool.datasets import sets
from resfool.datasets.sets import draw
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.parameters import (
    Algorithm,
    Backend,
    Coefficients,
    Counts,
    Epsilon,
    LabelSource,
    NonNegativeFloat,
    Norm,
    PixelRange,
    PositiveCount,
    Seed,
    Share,
    SizedNorm,
    Solver,
    Subspace,
)
from resfool.universal.solving import Work, digest, solved_perturbations

if TYPE_CHECKING:
    from resfool.attacks.minimal import Minimal
    from resfool.universal import judging
    from resfool.universal.matrices import Matrix


_WITHOUT_MATRIX = ("1", "gradient", "random")
_PASSES = {"1": 6, "gradient": 20}  # over the fitting images


@dataclass(frozen=True)
class Universal:
    """A universal perturbation and how it was found and judged.

    Attributes:
        name: of the model.
        where: the images it was judged on, such as "mnist5k test".
        class_names: by class.
        settings: of the experiment.
        verdict: the perturbation on held-out images.
        ranked: fooling rates over the number of singular vectors; None where there is no matrix.
        matrix: of Algorithms 2, 3 and 4; None for the others.
        solved: the fitting images' smallest perturbations, if Algorithm 2 solved for them.
        singular_values: of the matrix, largest first, and of a random one with the same row norms.
        fit_rates: the fooling rate on the fitting images after each pass (Algorithm 1, gradient).
        identity: what a matrix must have in common with a run that uses it again.
    """

    name: str
    where: str
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    verdict: "judging.Verdict"
    ranked: "judging.Ranked | None"
    matrix: "Matrix | None"
    solved: "Minimal | None"
    singular_values: tuple[np.ndarray, np.ndarray] | None
    fit_rates: list[float]
    identity: dict[str, Any]


def universal(
    monitor: Monitor | None = None,
    map: Callable[..., list[Any]] | None = None,
    say: Callable[[str], None] = print,
    /,
    *,
    model: str,
    algorithm: Algorithm = "2",
    solver: Solver = "closest",
    subspace: Subspace = "gradients",
    matrix: str | None = None,
    epsilon: Epsilon = 8 / 255,
    label_source: LabelSource = "true",
    rank: PositiveCount = 10,
    ranks: Counts | None = None,
    coefficients: Coefficients = "gaussian",
    norm: SizedNorm = Norm("none"),  # noqa: B008
    equal_norm: SizedNorm = Norm("l2", 3.0),  # noqa: B008
    draws: PositiveCount = 20,
    desired_rate: Share = 0.8,
    passes: PositiveCount | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    per_class: Counts | None = None,
    data_seed: Seed = 0,
    samples: PositiveCount | None = None,
    test_samples: PositiveCount | None = None,
    input_range: PixelRange = (0.0, 1.0),
    seed: Seed = 0,
    batch_size: PositiveCount = 250,
    workers: PositiveCount | None = None,
    backend: Backend = "joblib",
    ray_address: str | None = None,
    patience: NonNegativeFloat = 0.0,
    solve_dir: str = "checkpoints",
    trust: bool = False,
) -> Universal:
    """Fit one perturbation for all images and judge it on held-out ones (section VI.B).

    Args:
        monitor: is told how it goes, and finds models and matrices.
        map: runs cobyla's samples in parallel.
        say: is told what the user should know.
        model: runs:/RUN_ID/model, models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or the
            path of a .keras file.
        algorithm: 1 to 4 as in the paper, or gradient or random, to compare with.
        solver: of the smallest perturbations (algorithms 1 and 2): closest, deepfool, ddn or
            cobyla.
        subspace: that cobyla searches: gradients, rows (of the first dense layer) or pixels (slow).
        matrix: runs:/RUN_ID of an earlier run, whose matrix of perturbations is used again.
        epsilon: length of the step of algorithm 3, where pixels go from 0 to 1.
        label_source: raise the loss of the true label, or of the model's own prediction (algorithms
            3 and 4).
        rank: number of singular vectors of the perturbation that is kept.
        ranks: others to judge beside it, such as 1,3; none is 1, 2, 3, 5, 10, 20, 30, 50 and 100.
        coefficients: f_i of equation 8: gaussian (variance 25), singular, first or optimised.
        norm: of the perturbation, such as l2:3 or linf:10/255; none leaves it as it comes.
        equal_norm: at which all ranks are compared too.
        draws: random perturbations of each rank.
        desired_rate: fooling rate on the fitting images at which algorithm 1 stops.
        passes: over the fitting images, at most; none is 6 (algorithm 1) or 20 (gradient).
        dataset: cifar10, mnist, mnist5k, digits or npz:PATH; none is what the model was trained on.
        data_dir: folder with the official files; none looks where the training did.
        per_class: images per class for training, validation and test, such as 500,50,50; none is as
            in the training.
        data_seed: seed of such subsets.
        samples: training images to fit on; none is 1000, or all if there are fewer.
        test_samples: test images to judge on; none is 1000, or all if there are fewer.
        input_range: pixel values that the model takes for black and white, such as 0,255; models
            trained here know their own.
        seed: seed of all draws.
        batch_size: images per pass, and per step of algorithm gradient.
        workers: processes for cobyla; none is one per core.
        backend: joblib, ray or serial, for cobyla.
        ray_address: of the cluster: auto, host:port or ray://host:port; none starts Ray on this
            machine.
        patience: seconds that a Ray cluster has to grow to the number of workers.
        solve_dir: folder where an interrupted solve keeps what it has.
        trust: yes also loads models that bring code of their own, which may do anything.

    Returns:
        The perturbation and its fooling rates.

    Raises:
        InputError: an argument can't be used; nothing was solved.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was solved is kept for the same command.
    """
    settings = {n: v for n, v in locals().items() if n not in ("monitor", "map", "say")}
    monitor = monitor or Monitor()
    _check(algorithm, norm, epsilon, matrix)
    (source,) = find_models(monitor, [model], trust)
    data = load_data([source], dataset, data_dir, per_class, data_seed)
    fitting = _choose(data.train, samples, seed, f"training images of {data.name}")
    held_out = _choose(data.test, test_samples, seed, f"test images of {data.name}")
    stored = (
        None if matrix is None else checkpoints.load(monitor.find_artifact(matrix, "matrix.npz"))
    )

    devices.start_tensorflow()
    from resfool.universal import judging

    classifier = load_classifier(source, source.name, data, input_range, trust)
    same = {
        "model": digest(*classifier.get_weights()),
        "image_shape": list(data.image_shape),
        "input_range": list(range_of(source, input_range)),
    }
    made_by: dict[str, Any] = {"algorithm": algorithm} | (
        {"solver": solver} if algorithm == "2" else {}
    )
    reused = None if stored is None else _stored_matrix(str(matrix), *stored, same, made_by)
    facts = (
        settings
        | {
            "model_name": source.name,
            "dataset": data.name,
            "dataset_digest": data.digest,
        }
        | identity.facts("universal", settings, data.digest)
    )
    title = f"universal {algorithm} on {source.name}, {data.name}"
    monitor.begin(title, facts, [(data, "train", "fitted"), (data, "test", "judged")])
    work = Work(classifier, fitting, held_out.images, monitor, map, say, settings, same)
    found, solved, ranked, spectrum = reused, None, None, None
    rates: list[float] = []
    if algorithm in _WITHOUT_MATRIX:
        vector, rates = _fitted_vector(work)
    else:
        if found is None:
            found, solved = _fitted_matrix(work)
        ranked, spectrum = _approximated(work, found)
        vector = ranked.vector
    return Universal(
        name=source.name,
        where=f"{data.name} test",
        class_names=data.class_names,
        settings=settings,
        verdict=judging.verdict(classifier, held_out.images, vector, seed=seed),
        ranked=ranked,
        matrix=found,
        solved=solved,
        singular_values=spectrum,
        fit_rates=rates,
        identity=same | made_by,
    )


def _fitted_vector(work: Work) -> tuple[np.ndarray, list[float]]:
    """The perturbation of an algorithm that needs no matrix, and its rates after each pass."""
    from resfool.universal import ascent, iterated
    from resfool.universal.vectors import random_vectors

    s = work.settings
    norm: Norm = s["norm"]
    if s["algorithm"] == "random":
        size = np.array([norm.size])
        shape = work.fitting.images.shape[1:]
        return random_vectors(shape, size, norm.kind, s["seed"])[0], []

    passes = s["passes"] or _PASSES[s["algorithm"]]

    def report(number: int, rate: float) -> None:
        work.monitor.point({"step": number + 1, "fitting_fooling_rate": rate})
        work.monitor.progress(number + 1, passes, f"fooled {rate:.3f} of the fitting images")

    options: Any = {n: s[n] for n in ("norm", "seed", "batch_size")} | {"passes": passes}
    if s["algorithm"] == "1":
        options |= {"solver": s["solver"], "desired_rate": s["desired_rate"]}
        fit = iterated.algorithm1(work.model, work.fitting.images, report=report, **options)
    else:
        fit = ascent.gradient_trained(work.model, work.fitting.images, report=report, **options)
    return fit.vector, fit.rates


def _fitted_matrix(work: Work) -> tuple["Matrix", "Minimal | None"]:
    """The matrix of Algorithm 2, 3 or 4, and the solutions that Algorithm 2 makes it of."""
    from resfool.universal import matrices

    s, images = work.settings, work.fitting.images
    solved = None
    if s["algorithm"] == "2":
        solved = solved_perturbations(work)
        found = matrices.matrix_of(solved.perturbations, solved.flipped)
    else:
        labels = work.fitting.labels if s["label_source"] == "true" else None
        size: Any = {"batch_size": s["batch_size"]}
        if s["algorithm"] == "3":
            found = matrices.sign_matrix(work.model, images, labels, s["epsilon"], **size)
        else:
            found = matrices.smallest_sign_matrix(work.model, images, labels, **size)
    if found.dropped:
        work.say(f"no perturbation was found for {found.dropped} of {len(images)} images")
    if not len(found.rows):
        raise InputError("no perturbation was found for any image, so there is no matrix")
    return found, solved


def _approximated(
    work: Work, matrix: "Matrix"
) -> tuple["judging.Ranked", tuple[np.ndarray, np.ndarray]]:
    """Low-rank approximations of a matrix, judged, and its spectrum beside a random one's."""
    from resfool.attacks import lowrank
    from resfool.universal import judging

    s = work.settings
    decomposition = lowrank.decompose(matrix.rows)
    first = s["coefficients"] == "first"
    rank, note = lowrank.clamped(1 if first else s["rank"], decomposition)
    if note is not None:
        work.say(note)
    work.monitor.fact("numerical_rank", decomposition.numerical_rank)
    work.monitor.point({"step": 0, "energy_of_10_directions": decomposition.energy(10)})
    others = {n for n in s["ranks"] or judging.RANKS if n <= decomposition.numerical_rank}
    ranks = [rank] if first else sorted(others | {rank})
    random_rule = s["coefficients"] in ("gaussian", "singular")
    sides = 1 if s["norm"] == s["equal_norm"] else 2
    total = len(ranks) * sides * judging.VECTORS * (s["draws"] if random_rule else 1)
    judged = 0

    def progress(vectors: int) -> None:
        nonlocal judged
        judged += vectors
        work.monitor.progress(judged, total, "perturbations judged")

    ranked = judging.over_ranks(
        work.model,
        work.fitting.images,
        work.held_out,
        decomposition,
        ranks,
        rank,
        rule=s["coefficients"],
        norm=s["norm"],
        equal_norm=s["equal_norm"],
        draws=s["draws"],
        seed=s["seed"],
        progress=progress,
    )
    for row in ranked.rows:
        work.monitor.point({"step": int(row["rank"])} | row)
    noise = lowrank.singular_values(lowrank.random_matrix(matrix.rows, s["seed"]))
    share = lowrank.energy(noise, 10)
    work.monitor.point({"step": 0, "random_energy_of_10_directions": share})
    return ranked, (decomposition.singular_values, noise)


def _check(algorithm: Algorithm, norm: Norm, epsilon: float, matrix: str | None) -> None:
    if algorithm in _WITHOUT_MATRIX and norm.kind == "none":
        raise InputError(
            f"norm is missing: algorithm={algorithm} needs the size that its perturbation may"
            " have, such as norm=l2:3 or norm=linf:10/255"
        )
    if algorithm in _WITHOUT_MATRIX and matrix is not None:
        raise InputError(
            f"matrix={matrix} is of no use to algorithm={algorithm}; algorithms 2, 3 and 4 make"
            " their perturbation of one"
        )
    if algorithm == "3" and epsilon == 0:
        raise InputError("epsilon=0 leaves nothing of algorithm 3's steps; it must be above 0")


def _choose(split: sets.Split, samples: int | None, seed: int, what: str) -> sets.Split:
    rows = draw(len(split), samples, seed, what)
    return sets.Split(split.images[rows], split.labels[rows])


def _stored_matrix(
    uri: str,
    arrays: dict[str, np.ndarray],
    facts: dict[str, Any],
    identity: dict[str, Any],
    made_by: dict[str, Any],
) -> "Matrix":
    """An earlier run's matrix, if it is one of this model and was made as this run says."""
    from resfool.universal.matrices import Matrix

    # Matrices from before the range, or what made them, was recorded are taken as they are.
    facts = {"input_range": identity["input_range"]} | made_by | facts
    for name, what in (
        ("image_shape", "images of the shape"),
        ("model", "a model with digest"),
        ("input_range", "pixel values in the range"),
    ):
        if facts.get(name) != identity[name]:
            raise InputError(
                f"matrix={uri} was made for {what} {facts.get(name)}, not {identity[name]}"
            )
    for name, ours in made_by.items():
        if facts[name] != ours:
            raise InputError(f"matrix={uri} was made with {name}={facts[name]}; say so")
    rows, images = (arrays.get(name, np.empty(0)) for name in ("rows", "images"))
    if rows.shape != (len(images), int(np.prod(identity["image_shape"]))) or not len(rows):
        raise InputError(f"matrix={uri} is damaged: its rows have the shape {rows.shape}")
    return Matrix(rows, images, int(facts.get("dropped", 0)))

"""`mlflow run . -e mnist`: the case study of section VI.C, on digits that come with a package.

One run with two parts: the 5-layer network's training, and its universal perturbation.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from entry_points import train, universal
from resfool import command_line, experiments, interrupts, parallel
from resfool.datasets import sets
from resfool.parameters import (
    Backend,
    Coefficients,
    NonNegativeFloat,
    Norm,
    PositiveCount,
    Seed,
    SizedNorm,
    Solver,
    Subspace,
)
from resfool.progress import ProgressReport
from resfool.tracking import stores, training_run
from resfool.tracking.run import Run
from resfool.universal import presentation


def case_study(
    run: Run,
    progress: ProgressReport,
    /,
    *,
    steps: PositiveCount = 200,
    samples: PositiveCount = 1000,
    solver: Solver = "closest",
    subspace: Subspace = "gradients",
    rank: PositiveCount = 10,
    coefficients: Coefficients = "gaussian",
    norm: SizedNorm = Norm("none"),  # noqa: B008
    equal_norm: SizedNorm = Norm("l2", 3.0),  # noqa: B008
    draws: PositiveCount = 50,
    seed: Seed = 0,
    workers: PositiveCount | None = None,
    backend: Backend = "joblib",
    ray_address: str | None = None,
    patience: NonNegativeFloat = 0.0,
    checkpoint_dir: str = "checkpoints",
) -> experiments.Universal:
    """Train the 5-layer network on MNIST digits and fool it by Algorithm 2 (section VI.C).

    Args:
        run: of the case study.
        progress: shows how it goes.
        steps: training steps; 200 of 64 images end near the paper's 93% and 91%.
        samples: training images to fit the perturbation on.
        solver: of the smallest perturbations: closest, deepfool, ddn or cobyla, the paper's.
        subspace: that cobyla searches: gradients, rows (of the first dense layer) or pixels (slow).
        rank: number of singular vectors of the perturbation that is kept.
        coefficients: f_i of equation 8: gaussian (variance 25), singular, first or optimised.
        norm: of the perturbation, such as l2:3 or linf:10/255; none leaves it as it comes.
        equal_norm: at which all ranks are compared too.
        draws: random perturbations of each rank.
        seed: seed of everything.
        workers: processes for cobyla; none is one per core.
        backend: joblib, ray or serial, for cobyla.
        ray_address: of the cluster: auto, host:port or ray://host:port; none starts Ray on this
            machine.
        patience: seconds that a Ray cluster has to grow to the number of workers.
        checkpoint_dir: folder for checkpoints and interrupted solves.

    Returns:
        The perturbation and its fooling rates.
    """
    data = sets.load("mnist5k")
    # Refuses more than there are, before the training rather than after it.
    sets.draw(len(data.train), samples, seed, f"training images of {data.name}")
    if solver == "cobyla":
        parallel.check(backend, ray_address)
    name = f"mnist case study, {solver} seed {seed}"
    run.begin(name, {"steps": steps, "solver": solver, "seed": seed}, [])
    training = training_run.TrainingRun(
        progress, resume=None, checkpoint_dir=Path(checkpoint_dir), nested=True
    )
    with training:
        trained = experiments.train(
            training, data, arch="mlp", dataset=data.name, steps=steps, seed=seed
        )
        model = train.record(training, trained)
    print(f"train accuracy  {trained.train.accuracy:.4f}")
    print(f"test accuracy   {trained.test.accuracy:.4f}")
    spread = functools.partial(
        parallel.map,
        backend=backend,
        workers=workers,
        ray_address=ray_address,
        patience=patience,
    )
    with Run(progress, nested=True) as part:
        result = experiments.universal(
            part,
            spread,
            print,
            model=model,
            solver=solver,
            subspace=subspace,
            samples=samples,
            rank=rank,
            coefficients=coefficients,
            norm=norm,
            equal_norm=equal_norm,
            draws=draws,
            seed=seed,
            workers=workers,
            backend=backend,
            ray_address=ray_address,
            patience=patience,
            solve_dir=checkpoint_dir,
        )
        universal.record(part, result)
    over_rank = presentation.universal_rates(result)
    assert over_rank is not None, "Algorithm 2 has a matrix"
    run.log_figure(over_rank, "figure7.png")
    run.log_figure(presentation.universal_pictures(result), "figures8to10.png")
    run.point({"step": 0, "final_test_accuracy": trained.test.accuracy} | result.verdict.rates)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run the case study, and say where to look at it."""
    with command_line.one_sentence_errors():
        (settings,) = command_line.parse(case_study, argv=argv)
        interrupts.raise_once()
        with ProgressReport("mnist case study") as progress, Run(progress) as run:
            result = case_study(run, progress, **settings)
    print(presentation.universal_summary(result))
    print(f"run             {run.run_id}")
    print(f"look at it with {stores.viewer()}")


if __name__ == "__main__":
    main()

"""`mlflow run . -e universal`: one perturbation for all images, judged on held-out ones."""

import functools
from collections.abc import Sequence

import pandas as pd

from resfool import command_line, experiments, interrupts, parallel
from resfool.errors import expanded
from resfool.experiments import Universal
from resfool.progress import ProgressReport
from resfool.tracking import stores
from resfool.tracking.run import Run
from resfool.universal import presentation


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, fit, judge, and record the result."""
    with command_line.one_sentence_errors():
        (settings,) = command_line.parse(experiments.universal, argv=argv)
        interrupts.raise_once()
        stores.check_folder("solve folder", expanded(settings["solve_dir"]))
        asked = (settings["algorithm"], settings["solver"], settings["matrix"])
        if asked == ("2", "cobyla", None):  # else nothing is spread
            parallel.check(settings["backend"], settings["ray_address"])
        places = ("backend", "workers", "ray_address", "patience")
        spread = functools.partial(parallel.map, **{name: settings[name] for name in places})
        title = f"algorithm {settings['algorithm']}"
        with ProgressReport(title) as progress, Run(progress) as run:
            result = experiments.universal(run, spread, print, **settings)
            record(run, result)
    print(presentation.universal_summary(result))
    print(f"run             {run.run_id}")
    print(f"look at it with {stores.viewer()}")


def record(run: Run, result: Universal) -> None:
    """Log a universal perturbation: rates, figures, tables, the vector and its matrix."""
    verdict = result.verdict
    run.point({"step": 0} | verdict.rates)
    run.log_array("perturbation.npy", verdict.vector)
    if result.matrix is not None:
        arrays = {"rows": result.matrix.rows, "images": result.matrix.images}
        facts = result.identity | {"dropped": result.matrix.dropped}
        run.log_arrays("matrix.npz", arrays, facts)
    if result.solved is not None:
        run.point({"step": 0} | presentation.solved_metrics(result.solved))
        run.log_table(presentation.solved_table(result.solved), "smallest_perturbations")
    over_rank = presentation.universal_rates(result)
    if result.ranked is not None and over_rank is not None:
        run.log_figure(over_rank, "fooling_rate_over_rank.png")
        run.log_table(pd.DataFrame(result.ranked.rows), "ranks")
    run.log_figure(presentation.universal_pictures(result), "perturbation.png")
    run.log_figure(presentation.universal_confusion(result), "confusion.png")


if __name__ == "__main__":
    main()

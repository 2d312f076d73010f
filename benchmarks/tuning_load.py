"""How busy a tuning keeps the cores: processor time of its processes, over the time it took.

    python -m benchmarks.tuning_load                  # 20 trials, a few minutes
    python -m benchmarks.tuning_load --backend ray

Only the tuning's own processes are counted, so other work on the machine lowers the figure. The
first seconds, in which each process loads its libraries, are given by themselves.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
TRIAL = ["--arch=mlp", "--dataset=digits", "--steps=5000", "--eval_every=1000", "--pruner=none"]
TRIAL += ["--search=learning_rate,weight_decay"]


def main() -> None:
    """Run a tuning in a folder of its own, and watch its processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--backend", choices=["joblib", "ray"], default="joblib")
    options = parser.parse_args()
    command = [sys.executable, "-m", "entry_points.tune", *TRIAL, f"--trials={options.trials}"]
    command.append(f"--backend={options.backend}")
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store}
        began = time.perf_counter()
        driver = psutil.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        marks = watch(driver, began)
        assert driver.stderr is not None
        errors = driver.stderr.read().decode()
        assert driver.returncode == 0, errors
    cores = psutil.cpu_count() or 1
    started = next(i for i, (_, used) in enumerate(marks) if used > 0.2 * marks[-1][1])
    (t0, u0), (t1, u1) = marks[started], marks[-1]
    print(f"{options.trials} trials on {options.backend}, {cores} cores")
    print(f"whole command   {t1:6.1f} s, {u1 / t1 / cores:.0%} of the cores")
    print(
        f"from {t0:5.1f} s on  {t1 - t0:6.1f} s, {(u1 - u0) / (t1 - t0) / cores:.0%} of the cores"
    )


def watch(driver: psutil.Popen, began: float) -> list[tuple[float, float]]:
    """Seconds since the beginning, and seconds of processor time used by then, now and then."""
    used: dict[int, float] = {}
    marks = []
    while driver.poll() is None:
        try:
            family = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in family:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[process.pid] = times.user + times.system
        marks.append((time.perf_counter() - began, sum(used.values())))
        time.sleep(0.2)
    return marks


if __name__ == "__main__":
    main()

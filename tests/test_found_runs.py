"""Runs that were finished before are found: by the store that earlier code left.

`tests/recorded` holds rows of the databases that these commands made in November 2026, before the
package was laid out in wings.
"""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from resfool import commands, identity
from resfool.reproduction import plan
from tests.conftest import ROOT

NETWORK = ["--arch=mlp", "--dataset=digits", "--width=8", "--depth=2", "--backend=serial"]
SWEEP = [*NETWORK, "--seeds=2", "--steps=40", "--eval_every=20"]
TUNING = [*NETWORK, "--trials=2", "--steps=20", "--search=learning_rate"]
REPRODUCTION = ["--target=table3,figure7", "--scale=quick"]


@pytest.fixture
def before(store: MlflowClient, tmp_path: Path) -> MlflowClient:
    """The client of a store that has these runs."""
    restore(tmp_path / "mlflow.db", "runs")
    return store


def restore(database: Path, name: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.executescript((ROOT / "tests" / "recorded" / f"{name}.sql").read_text())
    connection.close()


def count(client: MlflowClient) -> int:
    return len(client.search_runs(["0"]))


def test_a_sweep_finds_its_trainings(
    before: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = count(before)
    commands.run("sweep", SWEEP)
    said = capsys.readouterr().out
    assert "2 of 2 trainings were finished before" in said
    assert "0.1937 +- 0.0159" in said  # their figures, as they were told then
    assert count(before) == runs + 1


def test_a_tuning_goes_on_where_it_was(
    before: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna

    optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'tuning.db'}")  # makes the tables
    restore(tmp_path / "tuning.db", "tuning")
    runs = count(before)
    commands.run("tune", TUNING)
    said = capsys.readouterr().out
    assert "going on with a search of which 2 trials have ended" in said
    assert "best            0.4200 of the validation images" in said
    assert "8bbfed65f7fe438093899c5f9b02b744" in said  # the run that it was recorded in
    assert count(before) == runs


def test_a_reproduction_finds_trainings_and_what_was_done_with_their_models(
    before: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count(before)
    dry = [*REPRODUCTION, "--dry_run=yes"]
    commands.run("reproduce", dry)
    assert "3 runs to make, 1 are there" in capsys.readouterr().out
    # Convolutional networks had strides then, and were judged by moving averages; smallest
    # perturbations were shortened to where rounding decides; images weren't attacked in blocks.
    monkeypatch.setitem(identity.VERSIONS, "universal", "a292f6ee4a0b757b")
    monkeypatch.setitem(identity.VERSIONS, "attack", "56aa5d1102c24214")
    monkeypatch.setattr(plan, "_READ_AS", {})
    quick = plan.SCALES["quick"]
    as_then = replace(quick, networks={**quick.networks, "batch_norm_statistics": "moving"})
    monkeypatch.setitem(plan.SCALES, "quick", as_then)
    commands.run("reproduce", dry)
    assert "nothing to make; 4 of 4 runs are there" in capsys.readouterr().out
    assert count(before) == runs

"""The report of a reproduction, on planted runs."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from resfool import paper
from resfool.archive import FinishedRun
from resfool.errors import InputError
from resfool.report import page
from resfool.report.page import Section
from resfool.reproduction import claims, plan, presentation, recorded
from resfool.reproduction.plan import Label, ReproduceParameters
from resfool.reproduction.reproduce import Reproduction
from resfool.values import epsilon_step
from tests.test_claims import as_printed, training


def found(
    runs: dict[Label, list[FinishedRun]], *targets: str, scale: Any = "paper", **more: Any
) -> Reproduction:
    return Reproduction(ReproduceParameters(target=targets, scale=scale), runs, **more)


def with_settings(runs: dict[Label, list[FinishedRun]]) -> dict[Label, list[FinishedRun]]:
    settings = {"steps": "9", "seed": "0"}
    return {
        label: [dataclasses.replace(run, facts={**run.facts, **settings}) for run in several]
        for label, several in runs.items()
    }


def section(made: Reproduction, title: str) -> Section:
    return next(s for s in presentation.as_report(made).sections if s.title.startswith(title))


def test_numbers_like_the_papers_make_no_difference() -> None:
    made = found(as_printed(), "table1", "table2")
    for name, printed in (("Table I:", paper.TABLE_1), ("Table II:", paper.TABLE_2)):
        (table,) = section(made, name).tables
        assert [row[0] for row in table.rows] == [f"{arch}-{depth}" for arch, depth in printed]
        for row, (train, test) in zip(table.rows, printed.values(), strict=True):
            assert row[1:4] == [f"{train:.4f}", f"{train:.3f}", "+0.000"]
            assert row[4:7] == [f"{test:.4f}", f"{test:.3f}", "+0.000"]
    words = presentation.as_report(made).paragraphs[0]
    assert "The paper's 20 claims: 20 seen, 0 not seen, 0 not run." in words


def test_seeds_that_agree_with_each_other_but_not_with_the_paper_are_named() -> None:
    runs = as_printed()
    # Two deviations would be 0.036: with two seeds, a third can well be 0.04 away.
    tests = {"resnet": (0.781, 0.783), "convnet": (0.75, 0.85), "highway": (0.835, 0.86)}
    for arch, accuracies in tests.items():
        train = paper.TABLE_1[arch, 25][0]
        runs["short", arch, 25] = [training(arch, train, test) for test in accuracies]
    notes = " ".join(section(found(runs, "table1"), "Table I:").notes)
    assert "in 95 of 100 cases: resnet-25 (test)." in notes
    (table,) = section(found(runs, "table1"), "Table I:").tables
    row = next(row for row in table.rows if row[0] == "resnet-25")
    assert row[5:7] == ["0.782 ± 0.001 (2 seeds)", "-0.060"]


def test_what_was_not_run_is_said_everywhere() -> None:
    targets = (*paper.RESULTS, plan.READINGS)
    made = found({}, *targets, missing=["convnet-25"], failed={"resnet-25": "it diverged"})
    whole = presentation.as_report(made)
    text = page.as_markdown(whole, "p")
    assert text.count("Not run\\.") + text.count("Not run.") >= 9
    assert "Failed: resnet-25: it diverged" in text
    assert "1 of 2 runs are missing" in text
    (table,) = section(made, "Runs that are missing").tables
    assert table.rows == [["convnet-25"]]
    assert not whole.pictures


def test_the_terminal_shows_what_was_decided() -> None:
    runs: dict[Label, list[FinishedRun]] = {
        ("short", "convnet", 25): [training("convnet", 0.86, 0.81)],
        ("short", "convnet", 50): [training("convnet", 0.23, 0.22)],
    }
    made = found(runs, "table1", failed={"resnet-25": "it diverged"})
    lines = presentation.summary(made).splitlines()
    assert lines[0].startswith("seen      The 50-layer ConvNet trains worse")
    assert lines[-2] == f"not run   {len(paper.CLAIMS) - 1} more claims: the report lists them"
    assert lines[-1] == "failed    resnet-25: it diverged"


def test_figures_have_the_papers_form() -> None:
    made = found(as_printed(), "figure3", "figure6")
    for name, networks in (("Figure 3", 4), ("Figure 6", 4)):
        one = section(made, name)
        assert len(one.pictures) == 1 and one.pictures[0].png.startswith(b"\x89PNG")
        assert len(one.tables[0].head) == 1 + networks
    made = found(with_settings(as_printed()), "figure3", "figure6")
    names = {"report.html", "report.md", "pictures/figure3.png", "pictures/figure6.png"}
    assert presentation.leaves(made).keys() == names | {"claims", "accuracies"}


def test_the_closest_reading_is_named() -> None:
    runs = as_printed()
    runs["short", "resnet", 10] = [training("resnet", 0.93, 0.72)]
    flip = plan.training_label("resnet", 10, {"augment": "crop_flip"})
    runs[flip] = [training("resnet", 0.90, 0.82)]
    plain = plan.training_label("convnet", 50, {"batch_norm": False})
    runs[plain] = [training("convnet", 0.24, 0.23)]
    # What is compared is the paper's way of testing, which is kinder than the whole test set.
    for label in (("short", "resnet", 10), flip, plain):
        way = {"papers_way_test_accuracy": runs[label][0].metrics["final_test_accuracy"] + 0.07}
        runs[label] = [
            dataclasses.replace(run, metrics={**run.metrics, **way}) for run in runs[label]
        ]
    one = section(found(runs, "readings"), "What the paper leaves open")
    words = " ".join(one.paragraphs)
    assert "Of the readings of resnet-10 that were run, “augment=crop_flip” comes closest" in words
    assert "Of the readings of convnet-50 that were run, “as read here” comes closest" in words
    assert "convnet-10 that" not in words  # of which there is none
    rows = {(row[0], row[1]): row for row in one.tables[0].rows}
    for key, network, (train, test) in (
        (("resnet-10", "augment=crop_flip"), ("resnet", 25), (0.90, 0.84)),
        (("convnet-50", "batch_norm=false"), ("convnet", 50), (0.24, 0.25)),
    ):
        of_paper = paper.TABLE_1[network]
        assert rows[key][5] == f"{abs(train - of_paper[0]) + abs(test - of_paper[1]):.3f}"
    quick = section(found(runs, "readings", scale="quick"), "What the paper leaves open")
    assert len(quick.paragraphs) == 1 and {row[5] for row in quick.tables[0].rows} == {"–"}


def test_pictures_and_curves_of_attacks_are_read_back(tmp_path: Path) -> None:
    runs = as_printed()
    epsilons = [n / 255 for n in (1, 2, 4, 8, 16, 32)]
    rates = pd.DataFrame({"epsilon": epsilons})
    for name in ("fooling_rate", "random_fooling_rate"):
        rates[name] = 0.5
        rates[f"{name}_low"], rates[f"{name}_high"] = 0.4, 0.6
    rates.to_csv(tmp_path / "rates.csv")
    pd.DataFrame({"singular_value": [2.0, 1.0], "random_singular_value": [1.5, 1.4]}).to_csv(
        tmp_path / "spectrum.csv"
    )
    pd.DataFrame({"smallest_epsilon": [0.01, 0.02]}).to_csv(tmp_path / "images.csv")
    for arch in plan.FOOLED:
        label = ("attack", "short", arch, 10)
        (run,) = runs[label]
        runs[label] = [
            dataclasses.replace(
                run,
                find_file=lambda name: tmp_path / name,
                facts={"attacked_images": "2", "seed": "0"},
            )
        ]
    one = section(found(runs, "figure11"), "Figure 11")
    assert [row[0] for row in one.tables[0].rows] == [f"{arch}-10" for arch in plan.FOOLED]
    assert len(one.pictures) == 1


UNIVERSAL, ATTACK = ("universal", "digits"), ("attack", "short", "resnet", 10)
SHORT = ("short", "resnet", 25)
STEP = epsilon_step(4 / 255)


@pytest.mark.parametrize(
    ("label", "odd", "target", "sentence"),
    [
        (UNIVERSAL, {"facts": {"rank": "10.0"}}, "figure7", "Figure 7.* has rank=10.0, which"),
        (UNIVERSAL, {"facts": {}}, "figure7", "Figure 7.* has no parameter rank"),
        (UNIVERSAL, {"curve": [{"step": 10, "fooling_rate": math.nan}]}, "figure7", "nan for"),
        (UNIVERSAL, {"find_file": lambda name: None}, "figure8", "id has no perturbation.png"),
        (UNIVERSAL, {"find_file": lambda name: Path("/")}, "figure8", "used: it is no plain file"),
        (UNIVERSAL, {"find_file": lambda name: Path(__file__)}, "figure8", "is no PNG file"),
        (UNIVERSAL, {"find_file": lambda name: 1 / 0}, "figure8", "ZeroDivisionError"),
        (SHORT, {"metrics": {"final_train_accuracy": math.nan}}, "table1", "resnet-25 is left out"),
        (SHORT, {"metrics": {"final_test_accuracy": math.inf}}, "table1", "has inf for final_test"),
        (
            SHORT,
            {"metrics": {"papers_way_test_accuracy": math.nan}},
            "table1",
            "has nan for papers",
        ),
        (SHORT, {"metrics": {}}, "table1", "run id has no final_train_accuracy"),
        (SHORT, {"facts": {"batch_size": "x"}}, "table1", "has batch_size=x, which"),
        (SHORT, {"facts": {}}, "table1", "run id has no parameter parameter_count"),
        (SHORT, {"curve": []}, "table1", "its runs are not as they should be"),
        (
            SHORT,
            {"curve": [{"step": 1, "train_accuracy": math.inf}]},
            "figure3",
            "inf for train_acc",
        ),
        (ATTACK, {"curve": []}, "figure11", "resnet-10 is left out: run id has no fooling_rate at"),
        (ATTACK, {"curve": [{"step": STEP, "fooling_rate": math.inf}]}, "figure11", "has inf for"),
        (ATTACK, {"metrics": {"clean_accuracy": math.nan}}, "figure11", "has nan for clean_acc"),
        (ATTACK, {"facts": {}}, "figure11", "run id has no parameter attacked_images"),
        (ATTACK, {}, "figure11", "the curve of resnet-10 is left out: run id has no rates.csv"),
    ],
)
def test_what_an_old_run_cannot_give_is_left_out_and_said(
    label: Label, odd: dict[str, Any], target: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "png", lambda figure: b"")
    runs = as_printed()
    runs[label] = [dataclasses.replace(runs[label][0], **odd)]
    made = found(runs, target)
    left = presentation.leaves(made)
    report = left["report.md"]
    assert isinstance(report, bytes) and left.keys() > {"report.html", "claims", "accuracies"}
    text = report.decode().replace("\\", "")
    assert re.search(sentence, text), text
    assert "seen" in presentation.summary(made), "other claims are decided"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"", "has no rows"),
        (b"epsilon\n0.1\n", "rates.csv of run id can't be used: it has no fooling_rate"),
        (b"epsilon,fooling_rate\n0.1,x\n", "rates.csv of run id can't be used: it is damaged"),
        (b"epsilon,fooling_rate\n0.1,nan\n", "its fooling_rate are not all numbers"),
        (b"epsilon,fooling_rate\n0.1\n", "it is damaged"),
        (b"\xff\xfe", "it is damaged"),
    ],
)
def test_a_table_that_no_run_can_have_left_is_refused(
    tmp_path: Path, table: bytes, sentence: str
) -> None:
    (tmp_path / "rates.csv").write_bytes(table)
    run = FinishedRun("id", find_file=lambda name: tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        recorded.columns(run, "rates.csv", ["epsilon", "fooling_rate"])


def test_tables_hold_every_decision_and_every_run() -> None:
    made = found(as_printed(), "table1")
    decided = presentation.claims_table(made)
    assert decided["name"].tolist() == list(claims.RULES)
    ours = presentation.comparison_table(made)
    assert ours["steps"].tolist() == [10_000] * 8 + [50_000] * 4
    assert (ours["papers_way_test_accuracy"] == ours["paper_test_accuracy"]).all()


def test_the_quick_scale_says_so() -> None:
    runs = as_printed()
    runs["short", "resnet", 25] = [training("resnet", 0.9, test) for test in (0.781, 0.783)]
    made = found(runs, "table1", scale="quick")
    assert "quick scale" in " ".join(presentation.as_report(made).paragraphs)
    one = section(made, "Table I:")
    assert {row[3] for row in one.tables[0].rows} == {"–"}
    assert "95 of 100" not in " ".join(one.notes)

"""A reproduction as a report: the paper's numbers and ours, its figures and its claims."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from resfool import paper
from resfool.archive import FinishedRun
from resfool.attacks.presentation import FoolingCurve, draw_fooling_rates
from resfool.monitor import Leaves
from resfool.report import page
from resfool.report.drawing import Figure
from resfool.report.page import Cell, Link, Picture, Section, Table
from resfool.reproduction import claims, plan, recorded
from resfool.reproduction.claims import Decision, decide, metric
from resfool.reproduction.leaving import LeftOut
from resfool.reproduction.plan import ARCHS, DEEP, FOOLED, Label
from resfool.reproduction.reproduce import Reproduction
from resfool.training.presentation import trainings
from resfool.values import Row, duration, epsilon_step, show

_NONE = "–"
_VERDICTS = {"seen": "good", "not seen": "bad", "not run": "dim"}
_BEST, _BEST_CLIPPED = "final_fooling_rate", "final_clipped_fooling_rate"
_ENERGY = "energy_of_10_directions"
_SHOWN_EPSILONS = tuple(n / 255 for n in (1, 2, 4, 8, 16, 32))
_COMPARED = ("final_train_accuracy", "papers_way_test_accuracy")  # with what the tables print
_CENTURY = 3.2e9  # seconds, that no run takes
_DIGITS = ("digits",)
_UNIVERSAL = ("universal", "digits")


def leaves(found: Reproduction) -> Leaves:
    """What a reproduction leaves: the report with its pictures, and its tables."""
    tables = {"claims": claims_table(found), "accuracies": comparison_table(found)}
    return page.files(as_report(found)) | tables


def as_report(found: Reproduction) -> page.Report:
    """All that a reproduction found out."""
    decisions = decide(found.runs)
    counts = {v: sum(d.verdict == v for d in decisions) for v in _VERDICTS}
    asked = found.asked
    each = "one seed" if asked.seeds == 1 else f"{asked.seeds} seeds"
    paragraphs = [
        "After Di Wu and Samuel Huberman, “ResNets: Easy to train, easy to fool?”. "
        f"The paper's {len(decisions)} claims: {counts['seen']} seen, {counts['not seen']} not "
        f"seen, {counts['not run']} not run.",
        f"{sum(map(len, found.runs.values()))} runs, {each} each, trained in "
        f"{asked.precision}, scale {asked.scale}.",
    ]
    if asked.scale == "quick":
        paragraphs.append(
            "This is the quick scale: narrow networks and few steps on embedded digits, to try the "
            "machinery and to see shapes. Its numbers stand beside the paper's, not against them."
        )
    if found.missing:
        needed = len(found.missing) + len(found.failed) + sum(map(len, found.runs.values()))
        paragraphs.append(f"{len(found.missing)} of {needed} runs are missing; the end lists them.")
    paragraphs += [f"Failed: {name}: {reason}." for name, reason in found.failed.items()]
    sections = [_claims(decisions, found.failed)]
    sections += [_result(found, name) for name in asked.targets]
    sections.append(_surroundings(found))
    if found.missing:
        missing = Table(("run",), [[name] for name in found.missing])
        sections.append(Section("Runs that are missing", tables=[missing]))
    return page.Report("ResNets: easy to train, easy to fool? A reproduction", paragraphs, sections)


def _result(found: Reproduction, name: str) -> Section:
    """The section of a result, as far as the runs have what it needs."""
    left_out, section = LeftOut(), _section(name)
    with left_out.unless_usable(_title(name)):
        section = _SECTIONS[name](found, name, left_out)
    return replace(section, notes=[*section.notes, *left_out.reasons])


def claims_table(found: Reproduction) -> pd.DataFrame:
    """The paper's claims and what became of them."""
    return pd.DataFrame([vars(decision) for decision in decide(found.runs)])


def comparison_table(found: Reproduction) -> pd.DataFrame:
    """Accuracies as printed in Tables I and II, and ours, a row for each network."""
    rows = []
    scale = plan.SCALES[found.asked.scale]
    for kind, steps, printed in (
        ("short", scale.steps, paper.TABLE_1),
        ("long", scale.long_steps, paper.TABLE_2),
    ):
        for (arch, depth), (train, test) in printed.items():
            label = (kind, arch, depth)
            for run in found.runs.get(label, ()):
                row: dict[str, Any] = {"steps": steps, "network": f"{arch}-{depth}"}
                row |= {"paper_train_accuracy": train, "paper_test_accuracy": test}
                row |= {n: v for n, v in run.metrics.items() if _is_final(n)}
                rows.append(row | {"seed": run.facts.get("seed"), "run_id": run.run_id})
    return pd.DataFrame(rows)


def _is_final(name: str) -> bool:
    return name.endswith("_accuracy") and name.startswith(("final_", "papers_", "batch_"))


def summary(found: Reproduction) -> str:
    """The claims for the terminal."""
    decisions = decide(found.runs)
    decided = [decision for decision in decisions if decision.verdict != "not run"]
    lines = [f"{d.verdict:<9} {d.text} ({d.section})" for d in decided]
    if len(decided) < len(decisions):
        more = len(decisions) - len(decided)
        lines.append(f"not run   {more} more claims: the report lists them")
    lines += [f"failed    {name}: {reason}" for name, reason in found.failed.items()]
    return "\n".join(lines)


def _claims(decisions: Sequence[Decision], failed: Iterable[str]) -> Section:
    rows = [[d.text, d.section, d.verdict, d.figure] for d in decisions]
    head = "what the paper says", "section", "here", "the figures that decide it"
    notes = [
        "A claim is seen if the means over the seeds are in the order that it states; where chance "
        "alone can make such a difference, by the number of images or the seeds' deviation with "
        "95% confidence, it is too close to tell. One seed tells nothing of what other seeds would "
        "do. Test accuracies here are means of the evaluations in the paper's way, in which "
        "networks normalise by the images at hand: moving averages scatter more."
    ]
    if left_out := ", ".join(failed):
        notes.append(f"Left out, because they failed: {left_out}.")
    table = Table(head, rows, key=2, marks=_VERDICTS)
    return Section("What the paper claims", tables=[table], notes=notes)


# Tables I and II, Figures 3 to 6


def _accuracies(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    kind = "long" if name == "table2" else "short"
    table = paper.TABLE_2 if kind == "long" else paper.TABLE_1
    printed, rows = {}, []
    for (arch, depth), accuracies in table.items():
        with left_out.unless_usable(f"{arch}-{depth}"):
            rows.append(_accuracies_row(found, (kind, arch, depth), accuracies))
            printed[arch, depth] = accuracies
    head = (
        *("network", "train, paper", "ours", "difference"),
        *("test, paper", "ours, the paper's way", "difference"),
        *("ours, all test images", "time", "runs"),
    )
    scale = plan.SCALES[found.asked.scale]
    steps = scale.long_steps if kind == "long" else scale.steps
    notes = [
        f"{steps:,} steps. Train: the last point of the curve, an average of 100 steps. Test in "
        f"the paper's way: the best of {scale.chunks} evaluations of the finished model on "
        f"{scale.chunk} random test images each, normalised by their own statistics; the paper's "
        "printed figures were probably found so. All test images: the finished model, with its "
        "moving averages."
    ]
    if _at_papers_scale(found):
        notes += _misses(found, kind, printed)
    return _section(name, tables=[Table(head, rows)], notes=notes)


def _accuracies_row(
    found: Reproduction, label: Label, accuracies: tuple[float, float]
) -> list[Cell]:
    row: list[Cell] = [_label_text(label)]
    for name, of_paper in zip(_COMPARED, accuracies, strict=True):
        ours = metric(found.runs, label, name)
        row += [f"{of_paper:.4f}", _ours(ours), _difference(found, ours, of_paper)]
    whole = metric(found.runs, label, "final_test_accuracy")
    return [*row, _ours(whole), _time(found, label), _links(found, label)]


def _misses(
    found: Reproduction, kind: str, printed: Mapping[tuple[str, int], tuple[float, float]]
) -> list[str]:
    """Which accuracies are further from the paper's than the seeds explain."""
    far, unknown = [], {}
    for (arch, depth), accuracies in printed.items():
        network = f"{arch}-{depth}"
        for part, name, of_paper in zip(("train", "test"), _COMPARED, accuracies, strict=True):
            ours = metric(found.runs, (kind, arch, depth), name)
            if len(ours) == 1:
                unknown[network] = True
            elif ours and abs(statistics.fmean(ours) - of_paper) > claims.prediction_width(ours):
                far.append(f"{network} ({part})")
    notes = []
    if far:
        notes.append(
            "Further from the paper's accuracy than one more seed would be, in 95 of 100 cases: "
            f"{', '.join(far)}."
        )
    if unknown:
        notes.append(f"One seed each, so that chance can't be told: {', '.join(unknown)}.")
    return notes


_OVERLAYS: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "figure3": ("short", [(arch, n) for arch in ("resnet", "convnet") for n in DEEP]),
    "figure4": ("short", [(arch, n) for arch in ("highway", "resnet") for n in DEEP]),
    "figure5": ("short", [(arch, n) for arch in ("multiresnet", "resnet") for n in DEEP]),
    "figure6": ("long", [(arch, 25) for arch in ARCHS]),
}


def _curves(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    kind, networks = _OVERLAYS[name]
    labels = [(kind, *network) for network in networks]
    there = [label for label in labels if label in found.runs]
    if not there:
        return _not_run(name)
    curves = {}
    for label in there:
        with left_out.unless_usable(_label_text(label)):
            curves[_label_text(label)] = [_accuracies_of(run) for run in found.runs[label]]
    table = paper.TABLE_2 if kind == "long" else paper.TABLE_1
    printed = {f"{arch}-{depth}": table[arch, depth] for arch, depth in networks}
    figure = trainings(curves, _title(name), printed if _at_papers_scale(found) else None)
    caption = "Training accuracy, average of 100 steps, and test accuracy"
    pictures = [_picture(name, figure, caption)]
    return _section(name, tables=[_runs_table(found, labels)], pictures=pictures)


def _accuracies_of(run: FinishedRun) -> list[Row]:
    """The accuracies of a training's curve."""
    found: list[Row] = []
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        found += [{"step": step, name: value} for step, value in run.points(name).items()]
    return found


# Section VI: the 5-layer network


def _universal_rates(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    if _UNIVERSAL not in found.runs:
        return _not_run(name)
    runs = found.runs[_UNIVERSAL]
    rank = runs[0].whole("rank")

    def of(label: Label, name: str) -> Callable[[], list[float]]:
        return lambda: metric(found.runs, label, name)

    def at_rank(name: str) -> Callable[[], list[float]]:
        return lambda: claims.by_rank(runs, name).get(rank, [])

    train, test = f"{paper.MNIST_TRAIN_ACCURACY:.2f}", f"{paper.MNIST_TEST_ACCURACY:.2f}"
    fooled = f"> {paper.UNIVERSAL_FOOLING_RATE:.2f}"
    draws = f"Algorithm 2, {rank} singular vectors, mean of the draws"
    rows: list[list[Cell]] = []
    for what, printed, values in (
        ("training accuracy of the network", train, of(_DIGITS, "final_train_accuracy")),
        ("test accuracy of the network", test, of(_DIGITS, "final_test_accuracy")),
        (f"fooling rate of {draws}", fooled, at_rank("fooling_rate")),
        ("of random vectors of that norm", _NONE, at_rank("random_fooling_rate")),
        ("of the best simple pattern of that norm", _NONE, at_rank("pattern_fooling_rate")),
        ("of the draw that fools most fitting images", _NONE, of(_UNIVERSAL, _BEST)),
        ("of that draw, clipped to [0, 1]", _NONE, of(_UNIVERSAL, _BEST_CLIPPED)),
        ("energy in ten singular directions", _NONE, of(_UNIVERSAL, _ENERGY)),
        ("the same of a random matrix", _NONE, of(_UNIVERSAL, f"random_{_ENERGY}")),
    ):
        with left_out.unless_usable(what):
            rows.append([what, printed, _ours(values())])
    tables = [Table(("", "paper", "ours"), rows), _runs_table(found, [_DIGITS, _UNIVERSAL])]
    pictures = _logged(found, _UNIVERSAL, "fooling_rate_over_rank.png", name, left_out)
    return _section(name, tables=tables, pictures=pictures)


def _universal_pictures(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    if _UNIVERSAL not in found.runs:
        return _not_run(name)
    if name != "figure8" and "figure8" in found.asked.targets:
        column = {"figure9": "+ universal", "figure10": "+ random"}[name]
        return _section(name, [f"See Figure 8: its column “{column}”."])
    pictures = _logged(found, _UNIVERSAL, "perturbation.png", name, left_out)
    return _section(name, tables=[_runs_table(found, [_UNIVERSAL])], pictures=pictures)


# Section VII: the 10-layer networks


def _fooled(arch: str) -> Label:
    return ("attack", "short", arch, 10)


def _fooling_rates(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    present = [arch for arch in FOOLED if _fooled(arch) in found.runs]
    if not present:
        return _not_run(name)
    rows, curves, pictures = [], [], []
    for arch in present:
        with left_out.unless_usable(f"{arch}-10"):
            rows.append(_fooling_rates_row(found, arch))
        with left_out.unless_usable(f"the curve of {arch}-10"):
            curves.append(_fooling_curve(f"{arch}-10", found.runs[_fooled(arch)][0]))
    head = "network", "accuracy", *(f"fooled at {show(e)}" for e in _SHOWN_EPSILONS)
    table = Table((*head, "median smallest epsilon", "trained", "attacked"), rows)
    if curves:
        with left_out.unless_usable("the figure"):
            runs = [found.runs[_fooled(arch)][0] for arch in present]
            seeds = ", ".join(sorted({str(run.whole("seed")) for run in runs}))
            images = runs[0].whole("attacked_images")
            title = f"fast gradient sign, {images} test images, seed {seeds}"
            figure = draw_fooling_rates(curves, title)
            caption = "Fooling rate, and singular values of gradient signs"
            pictures = [_picture(name, figure, caption)]
    words = ["The paper prints no numbers here; it says that MultiResNet is the most sensitive."]
    return _section(name, words, [table], pictures)


def _fooling_rates_row(found: Reproduction, arch: str) -> list[Cell]:
    label = _fooled(arch)
    row: list[Cell] = [f"{arch}-10", _ours(metric(found.runs, label, "clean_accuracy"))]
    for step in map(epsilon_step, _SHOWN_EPSILONS):
        row.append(_ours([run.at("fooling_rate", step) for run in found.runs[label]]))
    median = metric(found.runs, label, "median_smallest_epsilon")
    row.append(", ".join(f"{255 * m:.1f}/255" for m in median) or _NONE)
    return [*row, _links(found, label[1:]), _links(found, label)]


_RATES = [f"{of}fooling_rate{end}" for of in ("", "random_") for end in ("", "_low", "_high")]


def _fooling_curve(name: str, run: FinishedRun) -> FoolingCurve:
    rates = recorded.columns(run, "rates.csv", ["epsilon", *_RATES])
    spectrum = recorded.columns(run, "spectrum.csv", ["singular_value", "random_singular_value"])
    images = recorded.columns(run, "images.csv", ["smallest_epsilon"], finite=False)
    return FoolingCurve(
        name=name,
        rows=[dict(zip(rates, row, strict=True)) for row in zip(*rates.values(), strict=True)],
        singular_values=spectrum["singular_value"],
        random_singular_values=spectrum["random_singular_value"],
        smallest=images["smallest_epsilon"],
    )


def _examples(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    label = _fooled("resnet")
    if label not in found.runs:
        return _not_run(name)
    pictures = _logged(found, label, "examples.png", name, left_out)
    return _section(name, tables=[_runs_table(found, [label[1:], label])], pictures=pictures)


# What the paper leaves open


def _readings(found: Reproduction, name: str, left_out: LeftOut) -> Section:
    rows: list[list[Cell]] = []
    distances: dict[str, dict[str, float]] = {}
    for arch, depth, change in plan.TRIED_READINGS:
        label = plan.training_label(arch, depth, change)
        what = ", ".join(map(str, label[3:])) or "as read here"
        with left_out.unless_usable(f"{arch}-{depth}, {what},"):
            train, way = (metric(found.runs, label, name) for name in _COMPARED)
            test = metric(found.runs, label, "final_test_accuracy")
            distance = _NONE
            if train and way and _at_papers_scale(found):
                of_paper = paper.TABLE_1[arch, max(depth, DEEP[0])]
                ours = statistics.fmean(train), statistics.fmean(way)
                away = sum(abs(a - b) for a, b in zip(ours, of_paper, strict=True))
                distance = f"{away:.3f}"
                distances.setdefault(f"{arch}-{depth}", {})[what] = away
            figures_of_it = map(_ours, (train, test, way))
            rows.append([f"{arch}-{depth}", what, *figures_of_it, distance, _links(found, label)])
    head = "network", "reading", "train", "test", "test, the paper's way", "distance", "runs"
    words = [
        "The paper doesn't say how its maps shrink, how it augmented, how many convolutions a "
        "shortcut spans, whether its ConvNet normalises, or which optimizer its learning rate "
        "belongs to. Each is tried on 10 layers, a ConvNet without normalisation on 50 as well, "
        "strides in place of pooling between the stages on 25. The distance is that of training "
        "accuracy and of test accuracy in the paper's way, added up, from what the paper "
        "prints for the same architecture with 50 layers, or for 10 layers with 25."
    ]
    for network, of_network in distances.items():
        if len(of_network) > 1:
            best = min(of_network, key=lambda what: of_network[what])
            words.append(f"Of the readings of {network} that were run, “{best}” comes closest.")
    return _section(name, words, [Table(head, rows)])


def _surroundings(found: Reproduction) -> Section:
    """Versions, code and settings of all runs, where they agree and where they don't."""
    rows: list[list[Cell]] = []
    # An attack's batch_size is another thing than a training's.
    trained = {label: runs for label, runs in found.runs.items() if not _is_about_a_model(label)}
    for names, where in (
        (("dataset", "dataset_digest", "batch_size", "learning_rate", "optimizer"), trained),
        (("augment", "precision", "width"), trained),
        (("tensorflow_version", "keras_version", "git_commit"), found.runs),
    ):
        runs = [run for several in where.values() for run in several]
        for name in names:
            values = {run.facts[name] for run in runs if name in run.facts}
            if values:
                rows.append([name, ", ".join(sorted(values))])
    if found.asked.data_dir is not None:
        rows.append(["data_dir", found.asked.data_dir])
    return Section("Settings", tables=[Table(("parameter", "value or values"), rows)])


# Pieces


def _section(
    name: str,
    paragraphs: Iterable[str] = (),
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
) -> Section:
    return Section(_title(name), tuple(paragraphs), tables, pictures, notes)


def _not_run(name: str) -> Section:
    return _section(name, ["Not run."])


def _title(name: str) -> str:
    titles = {**paper.RESULTS, plan.READINGS: ("What the paper leaves open",)}
    return ": ".join(titles[name])


def _ours(values: Sequence[float]) -> str:
    return claims.mean_and_deviation(values) if values else _NONE


def _difference(found: Reproduction, ours: Sequence[float], of_paper: float) -> str:
    if not ours or not _at_papers_scale(found):
        return _NONE
    return f"{statistics.fmean(ours) - of_paper:+.3f}"


def _at_papers_scale(found: Reproduction) -> bool:
    """Whether numbers can be held against the paper's."""
    return found.asked.scale == "paper"


def _time(found: Reproduction, label: Label) -> str:
    recorded_times = (run.metrics.get("total_seconds", -1) for run in found.runs.get(label, ()))
    times = [seconds for seconds in recorded_times if 0 <= seconds < _CENTURY]
    return duration(statistics.fmean(times)) if times else _NONE


def _links(found: Reproduction, label: Label) -> Cell:
    runs = found.runs.get(label, ())
    return [Link(run.run_id[:8], run.link) for run in runs] or _NONE


def _runs_table(found: Reproduction, labels: Sequence[Label]) -> Table:
    rows: list[list[Cell]] = [
        ["runs", *(_links(found, label) for label in labels)],
        ["time", *(_time(found, label) for label in labels)],
    ]
    return Table(("", *(_label_text(label) for label in labels)), rows)


def _is_about_a_model(label: Label) -> bool:
    return label[0] in plan.EXPERIMENTS


def _label_text(label: Label) -> str:
    if _is_about_a_model(label):
        return f"{label[0]} on {_label_text(label[1:])}"
    return "the 5-layer network" if label == _DIGITS else f"{label[1]}-{label[2]}"


def _logged(
    found: Reproduction, label: Label, file: str, name: str, left_out: LeftOut
) -> list[Picture]:
    """A picture that a run has logged."""
    with left_out.unless_usable(file):
        return [Picture(name, recorded.picture(found.runs[label][0], file), _title(name))]
    return []


def _picture(name: str, figure: Figure, caption: str) -> Picture:
    return Picture(name, page.png(figure), caption)


_SECTIONS: dict[str, Callable[[Reproduction, str, LeftOut], Section]] = {
    "table1": _accuracies,
    "table2": _accuracies,
    "table3": _examples,
    **dict.fromkeys(_OVERLAYS, _curves),
    "figure7": _universal_rates,
    **dict.fromkeys(("figure8", "figure9", "figure10"), _universal_pictures),
    "figure11": _fooling_rates,
    plan.READINGS: _readings,
}

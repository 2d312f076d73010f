"""Whether a model hides its gradient, in words and tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from resfool.attacks.verdict import CHECKS, TO_DO, Check, Verdict
from resfool.report import page

if TYPE_CHECKING:
    from resfool.attacks.examples import Attacked

_RAISED, _PASSED = "raised", "passed"
_MARKS = {_RAISED: "bad", _PASSED: "good"}
_NO_PROOF = (
    "No check is a proof: a gradient may be hidden in ways that they don't see. docs/how-sure.md "
    "says what each of them means, and what each method proves."
)
_NOT_COMPARED = (
    "Attacks with and without gradients were not compared: method=standard and its attacks do that."
)


def line(verdict: Verdict) -> str:
    """What is said of it at the terminal, beside the rates."""
    if verdict.hidden:
        return f"  WARNING: {verdict.warning}"
    if not verdict.checks:
        return "  no image is classified rightly, so nothing says whether the gradient is hidden"
    count, images = len(verdict.checks), verdict.images
    return f"  the gradient isn't hidden, as far as {count} checks on {images} images can tell"


def sections(results: Sequence["Attacked"]) -> list[page.Section]:
    """For each model a part of a report: the verdict, the checks, and what to do."""
    return [
        _section(_title(a.name, len(results)), a.name, a.curve.verdict)
        for a in results
        if a.curve.verdict is not None
    ]


def _title(name: str, models: int) -> str:
    return "Is the gradient hidden?" if models == 1 else f"Is the gradient of {name} hidden?"


def _section(title: str, name: str, verdict: Verdict) -> page.Section:
    if not verdict.checks:
        return page.Section(title, [f"{name} classifies no image rightly, so nothing was checked."])
    notes = [_NO_PROOF] if len(verdict.checks) == len(CHECKS) else [_NOT_COMPARED, _NO_PROOF]
    return page.Section(title, _in_words(name, verdict), [_table(verdict)], notes=notes)


def _in_words(name: str, verdict: Verdict) -> list[str]:
    if not verdict.hidden:
        return [
            f"{name} gives no sign of it: none of {len(verdict.checks)} checks on "
            f"{verdict.images} images that it classifies rightly was raised."
        ]
    advice = [f"{check.name}: {check.kind.advice}" for check in verdict.raised]
    return [f"Of {name} {verdict.warning}. {TO_DO}", *advice]


def _table(verdict: Verdict) -> page.Table:
    head = "check", "share that counts against the model", "found", "limit", "result"
    rows = [
        [check.name, check.kind.measured, f"{check.value:.3f}", f"{check.limit:.3f}", _said(check)]
        for check in verdict.checks
    ]
    return page.Table(head, rows, key=len(head) - 1, marks=_MARKS)


def _said(check: Check) -> str:
    return _RAISED if check.raised else _PASSED


def table(verdict: Verdict) -> pd.DataFrame:
    """The checks as a table: each with what it measured, its limit, and what to do if raised."""
    rows = [
        {
            "check": check.name,
            "measured": check.kind.measured,
            "value": check.value,
            "limit": check.limit,
            "raised": check.raised,
            "to_do": check.kind.advice if check.raised else "",
        }
        for check in verdict.checks
    ]
    return pd.DataFrame(rows)

"""Attacks in blocks: the same as at once, kept as they are done, gone on with, and spread."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resfool import experiments, parallel
from resfool.arrayfiles import DamagedError
from resfool.attacks import attack, examples
from resfool.attacks.epsilons import Curve, over_epsilons
from resfool.attacks.found import LARGE, attack_block, blocks_of, check_block
from resfool.attacks.options import METHODS, AttackParameters, HowToAttack
from resfool.classifiers import spreading
from resfool.classifiers.inference import LazyRows
from resfool.classifiers.keeping import Kept, settle
from resfool.classifiers.spreading import Columns
from resfool.errors import InputError
from tests.test_evaluation import EACH, QUICKLY, pixels_are_logits

SHAPE = (1, 3, 1)
COUNT = 10
LABELS = np.arange(COUNT) % 3


def images(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(5).random((count, *SHAPE), np.float32)


def asked_of(method: str) -> HowToAttack:
    return HowToAttack(method=method, epsilons=(0.0, 0.05, 0.2), **QUICKLY)


def figures(curve: Curve) -> dict[str, Any]:
    """All that was found, but the images and what moves them."""
    outcomes = {
        f"{n}_{f}": a for n in ("clean", "attacked") for f, a in vars(getattr(curve, n)).items()
    }
    names = "rows", "directions", "zero_gradient", "smallest", "first", "rounded", "verdict"
    return outcomes | {name: getattr(curve, name) for name in names}


def assert_equal(one: Curve, other: Curve) -> None:
    theirs = figures(other)
    for name, ours in figures(one).items():
        if isinstance(ours, np.ndarray) or hasattr(ours, "block"):
            np.testing.assert_array_equal(ours[:], theirs[name][:], err_msg=name)
        else:
            assert ours == theirs[name], name


@pytest.mark.parametrize("method", EACH)
def test_images_in_blocks_are_attacked_as_all_at_once(method: str) -> None:
    # A model whose logits are pixels computes nothing that could be rounded otherwise.
    model, asked = pixels_are_logits(), asked_of(method)
    whole = over_epsilons(model, images(), LABELS, asked)
    parts = over_epsilons(model, images(), LABELS, asked, block=4, batch_size=2)
    assert_equal(parts, whole)
    everything = np.arange(COUNT)
    for epsilon in asked.epsilons:
        np.testing.assert_array_equal(
            parts.move(everything, epsilon), whole.move(everything, epsilon)
        )


def kept_in(folder: Path, asked: HowToAttack, block: int = 4) -> Kept:
    own: Any = {"shape": SHAPE, "classes": 3, "epsilons": len(asked.positive_epsilons)}
    parts = blocks_of(images(), LABELS, asked, block)
    return Kept(folder / "attack", parts, LARGE, functools.partial(check_block, **own))


@pytest.mark.parametrize("method", ["fgsm", "pgd", "smallest", "standard"])
def test_an_interrupted_attack_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    model, asked = pixels_are_logits(), asked_of(method)
    whole = over_epsilons(model, images(), LABELS, asked, block=4)

    class Stopping(Kept):
        def keep(self, number: int, found: Columns) -> None:
            super().keep(number, found)
            if number == 1:
                raise KeyboardInterrupt

    first = kept_in(tmp_path, asked)
    with pytest.raises(KeyboardInterrupt):
        kept: Any = Stopping(first.folder, first._parts, LARGE, first._check)
        over_epsilons(model, images(), LABELS, asked, block=4, kept=kept)
    read: list[tuple[int, int]] = []

    def reading(rows: slice) -> np.ndarray:
        read.append((rows.start, rows.stop))
        return images()[rows]

    told: list[int] = []
    again = kept_in(tmp_path, asked)
    assert again.done() == [0, 1]
    curve = over_epsilons(
        model,
        LazyRows(COUNT, reading),
        LABELS,
        asked,
        block=4,
        kept=again,
        progress=lambda more, text="", /: told.append(more),
    )
    assert read[0] == (8, 10)  # the block that lacked
    assert all(stop - start == 1 for start, stop in read[1:])  # for the checks, and for pictures
    assert sum(told) >= asked.passes_of(COUNT)  # a block's last image may be attacked twice
    assert_equal(curve, whole)
    shown = zip(examples.examples(curve), examples.examples(whole), strict=True)
    assert all(one.shown[-1].predicted == other.shown[-1].predicted for one, other in shown)
    settle(again.stored, curve)
    assert again.folder not in tmp_path.iterdir()  # but what was found can be looked at
    np.testing.assert_array_equal(curve.move(np.arange(3), 0.2), whole.move(np.arange(3), 0.2))
    del curve
    assert not list(tmp_path.iterdir())


def test_what_an_attack_cannot_have_left_is_refused(tmp_path: Path) -> None:
    model, asked = pixels_are_logits(), asked_of("fgsm")
    kept = kept_in(tmp_path, asked)
    over_epsilons(model, images(), LABELS, asked, block=4, kept=kept)
    other = asked_of("fgsm")
    changed = replace(other, epsilons=(0.1,))
    with pytest.raises(InputError, match=r"block 0 of .* can't be used: its moved_classes have"):
        kept_in(tmp_path, changed).done()
    file = next((tmp_path / "attack").glob("directions-000001.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match=r"block 1 of .* has changed since it was written"):
        kept_in(tmp_path, asked).done()


BROKEN: dict[str, Any] = {
    "another class": ("moved_classes", lambda c: c + 3, "none of the 3 classes"),
    "a direction of two": ("directions", lambda c: np.full_like(c, 2), "no signs"),
    "no number": ("logits", lambda c: c * np.nan, "not finite"),
    "one lacking": ("random_norms", None, "no random_norms"),
    "another kind": ("clean_classes", lambda c: c.astype(np.float32), "not whole numbers"),
}


@pytest.mark.parametrize(("name", "change", "said"), BROKEN.values(), ids=BROKEN)
def test_columns_are_what_an_attack_leaves(name: str, change: Any, said: str | None) -> None:
    asked = asked_of("fgsm")
    options: Any = {"asked": asked, "seed": 0, "batch_size": 4}
    found = dict(attack_block(pixels_are_logits(), images(4), LABELS[:4], np.arange(4), **options))
    check_block(found, 4, SHAPE, 3, 2)
    if change is None:
        del found[name]
    else:
        found[name] = change(found[name])
    with pytest.raises(DamagedError, match=said):
        check_block(found, 4, SHAPE, 3, 2)


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        ((32, 32, 3), {}, 250),
        ((224, 224, 3), {}, 55),
        ((20_000, 20_000, 3), {}, 1),
        ((32, 32, 3), {"method": "smallest"}, 50),
        ((32, 32, 3), {"method": "smallest", "norm": "l2", "solver": "cobyla"}, 10),
        ((224, 224, 3), {"block_images": 300}, 300),
    ],
)
def test_blocks_are_no_larger_than_memory_likes(
    shape: tuple[int, ...], given: dict[str, Any], expected: int
) -> None:
    assert AttackParameters.of({"model": "it", **given}).images_at_once(shape) == expected


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ({"method": "fgsm"}, False),
        ({"method": "apgd"}, True),
        ({"method": "apgd", "attack_steps": 10}, False),
        ({"method": "standard"}, True),
        ({"method": "smallest"}, False),
        ({"method": "smallest", "norm": "l2", "solver": "cobyla"}, True),
    ],
)
def test_only_long_attacks_go_to_workers_by_themselves(
    given: dict[str, Any], workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreading, "multiplications", lambda model: 1e8)
    asked = AttackParameters.of({"model": "it", **given})
    assert attack._long(pixels_are_logits(), asked, 1000) is workers


# Whole experiments.


def saved(folder: Path) -> Path:
    keras.utils.set_random_seed(3)
    layers = keras.layers
    hidden = layers.Conv2D(6, 3, activation="relu"), layers.Flatten(), layers.Dense(10)
    path = folder / "theirs.keras"
    keras.Sequential([keras.Input((8, 8, 1)), *hidden]).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fgsm", "pgd", "smallest", "standard"])
def test_an_attack_has_the_same_bits_whoever_does_it(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {name: QUICKLY[name] for name in METHODS[method].takes if name in QUICKLY}
    options: dict[str, Any] = {"model": str(saved(tmp_path)), "dataset": "digits", "samples": 30}
    options |= {"method": method, "epsilons": (0.05, 0.2), "block_images": 8, **own}

    def attacked(**crew: Any) -> Curve:
        spread = functools.partial(parallel.map, **crew)
        kept: list[Curve] = []

        def record(part: Any, source: Any, result: Any, data: Any, split: Any) -> None:
            curve = result.curve
            kept.append(replace(curve, directions=curve.directions[:]))

        experiments.attack(None, None, record, spread, **options, **crew)
        return kept[0]

    alone, two, three = (
        attacked(**crew)
        for crew in ({"backend": "serial"}, {"workers": 2}, {"backend": "ray", "workers": 2})
    )
    assert_equal(two, alone)
    assert_equal(three, alone)
    assert not list(Path("checkpoints").iterdir())

"""Patterns that need no model, against what defines them, and the choice among them."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.errors import InputError
from resfool.universal import patterns, screening
from resfool.universal.judging import Ranked
from resfool.universal.patterns import PATTERNS, Patterned, candidates, sized
from resfool.universal.screening import Screen
from resfool.values import Norm
from tests.attacks.test_universal import linear_model

SHAPES = [(8, 8, 1), (32, 32, 3), (6, 17, 3)]
SHAPE = (8, 8, 1)
ALL = tuple(PATTERNS)


def named(shape: tuple[int, ...], *names: str, frequencies: int = 5) -> dict[str, np.ndarray]:
    return dict(candidates(shape, names or ALL, frequencies, 0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", PATTERNS)
def test_every_pattern_has_norm_1_a_negative_and_one_plane_for_all_channels(
    family: str, shape: tuple[int, ...]
) -> None:
    found = named(shape, family)
    again = named(shape, family)
    assert found
    for name, pattern in found.items():
        assert pattern.shape == shape and pattern.dtype == np.float32
        assert np.linalg.norm(pattern) == pytest.approx(1, rel=1e-5)
        np.testing.assert_array_equal(pattern, pattern[..., :1] * np.ones(shape[2], np.float32))
        np.testing.assert_array_equal(pattern, again[name])
        if not name.endswith("_negative"):
            np.testing.assert_array_equal(found[f"{name}_negative"], -pattern)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("period", [1, 2, 4])
def test_cells_are_those_of_a_plain_loop(period: int, shift: int) -> None:
    height, width, _ = shape = (8, 10, 1)
    board = patterns.checkerboard(shape, period, shift)
    along = patterns.stripes(shape, period, shift, vertical=True)
    down = patterns.stripes(shape, period, shift, vertical=False)
    for y in range(height):
        for x in range(width):
            of_row, of_column = (1 if (n + shift) // period % 2 == 0 else -1 for n in (y, x))
            size = 80**-0.5
            assert down[y, x, 0] == pytest.approx(of_row * size)
            assert along[y, x, 0] == pytest.approx(of_column * size)
            assert board[y, x, 0] == pytest.approx(of_row * of_column * size)


def test_only_what_fits_is_tried_in_both_phases() -> None:
    kinds = "checkerboard", "vertical", "horizontal"
    found = {name for name in named((4, 16, 1), *kinds) if not name.endswith("_negative")}
    short = {"1", "2", "2_shifted"}
    assert found == {f"{kind}_{name}" for kind in kinds for name in short} | {
        f"vertical_{name}" for name in ("4", "4_shifted", "8", "8_shifted")
    }
    assert len(named((16, 16, 1), *kinds)) == 3 * 7 * 2
    with pytest.raises(InputError, match="patterns=checkerboard don't fit images of 1x9 pixels"):
        Patterned(patterns=("checkerboard",)).check_fits((1, 9, 1))
    Patterned(patterns=("vertical",)).check_fits((1, 9, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_waves_are_an_orthonormal_basis_of_what_has_mean_0(shape: tuple[int, ...]) -> None:
    # cos t + sin t of every frequency is the kernel of the Hartley transform.
    if shape[0] * shape[1] > 200:
        shape = (12, 9, shape[2])
    pixels = shape[0] * shape[1]
    found = named(shape, "fourier", frequencies=10**6)
    rows = np.stack([w.ravel() for name, w in found.items() if not name.endswith("_negative")])
    assert len(rows) == pixels - 1
    np.testing.assert_allclose(rows @ rows.T, np.eye(pixels - 1), atol=1e-5)
    np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-4)


@pytest.mark.parametrize("frequency", [(0, 1), (3, 0), (-2, 3), (4, -4)])
def test_a_wave_has_its_frequency_alone(frequency: tuple[int, int]) -> None:
    spectrum = np.abs(np.fft.fft2(patterns.fourier(SHAPE, frequency)[..., 0]))
    down, along = frequency
    seen = {(int(k), int(m)) for k, m in np.argwhere(spectrum > 1e-4)}
    assert seen == {(down % 8, along % 8), (-down % 8, -along % 8)}


def test_fewer_frequencies_are_among_more() -> None:
    few, more = (named(SHAPE, "fourier", frequencies=n) for n in (4, 9))
    assert len(few) == 8 and few.keys() <= more.keys()


@pytest.mark.parametrize("wavelength", [4, 8])
@pytest.mark.parametrize("angle", [0, 90])
def test_gabor_noise_is_of_its_wavelength_and_direction(wavelength: int, angle: int) -> None:
    noise = patterns.gabor((64, 64, 1), wavelength, angle, 3)[..., 0]
    power = np.abs(np.fft.fft2(noise)) ** 2
    down, along = np.meshgrid(*[np.abs(np.fft.fftfreq(64))] * 2, indexing="ij")
    length, across = (along, down) if angle == 0 else (down, along)
    # The envelope's spectrum is a Gaussian of this deviation, in periods for each pixel.
    spread = 1 / (2 * np.pi * wavelength)
    assert np.average(length, weights=power) == pytest.approx(1 / wavelength, abs=spread / 2)
    assert np.average(across, weights=power) < spread


def test_perlin_noise_is_smooth_where_its_waves_are_long() -> None:
    def steps(wavelength: int, sine: int) -> float:
        noise = patterns.perlin((64, 64, 1), wavelength, sine, 0)[..., 0]
        return float(np.mean(np.diff(noise, axis=1) ** 2) / np.mean(noise**2))

    assert steps(16, 1) < steps(4, 1) < steps(2, 1)
    assert steps(16, 1) < steps(16, 4)
    other = patterns.perlin(SHAPE, 4, 1, 1)
    assert not np.array_equal(other, patterns.perlin(SHAPE, 4, 1, 2))


def test_perlins_weights_of_two_points_add_up_to_1_between_them() -> None:
    ends = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(patterns._faded(ends), [1, 0.5, 0])
    places = np.linspace(0, 1, 9)
    np.testing.assert_allclose(patterns._faded(places) + patterns._faded(1 - places), 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_patterns_have_the_norm_and_in_linf_all_of_it(shape: tuple[int, ...]) -> None:
    some = np.stack(list(named(shape).values()))
    np.testing.assert_allclose(lowrank.sizes(sized(some, Norm("l2", 3)), "l2"), 3, rtol=1e-5)
    signs = sized(some, Norm("linf", 0.1))
    np.testing.assert_allclose(np.abs(signs), 0.1)
    assert (signs * some >= 0).all()


def test_a_checkerboard_has_both_norms() -> None:
    board = patterns.checkerboard((8, 6, 3), 2)[np.newaxis]
    for given in (Norm("l2", 3.0), Norm("linf", 0.2)):
        l2, linf = patterns.both_norms(given, (8, 6, 3))
        assert given in (l2, linf)
        np.testing.assert_allclose(sized(board, l2), sized(board, linf), rtol=1e-5)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.45, 0.55, (120, *SHAPE)).astype(np.float32)


def planted(pattern: np.ndarray) -> keras.Model:
    """Two classes, all images in the first and 0.3 or nearer to the boundary along the pattern."""
    keras.utils.clear_session()
    direction = pattern.ravel()
    kernel = np.stack([-direction, direction], axis=1)
    return planted_model(kernel, np.array([0.3, -0.3]))


def planted_model(kernel: np.ndarray, bias: np.ndarray) -> keras.Model:
    given = keras.Input(SHAPE)
    dense = keras.layers.Dense(kernel.shape[1])
    model = keras.Model(given, dense(keras.layers.Flatten()(given)))
    dense.set_weights([kernel, bias])
    return model


def screen(model: keras.Model, images: np.ndarray, **options: Any) -> Screen:
    return Screen(model, images, ALL, frequencies=63, seed=0, **options)


@pytest.mark.parametrize("name", ["vertical_2_shifted", "checkerboard_4_negative"])
@pytest.mark.parametrize("thorough", [False, True])
def test_the_pattern_that_was_planted_is_chosen(
    images: np.ndarray, name: str, thorough: bool
) -> None:
    model = planted(named(SHAPE)[name])
    told: list[int] = []
    one = screen(model, images, thorough=thorough)
    # At a norm that no other pattern reaches the boundary with.
    found, unit = one.best(Norm("l2", 0.45), lambda more, text="", /: told.append(more))
    assert found == name
    np.testing.assert_array_equal(unit, named(SHAPE)[name])
    count = len(named(SHAPE, frequencies=63))
    passes = count * 120 if thorough else count * 50 + -(-count // 8) * 120
    assert sum(told) == passes == one.passes
    found_l2 = screening.beside(one, model, images, 0.45 * unit).l2
    assert found_l2.name == name and (found_l2.fooled != found_l2.clean).all()
    rates = found_l2.rates("pattern_")
    assert rates["final_pattern_fooling_rate"] == 1
    assert 0.95 < rates["final_pattern_fooling_rate_low"] < 1


def test_norms_that_agree_to_three_digits_have_one_choice(images: np.ndarray) -> None:
    model = planted(named(SHAPE)["vertical_2"])
    one = screen(model, images, chosen={"l2:0.45": "vertical_4"})
    told: list[int] = []
    found, _ = one.best(Norm("l2", 0.4501), lambda more, text="", /: told.append(more))
    assert found == "vertical_4"
    assert sum(told) == one.passes
    assert one.best(Norm("l2", 0.46))[0] == one.best(Norm("linf", 0.06))[0] == "vertical_2"
    assert one.chosen.keys() == {"l2:0.45", "l2:0.46", "linf:0.06"}


def test_the_table_has_every_pattern_with_the_rates_of_plain_loops(images: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(64, 3)).astype(np.float32)
    model = planted_model(kernel, np.zeros(3))
    told: list[int] = []
    one = screen(model, images)
    rows = one.table(Norm("linf", 0.05), lambda more, text="", /: told.append(more))
    found = named(SHAPE, frequencies=63)
    assert {row["pattern"] for row in rows} == found.keys() and len(rows) == len(found)
    assert sum(told) == one.passes_of_table == 4 * len(found) * len(images)

    def rate(vector: np.ndarray, clip: bool) -> float:
        moved = np.clip(images + vector, 0, 1) if clip else images + vector
        clean, under = ((x.reshape(-1, 64) @ kernel).argmax(axis=1) for x in (images, moved))
        return float((clean != under).mean())

    for row in (rows[0], rows[-1]):
        pattern = found[row["pattern"]]
        for kind, vector in (
            ("l2", pattern * 0.05 * 8),
            ("linf", np.where(pattern >= 0, 0.05, -0.05)),
        ):
            for name, clip in (("", False), ("clipped_", True)):
                expected = rate(vector.astype(np.float32), clip)
                assert row[f"{kind}_{name}fooling_rate"] == pytest.approx(expected, abs=0.01)
    best = [row["linf_fooling_rate"] for row in rows]
    assert best == sorted(best, reverse=True)


def test_the_pattern_stands_beside_every_rank_at_its_norm(images: np.ndarray) -> None:
    name = "horizontal_4"
    model = planted(named(SHAPE)[name])
    rows = [{"rank": 1, "l2_norm": 0.1}, {"rank": 5, "l2_norm": 0.6}]
    ranked = Ranked(list(rows), np.zeros(SHAPE, np.float32))
    norms: dict[str, Any] = {"norm": Norm("none"), "equal_norm": Norm("l2", 0.5)}
    told: list[int] = []
    one = screen(model, images)
    found = screening.beside_ranks(
        one, images, ranked, 5, **norms, progress=lambda more, text="", /: told.append(more)
    )
    assert [row["pattern_fooling_rate"] for row in found.rows] == [0, 1]
    assert [row["equal_pattern_fooling_rate"] for row in found.rows] == [1, 1]
    assert found.patterns == (name, name)
    assert ranked.rows == rows  # as they were
    assert sum(told) == screening.choices(**norms) * one.passes
    free: Any = {"norm": Norm("none"), "equal_norm": Norm("none")}
    rows = [row | {"equal_l2_norm": row["l2_norm"]} for row in rows]
    same = screening.beside_ranks(one, images, Ranked(rows, ranked.vector), 5, **free)
    assert [row["equal_pattern_fooling_rate"] for row in same.rows] == [0, 1]


def test_noise_and_nothing_have_a_best_pattern_too(images: np.ndarray) -> None:
    model = linear_model(np.zeros((20, 2)), np.array([1.0, 0.0]))
    one = screen(model, images[:3, :4, :5])
    found = screening.beside(one, model, images[:3, :4, :5], np.zeros((4, 5, 1), np.float32))
    assert not found.l2.vector.any() and not found.linf.vector.any()
    assert found.rates["final_pattern_fooling_rate"] == 0

"""Patterns that need no model: what a universal perturbation must beat to be worth its search.

Each function makes one pattern of images of a shape (H, W, C): float32, of l2 norm 1, the same in
all channels. A family lists those of its kind that fit; `candidates` adds their negatives.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np

from resfool.attacks import lowrank
from resfool.costs import Data
from resfool.declarations import Known, Needs
from resfool.errors import InputError
from resfool.parameters import Parameters
from resfool.values import Names, Norm, PositiveCount, listed, show

Shape = tuple[int, ...]  # of an image: (H, W, C)
Named = Iterator[tuple[str, np.ndarray]]  # patterns by their names
Family = Callable[[Shape, int, int], Named]  # from a shape, a seed and a number of frequencies

MOST_IMAGES = 200  # fitting images that the choice is made on, the first of them
FIRST_IMAGES = 50  # that all patterns are tried on; the best of them then on the rest, too
_PERIODS = 1, 2, 4, 8  # pixels of a cell of a checkerboard, or of a stripe
_WAVELENGTHS = 2, 4, 8, 16  # pixels
_SINES = 1, 4  # periods of the sine between Perlin noise of 0 and 1
_ANGLES = 0, 45, 90, 135  # degrees
_NEGATIVE = "_negative"


def checkerboard(shape: Shape, period: int, shift: int = 0) -> np.ndarray:
    """Squares of `period` pixels, in turn bright and dark, moved by `shift` pixels both ways."""
    rows, columns = (_turns(size, period, shift) for size in shape[:2])
    return _unit(np.outer(rows, columns), shape)


def stripes(shape: Shape, period: int, shift: int = 0, *, vertical: bool) -> np.ndarray:
    """Stripes that are `period` pixels wide, in turn bright and dark, moved by `shift` pixels."""
    height, width = shape[:2]
    plane = _turns(width, period, shift) if vertical else _turns(height, period, shift)[:, None]
    return _unit(np.broadcast_to(plane, (height, width)), shape)


def fourier(shape: Shape, frequency: tuple[int, int]) -> np.ndarray:
    """A single wave: cos t + sin t, where t grows by 2 pi `frequency` from edge to edge.

    The opposite frequency has the other phase.

    Args:
        shape: (H, W, C).
        frequency: whole periods along the height and along the width, not both 0.

    Source: Tsuzuku, Sato, "On the structural sensitivity of deep convolutional networks to the
    directions of Fourier basis functions", arXiv:1809.04098.
    """
    down, along = (
        2 * np.pi * count * np.arange(size) / size
        for count, size in zip(frequency, shape[:2], strict=True)
    )
    angles = down[:, np.newaxis] + along
    return _unit(np.cos(angles) + np.sin(angles), shape)


def perlin(shape: Shape, wavelength: int, sine: int, seed: int) -> np.ndarray:
    """Perlin noise in octaves down to 2 pixels, each half as wide and high, through a sine.

    Args:
        shape: (H, W, C).
        wavelength: of the first octave, in pixels, at least 2.
        sine: periods of the sine that the noise goes through, for each unit of it.
        seed: of the slopes on the lattice.

    Source: Co et al., "Procedural noise adversarial examples for black-box attacks on deep
    convolutional networks", arXiv:1810.00470.
    """
    random = np.random.default_rng(seed)
    noise, height = np.zeros(shape[:2]), 1.0
    while wavelength >= 2:
        noise += height * _octave(shape, wavelength, random)
        wavelength, height = wavelength // 2, height / 2
    return _unit(np.sin(2 * np.pi * sine * noise), shape)


def gabor(shape: Shape, wavelength: int, angle: float, seed: int) -> np.ndarray:
    """Gabor noise: short waves of one length and direction at random places, of random signs.

    Args:
        shape: (H, W, C).
        wavelength: in pixels; the standard deviation of the Gaussian around each wave, too.
        angle: of its direction to the width, in degrees.
        seed: of places and signs.

    Source: Co et al., arXiv:1810.00470.
    """
    size = shape[:2]
    random = np.random.default_rng(seed)
    pixels = size[0] * size[1]
    signs = np.zeros(pixels)
    places = random.choice(pixels, -(-pixels // 8), replace=False)
    signs[places] = random.choice((-1.0, 1.0), len(places))
    y, x = np.meshgrid(*((np.arange(n) + n // 2) % n - n // 2 for n in size), indexing="ij")
    turn = np.deg2rad(angle)
    wave = np.cos(2 * np.pi / wavelength * (x * np.cos(turn) + y * np.sin(turn)))
    kernel = wave * np.exp(-(x**2 + y**2) / (2 * wavelength**2))
    spectrum = np.fft.fft2(kernel) * np.fft.fft2(signs.reshape(size))
    return _unit(np.fft.ifft2(spectrum).real, shape)


def _octave(shape: Shape, wavelength: int, random: np.random.Generator) -> np.ndarray:
    """Noise of slopes on a lattice, seen between its points, where it is 0; float64 (H, W)."""
    down, along = ((np.arange(n) + 0.5) / wavelength for n in shape[:2])
    angles = random.uniform(0, 2 * np.pi, (int(down[-1]) + 2, int(along[-1]) + 2))
    rows, columns = down.astype(int)[:, np.newaxis], along.astype(int)
    y, x = (down % 1)[:, np.newaxis], along % 1
    noise = np.zeros(shape[:2])
    for i in (0, 1):
        for j in (0, 1):
            turn = angles[rows + i, columns + j]
            slope = np.cos(turn) * (x - j) + np.sin(turn) * (y - i)
            noise += slope * _faded(np.abs(y - i)) * _faded(np.abs(x - j))
    return noise


def _faded(distance: np.ndarray) -> np.ndarray:
    """Perlin's weight of a lattice point: 1 at it and 0 at the next, flat at both."""
    return 1 - distance**3 * (distance * (6 * distance - 15) + 10)


def _turns(size: int, period: int, shift: int) -> np.ndarray:
    """1 and -1 in turn, each `period` times, float64 (size,)."""
    return 1.0 - 2.0 * ((np.arange(size) + shift) // period % 2)


def _unit(plane: np.ndarray, shape: Shape) -> np.ndarray:
    """A plane (H, W) in all channels of an image, float32 (H, W, C) of l2 norm 1."""
    whole = np.broadcast_to(plane[..., np.newaxis], shape)
    return (whole / np.linalg.norm(whole)).astype(np.float32)


def _cells(size: int) -> Iterator[tuple[str, int, int]]:
    """Periods and shifts that fit, with what they are called.

    The other phase is half a cell away; a whole one is the negative, and pixels have no half.
    """
    for period in _PERIODS:
        if 2 * period <= size:
            yield f"{period}", period, 0
            if period > 1:
                yield f"{period}_shifted", period, period // 2


def _checkerboards(shape: Shape, seed: int, frequencies: int) -> Named:
    for name, period, shift in _cells(min(shape[:2])):
        yield name, checkerboard(shape, period, shift)


def _vertical(shape: Shape, seed: int, frequencies: int) -> Named:
    for name, period, shift in _cells(shape[1]):
        yield name, stripes(shape, period, shift, vertical=True)


def _horizontal(shape: Shape, seed: int, frequencies: int) -> Named:
    for name, period, shift in _cells(shape[0]):
        yield name, stripes(shape, period, shift, vertical=False)


def _waves(shape: Shape, seed: int, frequencies: int) -> Named:
    height, width = shape[:2]
    # Number 0 is no wave; fewer frequencies are the beginning of more.
    drawn = np.random.default_rng(seed).permutation(np.arange(1, height * width))[:frequencies]
    for number in drawn:
        # From -n/2 to n/2, which is what a wave of more periods looks like on pixels.
        down, along = (
            int((k + n // 2) % n - n // 2)
            for k, n in zip(divmod(int(number), width), (height, width), strict=True)
        )
        yield f"{down}_{along}", fourier(shape, (down, along))


def _perlins(shape: Shape, seed: int, frequencies: int) -> Named:
    for wavelength in _WAVELENGTHS:
        if wavelength <= min(shape[:2]):
            for sine in _SINES:
                yield f"{wavelength}_{sine}", perlin(shape, wavelength, sine, seed)


def _gabors(shape: Shape, seed: int, frequencies: int) -> Named:
    for wavelength in _WAVELENGTHS[:-1]:
        if wavelength <= min(shape[:2]):
            for angle in _ANGLES:
                yield f"{wavelength}_{angle}", gabor(shape, wavelength, angle, seed)


PATTERNS: dict[str, Family] = {
    "checkerboard": _checkerboards,
    "vertical": _vertical,
    "horizontal": _horizontal,
    "fourier": _waves,
    "perlin": _perlins,
    "gabor": _gabors,
}


class Patterned(Parameters):
    """Which patterns a perturbation is compared with."""

    patterns: Annotated[
        Annotated[Names, Known(PATTERNS)] | None,
        f"of which the best is chosen on fitting images: {listed(PATTERNS)}, comma separated; none "
        "is all of them.",
    ] = None
    frequencies: Annotated[
        PositiveCount,
        Needs(patterns=(None, "fourier")),
        "single Fourier waves that are tried, each with both signs, drawn at random.",
    ] = 32

    def candidates(self, shape: Shape, seed: int) -> Named:
        """The patterns that were asked for, with their negatives; see `candidates`."""
        return candidates(shape, self.patterns or tuple(PATTERNS), self.frequencies, seed)

    def least_passes(self, data: Data) -> int:
        """How many passes the choice takes at least, one pattern and image each."""
        waves = self.patterns is None or "fourier" in self.patterns
        count = min(self.frequencies, data.pixels) if waves else 1
        return count * min(data.images, FIRST_IMAGES)

    def check_fits(self, shape: Shape) -> None:
        """Refuse patterns of which none fits images of a shape (H, W, C).

        Raises:
            InputError: none does.
        """
        if next(self.candidates(shape, 0), None) is None:
            raise InputError(
                f"patterns={show(self.patterns)} don't fit images of {shape[0]}x{shape[1]} pixels; "
                "a pattern needs room for two stripes or cells"
            )


def candidates(shape: Shape, names: Sequence[str], frequencies: int, seed: int) -> Named:
    """Patterns and their negatives by their names, one after the other.

    Args:
        shape: (H, W, C).
        names: of families, in `PATTERNS`.
        frequencies: of Fourier waves, drawn at random.
        seed: of these and of the noise.
    """
    for family in dict.fromkeys(names):
        for name, pattern in PATTERNS[family](shape, seed, frequencies):
            yield f"{family}_{name}", pattern
            yield f"{family}_{name}{_NEGATIVE}", -pattern


def sized(patterns: np.ndarray, norm: Norm) -> np.ndarray:
    """Patterns (K, H, W, C) at a norm: scaled in l2, and in linf their signs, as large as it is.

    All of a pixel's bound is used, as Co et al. do: no pattern has a larger l2 norm within it.
    """
    if norm.kind == "linf":
        size = np.float32(norm.size)
        return np.where(patterns >= 0, size, -size).astype(np.float32)
    return lowrank.rescaled(patterns, norm)


def both_norms(norm: Norm, shape: Shape) -> tuple[Norm, Norm]:
    """The l2 and the linf norm that a checkerboard has, one of which is given."""
    root = float(np.prod(shape)) ** 0.5
    if norm.kind == "linf":
        return Norm("l2", norm.size * root), norm
    return norm, Norm("linf", norm.size / root)

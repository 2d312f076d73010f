"""The best of patterns for a model: chosen on fitting images, judged on held-out ones."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.classifiers.inference import BATCH_SIZE, Images
from resfool.monitor import Advance, quiet
from resfool.universal.judging import Judged, Ranked, judged
from resfool.universal.patterns import (
    FIRST_IMAGES,
    MOST_IMAGES,
    Named,
    Shape,
    both_norms,
    candidates,
    sized,
)
from resfool.universal.vectors import applied
from resfool.values import Norm, Row

_KEPT = 8  # of so many patterns one is tried on all images
_CHUNK = 32  # patterns in memory at a time


@dataclass(frozen=True)
class Patterns:
    """The best patterns at the norms of a universal perturbation.

    Attributes:
        l2: the best at the same l2 norm.
        linf: the best at the same l-infinity norm.
    """

    l2: Judged
    linf: Judged

    @property
    def rates(self) -> Row:
        """Fooling rates of both, with the ends of their 95% intervals."""
        return self.l2.rates("pattern_") | self.linf.rates("linf_pattern_")

    def success_rates(self, target: int) -> Row:
        """The same of images of other classes that become the target."""
        found = self.l2.success_rates("pattern_", target)
        return found | self.linf.success_rates("linf_pattern_", target)


@dataclass(frozen=True)
class Screen:
    """What patterns are tried on.

    Attributes:
        model: from images to logits, whose predictions shall change.
        fitting: float32 (N, H, W, C), of which the first 200 choose.
        names: of the families of patterns.
        frequencies: of Fourier waves.
        seed: of what is drawn at random.
        clip: choose on clipped images.
        thorough: whether all patterns are tried on as many images as the best of them.
        batch_size: images per pass, at most.
        chosen: names of the best, by the norms that they were sought at until now.
    """

    model: keras.Model
    fitting: Images
    names: Sequence[str]
    frequencies: int
    seed: int
    clip: bool = False
    thorough: bool = False
    batch_size: int = BATCH_SIZE
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """(H, W, C)."""
        return self.fitting.shape[1:]

    def patterns(self) -> Named:
        """See `candidates`."""
        return candidates(self.shape, self.names, self.frequencies, self.seed)

    def count(self) -> int:
        """How many patterns there are."""
        return sum(1 for _ in self.patterns())

    @property
    def passes(self) -> int:
        """How many passes `best` tells its progress of, one pattern and image each."""
        count = self.count()
        if self.thorough:
            return count * len(self._images)
        return count * len(self._images[:FIRST_IMAGES]) + -(-count // _KEPT) * len(self._images)

    @property
    def passes_of_table(self) -> int:
        """The same of `table`."""
        return 4 * self.count() * len(self._images)

    @cached_property
    def _images(self) -> np.ndarray:
        return self.fitting[:MOST_IMAGES]

    def best(self, norm: Norm, progress: Advance = quiet) -> tuple[str, np.ndarray]:
        """The pattern that fools most fitting images at a norm, and its name.

        All are tried on the first 50 images, and the best eighth of them on the first 200; if
        thorough, all on these. Norms that agree to three digits have the same.

        Args:
            norm: of kind l2 or linf.
            progress: is told of the passes; see `passes`.

        Returns:
            The name, and float32 (H, W, C) of l2 norm 1.
        """
        near = f"{norm.kind}:{norm.size:.3g}"
        if near in self.chosen:
            progress(self.passes)
        else:
            self.chosen[near] = self._chosen(norm, progress)
        return self.chosen[near], self.named(self.chosen[near])

    def _chosen(self, norm: Norm, progress: Advance) -> str:
        """The name of the pattern that fools most fitting images at a norm."""
        images = self._images if self.thorough else self._images[:FIRST_IMAGES]
        found = self.rates(self.patterns(), images, norm, clip=self.clip, progress=progress)
        if not self.thorough:
            kept = sorted(found, key=lambda name: -found[name])[: -(-len(found) // _KEPT)]
            left = ((name, pattern) for name, pattern in self.patterns() if name in kept)
            found = self.rates(left, self._images, norm, clip=self.clip, progress=progress)
        return max(found, key=lambda name: found[name])

    def named(self, wanted: str) -> np.ndarray:
        """A pattern by its name, float32 (H, W, C) of l2 norm 1."""
        return next(pattern for name, pattern in self.patterns() if name == wanted)

    def rates(
        self,
        patterns: Named,
        images: Images,
        norm: Norm,
        *,
        clip: bool = False,
        progress: Advance = quiet,
    ) -> dict[str, float]:
        """The fooling rates of patterns at a norm on images (N, H, W, C), by their names."""
        found: dict[str, float] = {}
        options: Any = {"clip": clip, "batch_size": self.batch_size}
        while chunk := dict(itertools.islice(patterns, _CHUNK)):
            vectors = sized(np.stack(list(chunk.values())), norm)
            rates = applied(self.model, images, vectors, **options).rates
            found |= zip(chunk, map(float, rates), strict=True)
            progress(len(chunk) * len(images))
        return found

    def table(self, norm: Norm, progress: Advance = quiet) -> list[dict[str, Any]]:
        """Every pattern on the first 200 fitting images, at equal l2 and at equal linf norm.

        Args:
            norm: one of the two; a checkerboard has both.
            progress: is told of the passes, one pattern and image each: four for every pair.

        Returns:
            For each pattern its name, and its fooling rates at both norms, clipped and not.
        """
        rows: dict[str, dict[str, Any]] = {name: {"pattern": name} for name, _ in self.patterns()}
        for one in both_norms(norm, self.shape):
            for clip in (False, True):
                column = f"{one.kind}_{'clipped_' if clip else ''}fooling_rate"
                rates = self.rates(self.patterns(), self._images, one, clip=clip, progress=progress)
                for name, rate in rates.items():
                    rows[name][column] = rate
        by = f"{norm.kind}_{'clipped_' if self.clip else ''}fooling_rate"
        return sorted(rows.values(), key=lambda row: -row[by])


def beside(
    screen: Screen,
    model: keras.Model,
    held_out: Images,
    vector: np.ndarray,
    progress: Advance = quiet,
) -> Patterns:
    """The best patterns at the norms of a universal perturbation, on held-out images.

    Args:
        screen: what chooses them.
        model: from images to logits, what they are judged by.
        held_out: float32 (M, H, W, C).
        vector: float32 (H, W, C), the perturbation.
        progress: is told of the passes of two choices.
    """
    found = []
    for kind in ("l2", "linf"):
        norm = Norm(kind, float(lowrank.sizes(vector[np.newaxis], kind)[0]))
        name, unit = screen.best(norm, progress)
        (pattern,) = sized(unit[np.newaxis], norm)
        found += judged(model, held_out, {name: pattern}, batch_size=screen.batch_size)
    return Patterns(*found)


def beside_ranks(
    screen: Screen,
    held_out: Images,
    ranked: Ranked,
    rank: int,
    *,
    norm: Norm,
    equal_norm: Norm,
    progress: Advance = quiet,
) -> Ranked:
    """Fooling rates over the rank with those of the best pattern of the same norm beside them.

    It is chosen once for each side of the comparison: at its norm, or at the mean l2 norm of the
    perturbations of the rank that was asked for.

    Args:
        screen: what chooses it.
        held_out: float32 (M, H, W, C).
        ranked: of `judging.over_ranks`.
        rank: that was asked for.
        norm: that the perturbations are scaled to, or of kind "none".
        equal_norm: that all of them are scaled to for the fair comparison, or the same.
        progress: is told of the passes of the choices: one, if both norms are the same, or two.
    """
    sides = {"": norm, "equal_": equal_norm}

    def size_at(row: Row, prefix: str) -> Norm:
        one = sides[prefix]
        return one if one.kind != "none" else Norm("l2", row[f"{prefix}l2_norm"])

    (asked,) = (row for row in ranked.rows if row["rank"] == rank)
    at = {prefix: size_at(asked, prefix) for prefix in sides}
    chosen = {size: screen.best(size, progress) for size in dict.fromkeys(at.values())}
    rows = [dict(row) for row in ranked.rows]
    for prefix in sides:
        unit = chosen[at[prefix]][1][np.newaxis]
        norms = [size_at(row, prefix) for row in rows]
        each = list(dict.fromkeys(norms))
        vectors = np.concatenate([sized(unit, size) for size in each])
        for clip in (False, True):
            options: Any = {"clip": clip, "batch_size": screen.batch_size}
            rates = applied(screen.model, held_out, vectors, **options).rates
            name = f"{prefix}{'clipped_' if clip else ''}pattern_fooling_rate"
            for row, size in zip(rows, norms, strict=True):
                row[name] = float(rates[each.index(size)])
    return replace(ranked, rows=rows, patterns=(chosen[at[""]][0], chosen[at["equal_"]][0]))


def choices(*, norm: Norm, equal_norm: Norm) -> int:
    """How many patterns `beside_ranks` chooses, its arguments being these."""
    return 1 if norm == equal_norm else 2

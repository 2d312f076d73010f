"""What a method finds of images, block by block: here or in workers, in memory or on the disk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np

from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check
from resfool.attacks import gradient
from resfool.attacks.gradient import Outcome, SignGradients
from resfool.attacks.methods.moving import Start
from resfool.attacks.options import METHODS, HowToAttack
from resfool.classifiers import inference, spreading
from resfool.classifiers.inference import Rows
from resfool.classifiers.keeping import Kept, Stored
from resfool.classifiers.spreading import Blocks, Columns, Workers
from resfool.monitor import Advance, quiet

LARGE = "logits", "directions", "fooling"  # columns with many numbers an image
_OUTCOMES = "moved", "random"  # under attack, and with random signs: (N, E) of each field


def attack_block(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    places: np.ndarray,
    *,
    asked: HowToAttack,
    seed: int,
    batch_size: int,
    progress: Advance = quiet,
) -> Columns:
    """What becomes of some images under attack, for `spreading.in_blocks`.

    Args:
        model: from images to logits.
        images: float32 (n, H, W, C) in [0, 1].
        labels: int (n,).
        places: int (n,), the images' numbers among all, one after the other.
        asked: by which method, at which epsilons, and how.
        seed: of what is drawn at random.
        batch_size: images per pass.
        progress: is told the passes done, one image each.

    Returns:
        (n, ...) each: `logits` and `directions` of the images as they are, with `clean_classes` and
        `clean_confidences`; of the outcome at each epsilon and of that by random signs the classes,
        confidences and norms; and what else the method finds, see `Moved`.
    """
    first = gradient.sign_gradients(
        model,
        images,
        None if asked.label_source == "prediction" else labels,
        batch_size=batch_size,
        progress=lambda count, text="", /: progress(2 * count, text),
    )
    epsilons = asked.positive_epsilons
    start = Start(model, images, first, epsilons, asked.clip, seed, batch_size, progress, places)
    moved = METHODS[asked.method].move(start, asked)
    lengths = epsilons
    if asked.ball == "l2":  # of which all signs together have the square root of the pixels
        lengths = [epsilon / math.sqrt(images[0].size) for epsilon in epsilons]
    noise = gradient.along(
        model,
        images,
        gradient.random_signs(images.shape, seed, int(places[0])),
        lengths,
        progress=start.passes(len(epsilons)),
        **start.options,
    )
    clean = Outcome.unmoved(first.logits)
    found: dict[str, np.ndarray | None] = {
        "logits": first.logits,
        "directions": first.signs.reshape(len(images), -1),
        "clean_classes": clean.classes[0],
        "clean_confidences": clean.confidences[0],
        "fooling": moved.fooling,
        "smallest": moved.smallest,
        "first": None if moved.first is None else moved.first.T,
        "rounded": moved.rounded,
    }
    for name, outcome in zip(_OUTCOMES, (moved.outcome, noise), strict=True):
        found |= {f"{name}_{field}": rows.T for field, rows in vars(outcome).items()}
    return {name: column for name, column in found.items() if column is not None}


def check_block(
    columns: Mapping[str, np.ndarray], count: int, shape: Sequence[int], classes: int, epsilons: int
) -> None:
    """Refuse columns that `attack_block` can't have left.

    Args:
        columns: (n, ...) each.
        count: n.
        shape: (H, W, C) of the images.
        classes: of the model.
        epsilons: above 0.

    Raises:
        DamagedError: they can't be.
    """
    of_epsilons = (count, epsilons)
    wanted = {
        "logits": Wanted("f", (count, classes)),
        "directions": Wanted("i", (count, math.prod(shape))),
        "clean_classes": Wanted("i", (count,)),
        "clean_confidences": Wanted("f", (count,)),
    }
    for name in _OUTCOMES:
        wanted[f"{name}_classes"] = Wanted("i", of_epsilons)
        for other in ("confidences", "norms"):
            wanted[f"{name}_{other}"] = Wanted("f", of_epsilons, most=ABSURD)
    may_be = {
        "fooling": Wanted("f", (count, *shape), most=ABSURD),
        "smallest": Wanted("f", (count,), finite=False, most=ABSURD),
        "first": Wanted("i", of_epsilons),
        "rounded": Wanted("b", (count,)),
    }
    check(columns, wanted | {n: one for n, one in may_be.items() if n in columns})
    if (np.abs(columns["directions"]) > 1).any():
        raise DamagedError("its directions are no signs")
    for name in ("clean_classes", *(f"{name}_classes" for name in _OUTCOMES)):
        if (columns[name] < 0).any() or (columns[name] >= classes).any():
            raise DamagedError(f"its {name} are none of the {classes} classes")


@dataclass(frozen=True)
class Found:
    """What was found of N images.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], as they were.
        labels: int (N,), the true ones.
        asked: by which method, at which epsilons, and how.
        seed: of what was drawn at random.
        batch_size: images per pass.
        columns: what `attack_block` makes of images, (N, ...) each.
    """

    model: keras.Model
    images: Rows
    labels: np.ndarray
    asked: HowToAttack
    seed: int
    batch_size: int
    columns: Mapping[str, Stored]

    @classmethod
    def of(
        cls,
        model: keras.Model,
        images: Rows,
        labels: np.ndarray,
        asked: HowToAttack,
        *,
        seed: int,
        batch_size: int,
        block: int | None,
        workers: Workers | None,
        kept: Kept | None,
        progress: Advance,
    ) -> "Found":
        """Attack the images that weren't before; the arguments are those of `over_epsilons`."""
        parts = blocks_of(images, labels, asked, block)
        size = inference.even(parts.size, batch_size)
        done = kept.done() if kept is not None else []
        each = asked.passes_each

        def told(more: int, text: str = "", /) -> None:
            progress(more if workers is None else each * more, text)

        progress(each * sum(map(parts.count, done)))
        results = spreading.in_blocks(
            model,
            attack_block,
            parts,
            {"asked": asked, "seed": seed, "batch_size": size},
            workers=workers,
            finished={number: {} for number in done},
            keep=(lambda number, found: None) if kept is None else kept.keep,
            hold=kept is None,
            progress=told,
        )
        columns = spreading.joined(results) if kept is None else kept.columns
        return cls(model, images, labels, asked, seed, size, columns)

    def _whole(self, name: str) -> np.ndarray:
        """A small column."""
        return self.columns[name][:]

    def _outcome(self, name: str) -> Outcome:
        """At E epsilons."""
        fields = "classes", "confidences", "norms"
        return Outcome(*(np.ascontiguousarray(self._whole(f"{name}_{f}").T) for f in fields))

    def _perhaps(self, name: str) -> np.ndarray | None:
        return self._whole(name) if name in self.columns else None

    @cached_property
    def clean(self) -> Outcome:
        """Without a perturbation, E = 1."""
        classes = self._whole("clean_classes")[np.newaxis]
        confidences = self._whole("clean_confidences")[np.newaxis]
        return Outcome(classes, confidences, np.zeros(classes.shape))

    @cached_property
    def moved(self) -> Outcome:
        """Under attack."""
        return self._outcome("moved")

    @cached_property
    def random(self) -> Outcome:
        """With random signs instead."""
        return self._outcome("random")

    @cached_property
    def smallest(self) -> np.ndarray | None:
        """See `Moved`."""
        return self._perhaps("smallest")

    @cached_property
    def first(self) -> np.ndarray | None:
        """See `Moved`."""
        found = self._perhaps("first")
        return None if found is None else np.ascontiguousarray(found.T)

    @cached_property
    def rounded(self) -> np.ndarray | None:
        """See `Moved`."""
        return self._perhaps("rounded")

    @property
    def directions(self) -> Stored:
        """The signs of the loss gradients, int8 (N, H * W * C)."""
        return self.columns["directions"]

    @cached_property
    def zero_gradient(self) -> np.ndarray:
        """Where they are all zero, bool (N,)."""
        rows = self.directions
        pieces = inference.batches(len(rows), inference.BATCH_SIZE)
        return np.concatenate([~rows[piece].any(axis=1) for piece in pieces])

    @property
    def labels_of_loss(self) -> np.ndarray:
        """The classes whose loss was raised, int (N,)."""
        by_prediction = self.asked.label_source == "prediction"
        return self.clean.classes[0] if by_prediction else self.labels.astype(np.int64)

    def by_search(self, right: np.ndarray) -> float:
        """The share of some images that the attack's own Square fooled after gradients had failed.

        Args:
            right: their numbers.
        """
        names = self.asked.attacks
        if self.first is None or "square" not in names[1:] or not len(right):
            return 0.0
        return float((self.first[:, right] == names.index("square")).any(axis=0).mean())

    def start(self, chosen: np.ndarray) -> Start:
        """Where some of the images started, by their numbers."""
        images = inference.at(self.images, chosen)
        signs = inference.at(self.directions, chosen).reshape(images.shape)
        logits = inference.at(self.columns["logits"], chosen)
        first = SignGradients(signs, logits, self.labels_of_loss[chosen])
        options = self.asked.positive_epsilons, self.asked.clip, self.seed, self.batch_size
        return Start(self.model, images, first, *options, quiet, chosen)

    def at(self, chosen: np.ndarray, epsilon: float) -> np.ndarray:
        """Some of the images under attack, by their numbers: float32 (n, H, W, C)."""
        if self.first is None:
            return METHODS[self.asked.method].moved_at(self.start(chosen), self.asked, epsilon)
        fooled = np.zeros(len(chosen), bool)
        for reached, row in zip(self.asked.positive_epsilons, self.first, strict=True):
            if reached <= epsilon:
                fooled |= row[chosen] >= 0
        moved = inference.at(self.columns["fooling"], chosen)
        return np.where(fooled.reshape(-1, 1, 1, 1), moved, inference.at(self.images, chosen))


def blocks_of(images: Rows, labels: np.ndarray, asked: HowToAttack, block: int | None) -> Blocks:
    """Images, labels and the images' numbers, in blocks of so many, or of as many as is usual."""
    most = block or asked.images_at_once(images[:1].shape[1:])
    padded = asked.way is None or not asked.way.slow
    return Blocks((images, labels, np.arange(len(labels))), most, padded)

"""Encoded pictures (PNG, JPEG, BMP, WebP), decoded when they are asked for."""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from resfool import limits
from resfool.datasets.stored import Array
from resfool.errors import InputError, reading
from resfool.parameters import OwnImages
from resfool.values import Crop, show

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_BYTES_A_PIXEL = 12  # of three copies with four channels, while it is turned and cut
# Each scan of a progressive JPEG, a few bytes, goes over all pixels; encoders write about ten.
_SCAN, _MOST_SCANS = b"\xff\xda", 200
_ORIENTATION = 0x0112  # in EXIF; from 5 on the sides are swapped


class Source(Protocol):
    """Where encoded pictures lie."""

    def __len__(self) -> int:
        """How many there are."""

    def opened(self, rows: Array) -> Iterator[tuple[int, str, IO[bytes]]]:
        """Some of them in any order: the place in `rows`, a name, and the encoded picture."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, uint8 (N, H, W, C) once they are decoded."""

    source: Source
    rows: Array
    size: tuple[int, int]
    channels: int
    crop: Crop

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.rows), *self.size, self.channels

    def __getitem__(self, rows: Any, /) -> Array:
        wanted = self.rows[rows]
        decoded = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for place, name, file in self.source.opened(wanted):
            with reading(name):
                decoded[place] = self._decoded(name, file)
        return decoded

    def chosen(self, rows: Array) -> "Pictures":
        """Those rows alone, still not decoded."""
        return replace(self, rows=self.rows[rows])

    def contents(self) -> Iterator[bytes]:
        """The encoded pictures, and what is made of them."""
        yield repr((self.size, self.channels, self.crop)).encode()
        for _, _, file in self.source.opened(self.rows):
            yield file.read()

    def _decoded(self, name: str, file: IO[bytes]) -> Array:
        from PIL import Image, ImageOps

        with _opened(name, file) as opened:
            image = _in_bytes(ImageOps.exif_transpose(opened))
        image = image.convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        if self.crop == "center":
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        else:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(*self.size, self.channels)


def _opened(name: str, file: IO[bytes]) -> "Image":
    """A picture that isn't decoded yet, and won't take too much when it is.

    Raises:
        InputError: it would.
    """
    from PIL import Image

    with warnings.catch_warnings():
        # Pillow warns of many pixels; what they take is checked here, by the limit in force.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    limits.check_memory(f"{name}, {width} x {height} pixels,", _BYTES_A_PIXEL * width * height)
    if image.info.get("progressive"):
        at = file.tell()
        file.seek(0)
        scans = file.read().count(_SCAN)
        file.seek(at)
        if scans > _MOST_SCANS:
            raise InputError(f"{name} has {scans} scans; {_MOST_SCANS} are allowed")
    return image


def _in_bytes(image: "Image") -> "Image":
    """The same with 8 bits a channel, and no palette with transparent colours."""
    from PIL import Image

    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if not image.mode.startswith("I"):
        return image
    # Pillow's own conversion would cut off at 255.
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def pictures(source: Source, how: OwnImages, where: str) -> Pictures:
    """Look at the headers of pictures: grey if all are, else in colour, if nobody says.

    Args:
        source: of at least one.
        how: which size they shall have.
        where: they come from.

    Raises:
        InputError: one isn't a picture or is too large, or they have several sizes and none is
            asked for.
    """
    grey, sizes = True, Counter[tuple[int, int]]()
    example: dict[tuple[int, int], str] = {}
    for _, name, file in source.opened(np.arange(len(source))):
        with reading(name), _opened(name, file) as image:
            grey = grey and image.mode in _GREY
            swapped = image.getexif().get(_ORIENTATION, 1) >= 5
            width, height = image.size
        size = (width, height) if swapped else (height, width)
        sizes[size] += 1
        example.setdefault(size, name)
    if how.image_size is None and len(sizes) > 1:
        (one, _), (other, _), *_ = sizes.most_common()
        raise InputError(
            f"{where}: pictures have {len(sizes)} sizes, such as {show(one)} ({example[one]}) and "
            f"{show(other)} ({example[other]}); give the size that the model takes, such as "
            f"image_size={show(one)}"
        )
    height, width, *channels = how.image_size or next(iter(sizes))
    own = 1 if grey else 3
    every = np.arange(len(source))
    return Pictures(source, every, (height, width), channels[0] if channels else own, how.crop)

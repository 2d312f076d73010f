"""The types of parameters' values, how they are read and how they are shown."""

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WrapValidator

from resfool.errors import InputError, expanded, present

Precision = Literal["float32", "bfloat16"]
LabelSource = Literal["true", "prediction"]
Backend = Literal["serial", "joblib", "ray"]  # of parallel work
Part = Literal["train", "validation", "test"]  # of a data set
NormKind = Literal["none", "l2", "linf"]
BallNorm = Literal["linf", "l2"]  # of what an attack may change
Crop = Literal["center", "none"]  # of pictures that are not as wide or as high as they should be

# What was measured at one point: of a curve ("step" is among the names), or of a table.
Row = dict[str, float]


def plain(value: Any) -> Any:
    """A value from Python in the types that parameters know: paths as text, nothing of numpy's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


_MOST_ENTRIES = 10_000  # of a list
_MOST_WORTHY = 1000  # of one whose entries take work each
_MOST_WHOLE = 10**15


def _check_length(values: Any, most: int = _MOST_ENTRIES) -> Any:
    if isinstance(values, list | tuple) and len(values) > most:
        raise ValueError(f"has {len(values):,} entries, and may have {most:,} at most")
    return values


def split_commas(value: Any) -> Any:
    """A list as the command line has it; what isn't text stays as it is.

    Raises:
        ValueError: it is longer than any that is meant.
    """
    return _check_length(value.split(",") if isinstance(value, str) else value)


def split_addresses(value: Any) -> Any:
    """Addresses as the command line has them; no comma in the path of what is there divides it.

    Raises:
        ValueError: there are more than anybody compares.
    """
    parts = _check_length(split_commas(value), _MOST_WORTHY)
    if not isinstance(value, str):
        return value
    found = []
    while parts:
        paths = [",".join(parts[:count]) for count in range(len(parts), 0, -1)]
        path = next(filter(_is_there, paths), parts[0])
        found.append(path.strip())
        del parts[: path.count(",") + 1]
    return found


def _is_there(path: str) -> bool:
    try:
        return present(expanded(path))
    except InputError:  # the home folder of nobody, which is said where it is read
        return False


def _single(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


_NUMBER = re.compile(
    r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE
)


def number(value: Any) -> float:
    """A number, of text such as "3", "0.5" or "1e-3" too, but not of what Python reads beyond it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, such as 0.5")
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return math.copysign(math.inf, value)


def _real(value: Any) -> float:
    found = number(value)
    if not math.isfinite(found):
        raise ValueError("must be a finite number")
    return found


def _whole(value: Any) -> int:
    try:
        found = number(value)
    except ValueError:
        raise ValueError("must be a whole number, such as 10") from None
    if found > _MOST_WHOLE:
        raise ValueError("must be at most 10^15")
    if found < -_MOST_WHOLE:
        return -_MOST_WHOLE
    if found != found // 1:  # not a number among them
        raise ValueError("must be a whole number, such as 10")
    return int(found)


def parse_epsilon(text: str) -> float:
    """The change of a pixel, from 0 to 1 as pixels go: a number or a quotient, as in 8/255.

    Raises:
        ValueError: it is none, or out of range; the message lacks its subject, as pydantic's do.
    """
    size = _parse_size(text)
    if not 0 <= size <= 1:
        raise ValueError("must be from 0 to 1, the range of a pixel, such as 0.03 or 8/255")
    return size


_LARGEST = 1e4  # l2 norm of a perturbation: that of 10^8 pixels


def _parse_radius(text: str) -> float:
    size = _parse_size(text)
    if not 0 <= size <= _LARGEST:
        raise ValueError(
            "must be from 0 to 1, the range of a pixel, such as 0.03 or 8/255, and with norm=l2 up "
            f"to {_LARGEST:g}"
        )
    return size


def _parse_size(text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        numerator, denominator = number(above), number(below) if slash else 1.0
    except ValueError:
        raise ValueError("must be a number such as 0.03 or 8/255") from None
    if denominator == 0:
        raise ValueError("divides by zero")
    return numerator / denominator if 0 <= denominator < math.inf else math.nan


def parse_epsilons(value: Any) -> tuple[float, ...]:
    """Sizes of perturbations to try, rising, of text such as "0,1/255,0.1" or a sequence.

    Raises:
        ValueError: one of them can't be used, or two can't be told apart.
    """
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
    else:
        parts = [str(part) for part in ([value] if isinstance(value, int | float) else value)]
    _check_length(parts, _MOST_WORTHY)
    if not any(parts):
        raise ValueError("must not be empty; give numbers such as 0,4/255,8/255")
    epsilons = sorted(map(_parse_radius, parts))
    if not epsilons[-1]:
        raise ValueError("must have one above 0, such as 8/255")
    for one, next_one in itertools.pairwise(epsilons):
        if epsilon_step(one) == epsilon_step(next_one):
            raise ValueError(
                f"has {show(one)} and {show(next_one)}, which are the same to 1/25500; "
                "each must be there once"
            )
    return tuple(epsilons)


@dataclass(frozen=True)
class Norm:
    """The size of a universal perturbation, such as l2:3 or linf:10/255.

    Attributes:
        kind: which norm; "none" leaves a perturbation at the size that it has.
        size: above 0, in pixel units; 0 for "none", and for a norm alone.
    """

    kind: NormKind
    size: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{_show_size(self.size)}" if self.size else self.kind


_NORM_EXAMPLES = "such as none, l2:3 or linf:10/255"


def parse_norm(value: Any) -> Norm:
    """The size of a universal perturbation, of text such as "none", "l2:3" or "linf:10/255".

    Raises:
        ValueError: it can't be used.
    """
    if isinstance(value, Norm):
        return value
    text = "none" if value is None else str(value).strip()
    if text == "none":
        return Norm("none")
    kind, _, size_text = (part.strip() for part in text.partition(":"))
    above, slash, below = size_text.partition("/")
    try:
        size = number(above) / (number(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"must be a norm and its size, {_NORM_EXAMPLES}") from None
    if not 0 < size < math.inf:
        raise ValueError(f"must have a size above 0, {_NORM_EXAMPLES}")
    if kind == "linf" and size > 1:
        raise ValueError("must be at most linf:1, the range of a pixel, such as linf:10/255")
    if kind == "l2":
        return Norm("l2", size)
    if kind == "linf":
        return Norm("linf", size)
    raise ValueError(f"must be a norm and its size, {_NORM_EXAMPLES}")


def parse_norm_or_size(value: Any) -> Norm:
    """A norm alone, "l2" or "linf", or with a size, as `parse_norm` takes it.

    Raises:
        ValueError: it is neither.
    """
    text = str(value).strip()
    if text == "l2":
        return Norm("l2")
    if text == "linf":
        return Norm("linf")
    if not isinstance(value, Norm) and ":" not in text and text != "none":
        raise ValueError("must be linf or l2; of a perturbation a norm and its size, such as l2:3")
    return parse_norm(value)


def _show_size(size: float) -> str:
    return str(int(size)) if size == int(size) else show(size)


def epsilon_step(epsilon: float) -> int:
    """The step of an epsilon's metrics, the same in every run: in hundredths of 1/255."""
    return round(epsilon * 25500)


def epsilon_name(epsilon: float) -> str:
    """An epsilon as a part of a metric's name: 8_255 for 8/255, else the number, such as 0.1."""
    return show(epsilon).replace("/", "_")


def _parse_range(value: Any) -> Any:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        low, high = map(number, parts)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError("must be two rising numbers, such as 0,255 or -1,1")
    return low, high


def _check_some(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if not numbers:
        raise ValueError("must not be empty")
    return numbers


def _check_image_shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(sizes) != 3:
        raise ValueError("must be height, width and channels, such as 28,28,1")
    return sizes


def _check_batch_size(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError("must be auto or a whole number from 1 to 1000000") from None


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: Any) -> int:
    """A size of memory, of text such as "500MB" or "1.5 GiB", or a number of bytes.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMGTIB]*)", str(value).strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if not size:
        raise ValueError("must be a size such as 500MB or 8GB")
    return size


def _check_ray_address(address: str) -> str:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    complete = host and port.isascii() and port.isdecimal()
    if address != "auto" and not complete and not (address.startswith("ray://") and port):
        raise ValueError("must be auto, host:port or ray://host:port")
    return address


def _check_image_size(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(sizes) not in (2, 3) or sizes[2:] not in ((), (1,), (3,)):
        raise ValueError("must be height and width, such as 224,224, and perhaps 1 or 3 channels")
    return sizes


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real)]
PositiveCount = Annotated[Whole, Field(ge=1)]
# Of what nobody has more of: gradient steps of an attack, passes over images; workers; cores.
UpToThousand = Annotated[Whole, Field(ge=0, le=1000)]
UpToMillion = Annotated[Whole, Field(ge=1, le=10**6)]
WorkerCount = Annotated[Whole, Field(ge=1, le=10**5)]
CoreCount = Annotated[Whole, Field(ge=1, le=4096)]
# Images of a pass; "auto" takes as many as the memory holds.
BatchSize = Annotated[
    Annotated[Whole, Field(ge=1, le=10**6)] | Literal["auto"], WrapValidator(_check_batch_size)
]
PositiveFloat = Annotated[Real, Field(gt=0)]
NonNegativeFloat = Annotated[Real, Field(ge=0)]
Power = Annotated[Real, Field(ge=1, le=100)]  # of a norm, beyond which it is that of the largest
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Share = Annotated[Real, Field(ge=0, le=1)]
Epsilon = Annotated[float, BeforeValidator(lambda value: parse_epsilon(str(value)))]
Epsilons = Annotated[tuple[float, ...], BeforeValidator(parse_epsilons)]
SizedNorm = Annotated[Norm, BeforeValidator(parse_norm)]
NormOrSize = Annotated[Norm, BeforeValidator(parse_norm_or_size)]
PixelRange = Annotated[tuple[float, float], BeforeValidator(_parse_range)]
Word = Annotated[str, Field(coerce_numbers_to_str=True)]  # that may look like a number
Names = Annotated[tuple[Word, ...], BeforeValidator(split_commas)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(split_addresses)]  # of models, files, runs
Counts = Annotated[
    tuple[PositiveCount, ...], BeforeValidator(split_commas), BeforeValidator(_single)
]
Numbers = Annotated[
    tuple[Real, ...],
    BeforeValidator(split_commas),
    BeforeValidator(_single),
    AfterValidator(_check_some),
]
ImageShape = Annotated[Counts, AfterValidator(_check_image_shape)]
ImageSize = Annotated[Counts, AfterValidator(_check_image_size)]
RayAddress = Annotated[str, AfterValidator(_check_ray_address)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
# Seeds go into TensorFlow's stateless generators as 32-bit integers.
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]


def show(value: Any) -> str:
    """A value as the command line and MLproject spell it: `none`, `true`, `1,2`, `8/255`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    if isinstance(value, float) and 0 < value < 1 and len(repr(value)) > 8:
        levels = round(value * 255)
        if value == levels / 255:
            return f"{levels}/255"
    return str(value)


_MOST_SHOWN = 100  # characters of a value


def shown(value: Any) -> str:
    """A value as `show` has it, shortened for a sentence."""
    try:
        text = show(value)
    except ValueError:  # an int of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def in_bytes(size: float) -> str:
    """A size of memory for people, such as 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def in_days(days: float) -> str:
    """A time for people, such as 1,200 days."""
    return f"{days:,.0f} days" if days >= 10 else f"{days:.3g} days"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would say: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def listed(words: Iterable[str]) -> str:
    """Words as a sentence has them: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last

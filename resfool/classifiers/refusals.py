"""What Keras has to say when it refuses a model, in one sentence."""

import contextlib
import re
from collections.abc import Iterator

from resfool.errors import InputError

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 600  # characters of a reason


@contextlib.contextmanager
def keras_at_work(what: str, more: str = "") -> Iterator[None]:
    """Turn whatever Keras raises into one InputError.

    Args:
        what: can't be done if it raises.
        more: what else the user should know then.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: Keras refuses it ({_reason(error)}){more}") from error


def _reason(error: Exception) -> str:
    """The end of what Keras says, where the reason stands, after the configs that it quotes."""
    text = _TERMINAL_CODE.sub("", str(error))
    text = text.rpartition("Exception encountered:")[2] if "config=" in text else text
    told = text.partition("Full object config:")[0].strip()
    if len(told) > _LONGEST:
        told = f"{told[: _LONGEST // 2]} ... {told[-_LONGEST // 2 :]}"
    return f"{type(error).__name__}: {told}"

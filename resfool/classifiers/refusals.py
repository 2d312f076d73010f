"""What Keras has to say when it refuses a model, in one sentence."""

import contextlib
import re

from resfool.errors import refusing

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 600  # characters of a reason


def keras_at_work(what: str, more: str = "") -> contextlib.AbstractContextManager[None]:
    """Turn whatever Keras raises into one InputError.

    Args:
        what: can't be done if it raises.
        more: what else the user should know then.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    return refusing(what, lambda error: f": Keras refuses it ({_reason(error)}){more}")


def _reason(error: Exception) -> str:
    """The end of what Keras says, where the reason stands, after the configs that it quotes."""
    text = _TERMINAL_CODE.sub("", str(error))
    text = text.rpartition("Exception encountered:")[2] if "config=" in text else text
    told = text.partition("Full object config:")[0].strip()
    if len(told) > _LONGEST:
        told = f"{told[: _LONGEST // 2]} ... {told[-_LONGEST // 2 :]}"
    return f"{type(error).__name__}: {told}"

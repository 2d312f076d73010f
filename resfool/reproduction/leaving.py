"""What earlier runs can't give is left out, and said: no error in it ends a reproduction."""

import contextlib
from collections.abc import Iterator

from resfool.archive import UnusableError
from resfool.errors import InputError, short


class LeftOut:
    """What had to be left out.

    Attributes:
        reasons: a sentence for each.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @contextlib.contextmanager
    def unless_usable(self, what: str) -> Iterator[None]:
        """Leave out what is done inside, if that fails.

        Args:
            what: it is, for the sentence.
        """
        try:
            yield
        except (UnusableError, InputError) as error:
            self._add(what, str(error))
        except Exception as error:  # anybody may have written the runs, so nearly anything
            self._add(what, f"its runs are not as they should be ({short(error)})")

    def _add(self, what: str, reason: str) -> None:
        sentence = f"{what} is left out: {reason}."
        if sentence not in self.reasons:
            self.reasons.append(sentence)

"""The documentation agrees with the code and with itself."""

import pytest

from docs import generate


@pytest.mark.parametrize("entry_point", generate.ENTRY_POINTS)
def test_a_page_has_the_parameters_as_they_are(entry_point: str) -> None:
    path = generate.PAGES / f"{entry_point}.md"
    assert path.read_text() == generate.page(path), "run `make docs`"

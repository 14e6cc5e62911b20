"""What the files of this folder share."""

from collections.abc import Iterator

import pytest

from tests.interpret import browser


@pytest.fixture(scope="module", autouse=True)
def _browser_of_a_file() -> Iterator[None]:
  yield
  browser.end_shared()

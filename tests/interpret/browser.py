"""A headless Chromium for tests of the page."""

import contextlib
import functools
import os
import pathlib
import shutil
import unittest

from playwright import sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


_opened = contextlib.ExitStack()


@functools.cache
def shared() -> sync_api.Browser:
  """One for all classes of a test file, which ends with it: see `conftest.py`."""
  with contextlib.ExitStack() as opened:
    playwright = opened.enter_context(sync_api.sync_playwright())
    browser = opened.enter_context(launch(playwright))
    _opened.push(opened.pop_all())
  return browser


def end_shared() -> None:
  """So that others may start a playwright of their own: a process has one at most."""
  shared.cache_clear()
  _opened.close()


def launch(playwright: sync_api.Playwright) -> sync_api.Browser:
  """The system's browser, or playwright's own; without one, tests say so and skip.

  Where REQUIRE_BROWSER is set, as in continuous integration, they fail instead.
  """
  # tests have a cache folder of their own, in which playwright would look
  own = pathlib.Path.home() / ".cache" / "ms-playwright"
  os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(own))
  found = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, NAMES)), None
  )
  try:
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
  except sync_api.Error as error:
    if os.environ.get("REQUIRE_BROWSER"):
      raise
    raise unittest.SkipTest(
      "no Chromium: install one, or run `playwright install chromium`, or let the"
      f" environment variable CHROMIUM name it ({str(error).splitlines()[0]})"
    ) from error

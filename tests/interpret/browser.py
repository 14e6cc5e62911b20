"""A headless Chromium for tests of the page."""

from collections.abc import Callable
import contextlib
import functools
import itertools
import os
import pathlib
import shutil
import unittest

from playwright import sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


_opened = contextlib.ExitStack()
_visits = itertools.count()


@functools.cache
def shared() -> sync_api.Browser:
  """One for all classes of a test file, which ends with it: see `conftest.py`."""
  with contextlib.ExitStack() as opened:
    playwright = opened.enter_context(sync_api.sync_playwright())
    browser = opened.enter_context(launch(playwright))
    _opened.push(opened.pop_all())
  return browser


@functools.cache
def _shared_page() -> sync_api.Page:
  return shared().new_page()


def page_for(
  test: unittest.TestCase, heard: dict[str, Callable], fresh: bool = False
) -> sync_api.Page:
  """The one that all tests of a file share: to start another takes long.

  Args:
    heard: what to do at each kind of event, until the test ends.
    fresh: another after all, for a test that changes what no address brings back, such
      as the clock.
  """
  page = shared().new_page() if fresh else _shared_page()
  if fresh:
    test.addCleanup(page.close)
  page.set_default_timeout(20_000)
  for event, function in heard.items():
    page.on(event, function)
    test.addCleanup(page.remove_listener, event, function)
  return page


def begin(page: sync_api.Page, file: pathlib.Path, link: str = "") -> str:
  """Shows the file as a new page would, and returns the address.

  It is another each time: of one that it has shown, the browser keeps where the reader
  was and what was typed.
  """
  page.set_viewport_size({"width": 1200, "height": 900})
  # on paper all steps are laid out at once
  page.emulate_media(media="print", color_scheme="light")
  address = f"{file.as_uri()}?{next(_visits)}"
  page.goto(address + link)
  return address


def end_shared() -> None:
  """So that others may start a playwright of their own: a process has one at most."""
  shared.cache_clear()
  _shared_page.cache_clear()
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

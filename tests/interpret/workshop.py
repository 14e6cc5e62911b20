"""A page in a browser, for tests that type into it, cut it and play it back."""

import contextlib
import pathlib
import tempfile

import chex
import jax
import numpy as np

from gpt2_flax import interpret
from gpt2_flax.datasets import CONFIGS
from gpt2_flax.interpret.page import page_data, render_page
from tests.close import assert_close
from tests.interpret import browser
from tests.interpret.test_page import make, unmeasured, unread

LENGTH = 12
STEPS = (0, 40, 100)
# the page computes in float64: what is off is JAX's rounding
LOGITS = "() => inside.reading().logits.map((row) => [...row])"


class Workshop(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    browser.shared()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))

  @classmethod
  def write(cls, model, params, tokenizer, tokens, measured=False, **kwargs):
    """A page, without what heads are worth."""
    with unread(), contextlib.nullcontext() if measured else unmeasured():
      data = page_data(model, params, tokenizer, tokens, title="tiny", **kwargs)
    cls.file = cls.folder / "page.html"
    cls.file.write_text(render_page(data, model.config), "utf-8")

  def setUp(self):
    super().setUp()
    self.page, self.trouble = None, []

  def open(self, link: str = "", fresh: bool = False):
    """As a reader who comes by this link; `fresh` as in `browser.page_for`."""
    if self.page is None or fresh:
      heard = {
        "console": lambda message: self.trouble.append(message.text),
        "pageerror": lambda error: self.trouble.append(str(error)),
      }
      self.page = browser.page_for(self, heard, fresh)
    self.address = browser.begin(self.page, self.file, link)
    return self.page

  def go(self, link: str):
    """To another link of the page that is open."""
    self.page.goto(self.address + link)
    return self.page

  def tokens(self) -> list[int]:
    return self.page.evaluate("inside.view.tokens")

  def link(self) -> str:
    return self.page.evaluate("location.hash.slice(1)")


class ToyPage(Workshop):
  """The page of a small model of the toy language, and the same in JAX."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.language = CONFIGS["grammar"]().make(context_length=LENGTH)
    cls.tokenizer = cls.language.tokenizer
    cls.model, cls.params = make(cls.tokenizer.vocab_size, context_length=LENGTH)
    cls.start = cls.tokenizer.start("the cats that the dog sees")
    cls.write(cls.model, cls.params, cls.tokenizer, cls.start, dataset=cls.language)
    cls.trace = jax.jit(
      lambda tokens, edits: interpret.trace(cls.model, cls.params, tokens, edits)
    )

  @classmethod
  def run_jax(cls, tokens, edits=()):
    """Logits [T, V] and the trace, of a text that is padded to one length.

    What comes later changes nothing before it, so that one program serves all texts.
    """
    padded = np.array([[*tokens, *[1] * (LENGTH - len(tokens))]])
    logits, run = jax.tree.map(np.asarray, cls.trace(padded, tuple(edits)))
    return logits[0, : len(tokens)], run

  def setUp(self):
    super().setUp()
    self.open()

  def tearDown(self):
    self.assertEqual(self.trouble, [])
    super().tearDown()

  def assert_reads(self, tokens, edits=()):
    """The page shows this text's logits, with these edits."""
    self.assertEqual(self.tokens(), list(tokens))
    expected, _ = self.run_jax(tokens, edits)
    assert_close(np.array(self.page.evaluate(LOGITS), "f4"), expected)

  def type(self, text: str, box: str = "#prompt"):
    self.page.locator(box).fill(text)

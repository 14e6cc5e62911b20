"""What the README and the pages in docs/ show runs as it stands, in order."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any
from unittest import mock

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import pytest

from gpt2_flax import datasets, GPT2, GPT2Config, pretrained
from gpt2_flax.tokenizer import BPETokenizer
from tests import snippets
from tests.close import assert_close
from tests.params import random_params

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {path.name: path for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# each by a test of its own
LOOKED_AT = {
  *("README.md", "configs.md", "interpret.md", "pretrained.md", "runs.md", "sweeps.md")
}
LONG = "own_parts.md"  # it trains a model
MOST_WORDS = 900  # of the README, code and tables included


def write_small(folder: str, tokenizer: Any) -> None:
  """A small model with random weights, in Hugging Face's layout."""
  config = GPT2Config(
    vocab_size=tokenizer.vocab_size,
    num_layers=2,
    num_heads=4,
    embed_dim=16,
    context_length=48,
  )
  model = GPT2(config)
  pretrained.save(folder, model, random_params(model, scale=0.1), tokenizer)


class ExamplesTest(chex.TestCase):
  """Each page is read from top to bottom, in a folder of its own.

  There, small models stand in for the run that the toy gives and for the published
  weights, and `GPT2Config.published` gives a small config.
  """

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.models = cls.enterClassContext(tempfile.TemporaryDirectory())
    toy = datasets.CONFIGS["grammar"]().make(8).tokenizer
    write_small(f"{cls.models}/runs/toy", toy)
    english = BPETokenizer.train(["To be, or not to be"], 260)
    for name in ("gpt2", "gpt2-medium"):
      write_small(f"{cls.models}/openai-community/{name}", english)

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    shutil.copytree(self.models, folder, dirs_exist_ok=True)
    self.enterContext(contextlib.chdir(folder))
    small = GPT2Config(num_layers=1, num_heads=2, embed_dim=8, context_length=8)

    def published(size: str, **changes: Any) -> GPT2Config:
      del size
      return dataclasses.replace(small, **changes)

    self.enterContext(mock.patch.object(GPT2Config, "published", published))

  def read(self, page: str) -> tuple[dict[str, Any], str]:
    """Runs a page's Python; what it has made, and what it has printed."""
    namespace: dict[str, Any] = {"__name__": "a_page"}
    printed = io.StringIO()
    text = PAGES[page].read_text("utf-8")
    with contextlib.redirect_stdout(printed):
      for block in PYTHON.finditer(text):
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], page, "exec")
        exec(code, namespace)
    return namespace, printed.getvalue()

  @parameterized.parameters(*sorted(PAGES.keys() - LOOKED_AT - {LONG}))
  @pytest.mark.slow  # what it names is looked up always
  def test_any_other_page_runs(self, page):
    self.read(page)

  @pytest.mark.slow
  def test_so_does_the_long_one(self):
    self.read(LONG)

  @parameterized.parameters(*PAGES)
  def test_each_block_compiles_and_knows_its_names(self, page):
    snippets.check(PYTHON.findall(PAGES[page].read_text("utf-8")))

  @pytest.mark.slow  # so it is here
  def test_readme(self):
    made, printed = self.read("README.md")
    self.assertEqual(made["waves"].shape, (10, 64))
    self.assertEqual(made["x_with_positions"].shape, (2, 10, 64))
    self.assertEqual(made["read"].shape, (2, 10, 64))
    self.assertEqual(printed, "(2, 4, 1, 7, 7)\n")
    with self.assertRaisesRegex(AssertionError, "is off by"):  # no mere rounding
      assert_close(made["logits_without"], made["logits"])
    self.assertEqual([len(row) for row in made["written"]], [5])

  def test_configs(self):
    made, printed = self.read("configs.md")
    self.assertEqual(made["oracle"].shape, (49, 70))
    self.assertGreater(len(printed.split()), 40)
    self.assertEqual(made["get_config"]().model.num_layers, 4)

  @pytest.mark.slow  # as any other page
  def test_pretrained(self):
    made, _ = self.read("pretrained.md")
    self.assertTrue(os.path.exists("my-gpt2/tokenizer.json"))
    model, params = pretrained.load("my-gpt2")
    tokens = jnp.arange(5)[None]
    assert_close(
      model.apply(params, tokens), made["model"].apply(made["params"], tokens)
    )

  @pytest.mark.slow  # as any other page
  def test_runs(self):
    _, printed = self.read("runs.md")
    self.assertStartsWith(printed, "the cats that the dog sees ")

  @pytest.mark.slow  # as any other page
  def test_sweeps(self):
    made, printed = self.read("sweeps.md")
    self.assertIsNone(made["stopped_by"])
    table = printed.splitlines()[-4:]
    self.assertRegex(table[0], r"\| seeds \| val/loss +\| val/gap +\|")
    self.assertRegex(table[2], r"\| 2     \| \d\.\d{4} ± \d\.\d{4} \|")


class PagesTest(chex.TestCase):
  def test_the_readme_is_short(self):
    self.assertLessEqual(len(README.read_text("utf-8").split()), MOST_WORDS)

  def test_every_config_is_in_the_table(self):
    for config in (ROOT / "configs").glob("*.py"):
      self.assertIn(
        f"(../configs/{config.name})", PAGES["configs.md"].read_text("utf-8")
      )

  @parameterized.parameters(*PAGES)
  def test_every_linked_file_exists(self, page):
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGES[page].read_text("utf-8")):
      self.assertTrue((PAGES[page].parent / path).exists(), path)

  @parameterized.parameters(*PAGES)
  def test_every_block_of_code_says_its_language(self, page):
    """An indented block says none, so that nothing would run its Python."""
    text = re.sub(r"(?ms)^```.*?^```", "", PAGES[page].read_text("utf-8"))
    self.assertNotRegex(text, r"\n\n    ")

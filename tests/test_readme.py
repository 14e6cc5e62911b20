"""What the README shows runs as it stands."""

import contextlib
import io
import pathlib
import re

import chex

from tests.close import assert_close

README = pathlib.Path(__file__).parent.parent / "README.md"


class ReadmeTest(chex.TestCase):
  def test_python_examples_run(self):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    self.assertGreaterEqual(len(examples), 3)
    namespace = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      for example in examples:
        # the published size takes seconds and half a gigabyte to initialise
        example = example.replace('GPT2Config.published("small")', "SMALL")
        namespace["SMALL"] = _small()
        exec(example, namespace)
    self.assertEqual(namespace["waves"].shape, (10, 64))
    self.assertEqual(namespace["read"].shape, (2, 10, 64))
    self.assertEqual(namespace["logits"].shape, (1, 3, 50257))
    self.assertIn("(1, 2, 1, 3, 3)", printed.getvalue())
    with self.assertRaisesRegex(AssertionError, "is off by"):  # no mere rounding
      assert_close(namespace["logits_without"], namespace["logits"])
    self.assertEqual([len(row) for row in namespace["written"]], [5])
    self.assertEqual(namespace["oracle"].shape, (49, 70))

  def test_every_config_is_in_the_table(self):
    for config in (README.parent / "configs").glob("*.py"):
      self.assertIn(f"(configs/{config.name})", README.read_text())

  def test_every_linked_file_exists(self):
    for path in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
      self.assertTrue((README.parent / path).exists(), path)


def _small():
  from gpt2_flax import GPT2Config

  return GPT2Config(num_layers=1, num_heads=2, embed_dim=8, context_length=8)

"""What a notebook is given to show: the page in a frame, heads with their tokens."""

import ast
from html.parser import HTMLParser
import inspect
import io
import types
from unittest import mock

from absl.testing import parameterized
import jax.numpy as jnp
from matplotlib.image import imread
from matplotlib.text import Text
import numpy as np

from gpt2_flax import interpret
from gpt2_flax.errors import InputError
from gpt2_flax.interpret import notebook
from gpt2_flax.tokenizer import WordTokenizer

WORDS = WordTokenizer(["cat", "dog", "sees", "the"])
PAGE = '<p title="1 &lt; 2">1 < 2 &amp; "3" </iframe>\'</p>'
MODEL = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=5))
PARAMS = {"a": jnp.zeros((30, 40))}


class Frames(HTMLParser):
  """Collects the attributes of each start tag, as a browser reads them."""

  def __init__(self, text: str):
    super().__init__()
    self.found, self.texts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.texts.append(data)


class ShowTest(parameterized.TestCase):
  def show(self, text):
    page = mock.Mock(page_data=mock.Mock(), render_page=mock.Mock(return_value=PAGE))
    with mock.patch.dict("sys.modules", {"gpt2_flax.interpret.page": page}):
      return interpret.show(MODEL, PARAMS, text, WORDS, "a dataset"), page

  @parameterized.parameters("the cat", ([0, 4, 1],), (np.array([0, 4, 1]),))
  def test_is_the_page_of_the_text(self, text):
    shown, page = self.show(text)
    self.assertEqual(shown.html, PAGE)
    page.page_data.assert_called_once_with(
      MODEL,
      PARAMS,
      WORDS,
      [0, 4, 1],
      title="a GPT-2 of 1,200 parameters",
      dataset="a dataset",
    )
    page.render_page.assert_called_once_with(page.page_data.return_value, MODEL.config)

  def test_a_frame_holds_the_page_and_lets_only_its_script_run(self):
    shown, _ = self.show("the cat")
    frames = Frames(shown._repr_html_())
    [(tag, attributes)] = frames.found
    self.assertEqual((tag, frames.texts), ("iframe", []))
    self.assertEqual(attributes["srcdoc"], PAGE)
    self.assertEqual(attributes["sandbox"], "allow-scripts")
    self.assertIn("height: 800px", attributes["style"])
    self.assertEqual(repr(shown), "Page of 0.0 MB")

  @parameterized.parameters(
    ("the unicorn", "unknown word 'unicorn'"),
    ([[0, 1]], "must be one row of ids"),
    ([0, 5], r"tokens are \[0 5\]: must be one row of ids, each from 0 to 4"),
    ([-1], "each from 0 to 4"),
  )
  def test_bad_input(self, text, message):
    with self.assertRaisesRegex(InputError, message):
      self.show(text)


def ticks(axis):
  return list(
    zip(axis.get_ticklocs(), map(Text.get_text, axis.get_ticklabels()), strict=True)
  )


def drawn(picture):
  axes = picture.figure.axes[0]
  return axes, np.ma.filled(axes.images[0].get_array(), np.nan)


class PlotAttentionTest(parameterized.TestCase):
  def test_each_head_of_a_model_has_its_place_and_names(self):
    weights = np.random.default_rng(0).random((2, 3, 4, 5, 5), np.float32)
    axes, tiles = drawn(interpret.plot_attention(jnp.asarray(weights), list("abcde")))
    self.assertEqual(tiles.shape, (2 * 6 - 1, 3 * 6 - 1))
    for layer in range(2):
      for head in range(3):
        tile = tiles[6 * layer : 6 * layer + 5, 6 * head : 6 * head + 5]
        np.testing.assert_array_equal(tile, weights[layer, head, 0])
    self.assertTrue(np.isnan(tiles[5]).all())
    self.assertTrue(np.isnan(tiles[:, [5, 11]]).all())
    self.assertEqual(axes.images[0].get_clim(), (0, 1))
    places = [6 * tile + i for tile in range(3) for i in range(5)]
    self.assertEqual(ticks(axes.xaxis), list(zip(places, "abcde" * 3, strict=True)))
    self.assertEqual(
      ticks(axes.yaxis), list(zip(places[:10], "abcde" * 2, strict=True))
    )
    top, right = axes.child_axes
    self.assertEqual(ticks(top.xaxis), [(2, "head 0"), (8, "head 1"), (14, "head 2")])
    self.assertEqual(ticks(right.yaxis), [(2, "layer 0"), (8, "layer 1")])

  @parameterized.parameters(
    ((2, 3, 4, 5), (4, 2 * 6 - 1), 1),  # of a layer: its heads are named
    ((3, 4, 5), (4, 5), 0),
    ((4, 5), (4, 5), 0),
  )
  def test_fewer_axes(self, shape, size, num_named):
    weights = np.random.default_rng(0).random(shape, np.float32)
    axes, tiles = drawn(interpret.plot_attention(weights))
    self.assertEqual(tiles.shape, size)
    self.assertLen(axes.child_axes, num_named)
    np.testing.assert_array_equal(
      tiles[:, -5:], weights[-1, 0] if len(shape) == 4 else weights.reshape(-1, 4, 5)[0]
    )
    self.assertEqual(ticks(axes.yaxis), [(i, str(i)) for i in range(4)])

  def test_names_are_shown_as_they_are(self):
    axes, _ = drawn(interpret.plot_attention(np.eye(3), ["$a$", "\n", " the"]))
    self.assertEqual([t for _, t in ticks(axes.xaxis)], [r"\$a\$", r"\n", " the"])

  def test_a_long_text_has_fewer_names(self):
    axes, _ = drawn(interpret.plot_attention(np.eye(400)))
    found = [place for place, _ in ticks(axes.xaxis)]
    width = axes.figure.get_figwidth()
    self.assertLess(width, 16)
    self.assertBetween(len(found), 50, width / 0.14)
    self.assertEqual(found[:2], [0, found[1]])

  def test_a_notebook_is_given_a_png(self):
    picture = interpret.plot_attention(np.eye(3))
    image = imread(io.BytesIO(picture._repr_png_()))
    self.assertGreater(min(image.shape[:2]), 150)
    dark = (image[..., :3].sum(-1) < 1).sum()  # the three ones, darkest of the blues
    self.assertGreater(dark, 0.1 * image.shape[0] * image.shape[1])

  @parameterized.parameters(
    ((5,), None, r"shape \(5,\): must be \[T, S\]"),
    ((1, 1, 1, 1, 2, 2), None, "must be"),
    ((1, 0, 2), None, "must be"),
    ((3, 3), ["a", "b"], "there are 2 names of tokens: must be 3 for those that look"),
    ((2, 3), ["a", "b"], "and 3 for those that are looked at"),
  )
  def test_bad_input(self, shape, tokens, message):
    with self.assertRaisesRegex(InputError, message):
      interpret.plot_attention(np.zeros(shape), tokens)


class ImportTest(parameterized.TestCase):
  def test_what_is_slow_is_imported_when_it_is_asked_for(self):
    for node in ast.parse(inspect.getsource(notebook)).body:
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        for slow in ("matplotlib", "gpt2_flax.interpret.page", "IPython"):
          self.assertNotIn(slow, ast.unparse(node))

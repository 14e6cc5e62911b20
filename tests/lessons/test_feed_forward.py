"""The lesson on the feed-forward, without its trainings."""

import functools
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.transformer import num_params
from lessons import feed_forward
from lessons.feed_forward import DEEPER, LANGUAGE, TABLE, TASKS, WIDER, WITH, WITHOUT
from lessons.training import experiment
from tests.close import assert_close
from tests.lessons.stubs import (
  all_but,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
)
from tests.params import random_params, shapes_of

# Like the page's.
GAPS = {WITH: 0.02, WITHOUT: 0.2, DEEPER: 0.07, WIDER: 0.15}
LOST = {(TABLE, 0): 1.3, (LANGUAGE, 0): 1.8, (LANGUAGE, 1): 0.5}


class ModelsTest(chex.TestCase):
  @parameterized.parameters(TABLE, LANGUAGE)
  def test_have_as_many_parameters(self, task):
    data, num_layers = TASKS[task]
    sizes = {}
    for kind, changes in feed_forward.kinds(num_layers).items():
      config, _ = experiment(data, feed_forward.CHANGES | changes)
      sizes[kind] = num_params(shapes_of(GPT2(config.model)))
    self.assertBetween(sizes[DEEPER] / sizes[WITH], 1.0, 1.1)
    self.assertBetween(sizes[WIDER] / sizes[WITH], 1.0, 1.1)
    self.assertLess(sizes[WITHOUT], 0.5 * sizes[WITH])


class AblationTest(chex.TestCase):
  def test_one_layer_says_its_mean(self):
    model = GPT2(GPT2Config(11, 6, 2, 2, 8))
    tokens = np.array([[0, 3, 10, 3], [0, 1, 2, 7]])
    params = random_params(model, scale=0.5)
    batch = {"inputs": tokens, "targets": np.array([[3, 10, 3, 1], [1, 2, 7, 5]])}

    def by_hand(model, without):
      x = model.embed(tokens, jnp.arange(4)[None])
      for layer, block in enumerate(model.blocks):
        x, _ = block.read(x)
        said = block.feed_forward(block.feed_forward_norm(x))
        x += said.mean((0, 1), keepdims=True) if layer == without else said
      return model.unembed(model.final_norm(x))

    logits = jax.jit(lambda params: model.apply(params, 1, method=by_hand))(params)
    right = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], -1
    )
    found = jax.jit(lambda p: feed_forward.loss_without(model, p, batch, 1))(params)
    assert_close(found, -right.mean())


class FeaturesTest(chex.TestCase):
  def pairs(self, num):
    """Texts in which every pair of symbols comes, and what `squares` is to find."""
    tokens = [[0, a, b] for a in range(1, num + 1) for b in range(1, num + 1)]
    return np.array(tokens)

  def test_squares(self):
    tokens = np.concatenate([self.pairs(3), [[0, 2, 3]]])  # one pair twice
    hidden = np.zeros((len(tokens), 3, 2))
    hidden[:, :2] = 77.0  # of places that are not asked for
    hidden[:, 2, 0] = 10 * tokens[:, 1] + tokens[:, 2]
    hidden[-1, 2, 1] = 4.0
    found = feed_forward.squares(hidden, tokens, 3)
    chex.assert_shape(found, (2, 3, 3))
    expected = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
    chex.assert_trees_all_close(found[0], np.array(expected, float))
    chex.assert_trees_all_close(found[1], np.array([[0, 0, 0], [0, 0, 2.0], [0, 0, 0]]))

  def test_share_of_pairs(self):
    rows, columns = np.indices((8, 8))
    either = np.array([rows, columns**2, 3 * rows - columns], float)
    self.assertAlmostEqual(feed_forward.share_of_pairs(either), 0.0)
    one_pair = (rows == 2) & (columns == 5)
    share = feed_forward.share_of_pairs(one_pair[None].astype(float))
    self.assertAlmostEqual(share, 49 / 63)  # as the lesson says
    same = (rows + columns) % 2
    self.assertAlmostEqual(feed_forward.share_of_pairs(same[None].astype(float)), 1.0)
    gap = np.where(one_pair, np.nan, rows.astype(float))
    self.assertLess(feed_forward.share_of_pairs(gap[None]), 0.05)

  def test_favourites(self):
    words = WordTokenizer("abcdefg")
    tokens = np.tile(np.arange(8), (2, 1))
    hidden = np.full((2, 8, 9), 0.01)
    hidden[:, [2, 4, 5, 7], 3] = [4.0, 3.0, 2.0, 1.0]  # b, d, e, g
    hidden[:, 1, 3] = -9.0  # which is not firing
    first, *others = feed_forward.favourites(hidden, tokens, words)
    self.assertEqual((first["feature"], first["fires most for"]), (3, "b d e g"))
    self.assertAlmostEqual(first["share of these 4"], 10 / 10.03)
    self.assertLen(others, 7)
    self.assertAlmostEqual(others[0]["share of these 4"], 0.5)


@functools.cache
def windows(task):
  """The validation windows, made once for all tests."""
  return validation_windows(TASKS[task][0].make(24), 128)


class VerdictTest(chex.TestCase):
  """On figures like the page's, and on some that one finding does not bear."""

  def run_on(self, gaps=None, lost=None, pair=True, reduced=False, picture=False):
    """Args: (task, kind, seed) -> gap; (task, layer, seed) -> what is lost."""

    def outcome(config, seed):
      task = TABLE if config.data == TASKS[TABLE][0] else LANGUAGE
      num_layers, model = TASKS[task][1], config.model
      kind = WITH
      if not model.feed_forward:
        kind = DEEPER if model.num_layers > num_layers else WITHOUT
        kind = WIDER if model.embed_dim > 32 else kind
      gap = (gaps or {}).get((task, kind, seed), GAPS[kind])
      which = np.array([list(TASKS).index(task), seed])
      return Given(2.0 + gap, 2.0, which)

    def loss_without(model, params, batch, layer):
      task, seed = list(TASKS)[params[0]], params[1]
      default = LOST[task, layer]
      return 2.0 + GAPS[WITH] + (lost or {}).get((task, layer, seed), default)

    def features(model, params, tokens):
      hidden = np.zeros((1, *tokens.shape, 9))
      before = np.roll(tokens, 1, 1)
      trained = params is not None
      hidden[0, ..., 0] = (tokens == 2) & (before == 3)
      if not (trained and pair):  # then it is about the last symbol first of all
        hidden[0, ..., 0] += tokens
      return hidden

    def kept(dataset, num_windows):
      self.assertEqual(num_windows, 128)
      return windows(TABLE if dataset.tokenizer.vocab_size == 9 else LANGUAGE)

    with (
      mock.patch.object(feed_forward, "validation_windows", kept),
      mock.patch.object(feed_forward, "new_figure", figures(picture)),
      mock.patch.object(feed_forward, "loss_without", loss_without),
      mock.patch.object(feed_forward, "features", features),
      mock.patch.object(feed_forward, "init_params", return_value=None),
      mock.patch.object(feed_forward, "train", train_giving(outcome)),
    ):
      return feed_forward.run(reduced)

  def test_holds(self):
    report = self.run_on({(TABLE, WITH, 2): 0.026}, picture=True)
    self.assertEqual(held(report), [True] * 5)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Gap")
    self.assertLen(rows, 8)
    assert_close(rows[0]["gap"], 0.022, dtype=np.float32)
    rows = table(report, "With it")
    self.assertEqual(
      [row["without that of"] for row in rows],
      ["layer 1 of 1", "layer 1 of 2", "layer 2 of 2"],
    )
    assert_close(rows[2]["loss rises by"], 0.5, dtype=np.float32)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 5)

  @parameterized.parameters(
    (0, {"gaps": {(TABLE, DEEPER, 1): 0.03}}),
    (0, {"gaps": {(TABLE, WITH, 0): 0.04}}),
    (1, {"gaps": {(LANGUAGE, WIDER, 2): 0.03}}),
    (2, {"lost": {(TABLE, 0, 1): 0.1}}),
    (3, {"lost": {(LANGUAGE, 0, 2): 0.4}}),
    (4, {"pair": False}),
  )
  def test_does_not_hold(self, finding, figures):
    self.assertEqual(held(self.run_on(**figures)), all_but(5, finding))

"""The lesson on induction, without its trainings: what it measures, and its verdict."""

import dataclasses
from unittest import mock

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from gpt2_flax.interpret import Trace
from lessons import induction
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

FLOOR = 1.17


def one_hot(sources, length):
  """Attention weights [T, S]: each query looks at one key."""
  return np.eye(length)[sources]


class MeasureTest(chex.TestCase):
  def test_halfway_is_where_a_curve_crosses(self):
    assert_close(induction.halfway([50, 100, 150], [3.0, 3.0, 1.0], 2.5), 112.5)
    assert_close(induction.halfway([10, 20], [0.0, 1.0], 0.3), 13.0)

  def test_scores_of_heads_that_look_at_one_place(self):
    # 7 8 9 7 8 9: a token's equal is three back, and what followed that two back
    tokens = np.array([[7, 8, 9, 7, 8, 9]])
    before, after_equal = [0, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3]
    itself, first = [0, 1, 2, 3, 4, 5], [0] * 6
    layers = [[before, itself], [first, after_equal]]
    weights = np.array([[[one_hot(head, 6)] for head in layer] for layer in layers])

    def trace(model, params, tokens_BT, taps):
      self.assertEqual(list(taps), ["weights"])
      return None, Trace(weights=jnp.asarray(weights))

    with mock.patch.object(induction, "trace", trace):
      scores = induction.head_scores(object(), {}, {"inputs": tokens})
    expected = {
      "previous": np.array([[1.0, 0.0], [0.2, 0.0]]),
      "induction": np.array([[0.0, 0.0], [0.0, 1.0]]),
    }
    assert_close(scores, expected)

  def test_loss_is_a_mean_over_the_targets_that_count(self):
    """Of a model whose loss on a target is what is given, and 1 more a head less."""
    ablated = np.array([[True, False], [True, True]])

    def edited(model, params, edits):
      [heads_LH] = edits
      return model, params + heads_LH.sum()

    def summed_loss(model, params, batch):
      counts = batch["targets"] >= 0
      return jnp.sum(params * counts), jnp.sum(counts)

    batch = {"inputs": None, "targets": np.array([[-1, 2, 3], [-1, 4, -1]])}
    with (
      mock.patch.object(induction, "ablate_heads", jnp.asarray),
      mock.patch.object(induction, "edited", edited),
      mock.patch.object(induction, "summed_loss", summed_loss),
    ):
      model = object()
      loss = induction.loss_without(model, 0.5, batch, ablated)
    assert_close(loss, 3.5)


@dataclasses.dataclass(frozen=True)
class Heads:
  """In place of parameters: what these heads do.

  Attributes:
    loss: with all of them.
    without: the heads that are missing -> the loss.
    previous, induction: scores [L, H].
  """

  loss: float
  previous: list
  induction: list
  without: dict = dataclasses.field(default_factory=dict)


# Layer and head of the page's seeds: the previous-token head is (0, 1).
WITHOUT = {
  ((0, 1),): 3.6,
  ((0, 0),): 1.62,
  ((1, 0),): 1.26,
  ((1, 1),): 1.23,
  ((1, 0), (1, 1)): 5.0,
}


def head_scores(model, params, batch):
  return {
    name: np.array(getattr(params, name))[: model.config.num_layers]
    for name in ("previous", "induction")
  }


def loss_without(model, params, batch, heads_LH):
  assert heads_LH.shape == (model.config.num_layers, model.config.num_heads)
  missing = tuple(map(tuple, np.argwhere(heads_LH).tolist()))
  return jnp.asarray(params.without[missing] if missing else params.loss)


def run_on(seed_1=None, gaps=None, reduced=False, picture=False):
  """Runs the lesson on figures like the page's.

  Args:
    seed_1: of two layers: "rises" and "falls", a step each, and losses without heads.
    gaps: (layers, seed) -> gap.
  """

  def outcome(config, seed):
    layers = config.model.num_layers
    gap = (gaps or {}).get((layers, seed), 1.36 if layers == 1 else 0.023)
    spoilt = seed_1 if seed == 1 and layers == 2 and seed_1 else {}
    without = WITHOUT | {heads: x for heads, x in spoilt.items() if heads in WITHOUT}
    rises, falls = spoilt.get("rises", 300), spoilt.get("falls", 300)

    def at_step(step):
      late = layers == 2 and step > rises
      return Heads(
        loss=FLOOR + (gap if layers == 2 and step > falls else 1.38),
        previous=[[0.1, 0.8 if late else 0.04], [0.95, 0.05]],
        induction=[[0.21, 0.2], [0.3, 0.93 if late else 0.2]],
        without=without,
      )

    params = at_step(config.train.num_steps)
    return Given(params.loss, FLOOR, params, at_step)

  with (
    mock.patch.object(induction, "new_figure", figures(picture)),
    mock.patch.object(induction, "head_scores", head_scores),
    mock.patch.object(induction, "loss_without", loss_without),
    mock.patch.object(induction, "train", train_giving(outcome)),
  ):
    return induction.run(reduced)


class VerdictTest(chex.TestCase):
  """On figures like the page's, and on some that one finding does not bear."""

  def test_holds(self):
    report = run_on(picture=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "After")
    self.assertEqual([(r["layers"], r["seed"]) for r in rows][2:4], [(1, 2), (2, 0)])
    for row, expected in ((rows[0], (1.38, 0.1, 0.21)), (rows[-1], (0.023, 0.8, 0.93))):
      columns = "above the floor", "previous-token score", "induction score"
      assert_close([row[column] for column in columns], list(expected))
    row = table(report, "The loss without")[2]
    expected = {
      "seed": 2,
      "nothing": FLOOR + 0.023,
      "previous-token head": 3.6,
      "first layer's other": 1.62,
      "one induction head": 1.26,  # the worse of two
      "both induction heads": 5.0,
    }
    assert_close(dict(row), expected, dtype=np.float32)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(run_on(reduced=True)), [True] * 4)

  @parameterized.parameters(
    (0, {}, {(2, 2): 0.15}),
    (1, {"rises": 450}, {}),
    (1, {"falls": 450}, {}),
    (2, {((0, 1),): FLOOR + 0.95}, {}),
    (3, {((1, 1),): FLOOR + 0.45}, {}),
    (3, {((1, 0), (1, 1)): FLOOR + 0.6}, {}),
  )
  def test_does_not_hold(self, finding, seed_1, gaps):
    self.assertEqual(held(run_on(seed_1, gaps)), all_but(4, finding))

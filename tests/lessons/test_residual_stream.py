"""The lesson on the residual stream, without its trainings."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2Config
from lessons import residual_stream
from lessons.residual_stream import BARE, BEHIND, FAST, KINDS, LOST, PLAIN, SLOW
from lessons.training import Trained
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
from tests.params import random_params

CONFIG = GPT2Config(11, 6, 1, 2, 8)
TOKENS = np.array([[0, 3, 10, 3]])


class KindsTest(chex.TestCase):
  """Each kind of model against its blocks, written out."""

  def walk(self, kind):
    """The stream by the lesson, and by hand; and the model."""
    model = KINDS[kind](CONFIG)
    params = random_params(model, scale=0.3)

    def by_hand(model, tokens):
      x = model.embed(tokens, jnp.arange(tokens.shape[1])[None])
      kept = [x]
      for block in model.blocks:
        for part, norm in (
          (block.attention, block.attention_norm),
          (block.feed_forward, block.feed_forward_norm),
        ):
          if kind == "norm behind":
            x = norm(x + part(x))
          elif kind == "no additions":
            x = part(norm(x))
          elif kind == "no norms":
            x = x + part(x)
          else:
            x = x + part(norm(x))
        kept.append(x)
      return jnp.stack(kept), model.unembed(model.final_norm(x))

    @jax.jit
    def run(params):
      found = residual_stream.stream(model, params, TOKENS)
      by_itself = model.apply(params, TOKENS)
      return found, by_itself, model.apply(params, TOKENS, method=by_hand)

    found, by_itself, (expected, logits) = run(params)
    assert_close(by_itself, logits)
    return found, expected

  @parameterized.parameters(*[(kind,) for kind in KINDS])
  def test_is_what_it_says(self, kind):
    assert_close(*self.walk(kind))

  def test_without_norms_there_are_none(self):
    params = random_params(KINDS["no norms"](CONFIG))["params"]
    self.assertNotIn("final_norm", params)
    self.assertNotIn("attention_norm", params["blocks_0"])


class MeasureTest(chex.TestCase):
  def test_length_and_likeness(self):
    stream = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype("f4")
    assert_close(residual_stream.lengths(stream), np.sqrt((stream**2).mean((1, 2, 3))))
    unit = stream / np.linalg.norm(stream, axis=-1, keepdims=True)
    pairs = [
      (unit[:, :, i] * unit[:, :, j]).sum(-1).mean(1)
      for i in range(5)
      for j in range(5)
      if i != j
    ]
    assert_close(residual_stream.likeness(stream), np.mean(pairs, 0))

  def test_contributions(self):
    """Of a model that nobody trained: they sum to what it says."""
    model = KINDS["as it is"](CONFIG)
    params = random_params(model, scale=0.3)
    batch = {"inputs": TOKENS, "targets": np.array([[3, 10, 3, 1]])}
    trained = Trained(model, params, 0.0, 0.0, [])
    parts, off = residual_stream.contributions(trained, batch)
    logits = np.asarray(jax.jit(model.apply)(params, TOKENS))
    right = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    expected = (right - logits.mean(-1)).mean()
    self.assertAlmostEqual(sum(parts.values()), expected, places=4)
    self.assertBetween(off, 0.0, 1e-4)
    self.assertLen(parts, 3 + 2 * CONFIG.num_layers)
    names = list(parts)
    self.assertEqual(names[2:4], ["attention 1", "feed-forward 1"])


# Like the page's: (kind, learning rate) -> gap; kind -> likeness at the end.
GAPS = {
  (PLAIN, SLOW): 0.147,
  (PLAIN, FAST): 0.167,
  (BEHIND, SLOW): 0.149,
  (BEHIND, FAST): 1.75,
  (BARE, SLOW): 0.150,
  (BARE, FAST): 35417.0,
  (LOST, SLOW): 1.82,
}
LIKENESS = {PLAIN: 0.06, BEHIND: 0.07, BARE: 0.1, LOST: 1.0}


class VerdictTest(chex.TestCase):
  """On figures like the page's, and on some that one finding does not bear."""

  def run_on(self, gaps=None, **given):
    """Args: {(kind, rate, seed): gap}; the others are for all seeds."""
    alike = LIKENESS | given.get("alike", {})
    untrained = LIKENESS | {PLAIN: 0.73} | given.get("untrained", {})
    reduced = given.get("reduced", False)

    def kind_of(model):
      if isinstance(model, residual_stream.Changed):
        return LOST if model.change is residual_stream.no_additions else BEHIND
      return BARE if model.norm is residual_stream.no_norm else PLAIN

    def outcome(config, seed):
      rate, kind = config.optimizer.learning_rate, kinds.pop(0)
      gap = (gaps or {}).get((kind, rate, seed), GAPS[kind, rate])
      return Given(2.0 + gap, 2.0, "trained")

    def stream(model, params, tokens):
      kind = kind_of(model)
      self.assertEqual(tokens.shape[1], 16)
      end = (alike if params == "trained" else untrained)[kind]
      return np.array([0.2, end]), np.array([1.3, given.get("length", 4.4)])

    def contributions(trained, batch):
      self.assertIs(kind_of(trained.model), PLAIN)
      return {"embedding": -0.1, "attention 1": 1.0}, given.get("off", 2e-6)

    seeds = 1 if reduced else 3
    kinds = [kind for kind in KINDS for _ in range(seeds)]
    kinds += [kind for kind in KINDS if kind != LOST for _ in range(seeds)]
    with (
      mock.patch.object(
        residual_stream, "new_figure", figures(given.get("picture", False))
      ),
      mock.patch.object(residual_stream, "stream", stream),
      mock.patch.object(residual_stream, "likeness", lambda of: of[0]),
      mock.patch.object(residual_stream, "lengths", lambda of: of[1]),
      mock.patch.object(residual_stream, "contributions", contributions),
      mock.patch.object(residual_stream, "init_params", return_value="fresh"),
      mock.patch.object(residual_stream, "train", train_giving(outcome)),
    ):
      return residual_stream.run(reduced)

  def test_holds(self):
    report = self.run_on({(BARE, SLOW, 1): 0.18}, picture=True)
    self.assertEqual(held(report), [True] * 7)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Gap")
    self.assertLen(rows, 7)
    [row] = [r for r in rows if (r["model"], r["learning rate"]) == (BARE, SLOW)]
    assert_close(row["gap"], 0.16, dtype=np.float32)
    rows = table(report, "The stream")
    last = np.array([row["likeness, last"] for row in rows])
    assert_close(last, np.array([*LIKENESS.values()]), dtype=np.float32)
    self.assertEqual(rows[0]["the same, untrained"], 0.73)
    lengths = np.array([rows[0]["length, first"], rows[0]["length, last"]])
    assert_close(lengths, np.array([1.3, 4.4]), dtype=np.float32)
    self.assertEqual(table(report, "What each")[1]["logits"], 1.0)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 7)

  @parameterized.parameters(
    (0, {"gaps": {(LOST, SLOW, 2): 0.5}}),
    (1, {"gaps": {(BARE, SLOW, 2): 0.5}}),
    (2, {"gaps": {(BARE, FAST, 0): 0.4}}),
    (3, {"gaps": {(BEHIND, FAST, 1): 0.4}}),
    (3, {"gaps": {(BEHIND, SLOW, 1): 0.5}}),
    (4, {"alike": {LOST: 0.9}}),
    (4, {"alike": {PLAIN: 0.6}}),
    (4, {"untrained": {LOST: 0.9}}),
    (5, {"length": 2.0}),
    (6, {"off": 1e-3}),
  )
  def test_does_not_hold(self, finding, given):
    self.assertEqual(held(self.run_on(**given)), all_but(7, finding))

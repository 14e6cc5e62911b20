"""The lesson on stacking, without its trainings: what it measures, and its verdict."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.datasets import GrammarConfig
from gpt2_flax.datasets.english import INTRANSITIVE, TRANSITIVE
from gpt2_flax.datasets.pipeline import validation_windows
from lessons import stacking
from lessons.training import losses_by_position, Trained
from tests.close import assert_close
from tests.lessons.stubs import (
  all_but,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
  with_gap,
)
from tests.params import random_params
from tests.reference import reference_logits

# Like the page's.
GAPS = {1: 0.085, 2: 0.013, 3: 0.013, 4: 0.013}  # layers -> above the floor
LENS = (8.8, 2.5, 0.73, 0.14, 0.013)  # the same, after the embeddings and each layer
SAID = (0.97, 0.02)  # the share of verbs for the cats, and for the dog


class LensTest(chex.TestCase):
  def test_first_the_embeddings_alone_and_last_the_whole_model(self):
    model = GPT2(GPT2Config(11, 6, 1, 2, 8))
    tokens = np.array([[0, 3, 10, 3]])
    params = random_params(model)

    # a block whose last products are nothing adds nothing
    def at_rest(path, leaf):
      last = {"output", "contract"}.intersection(key.key for key in path)
      return np.zeros_like(leaf) if last else leaf

    idle = jax.tree_util.tree_map_with_path(at_rest, params)
    read = stacking.lens(Trained(model, params, 0.0, 0.0, []), tokens)
    expected = [
      jax.nn.softmax(reference_logits(of, tokens, model.config))
      for of in (idle, params)
    ]
    assert_close(read, np.array(expected))


class VerdictTest(chex.TestCase):
  """On figures like the page's, and on some that one finding does not bear."""

  def few(self, dataset, num_windows):
    self.assertEqual(num_windows, 256)
    return validation_windows(dataset, 4)

  def run_on(self, gaps=None, lens=LENS, said=SAID, reduced=False, picture=False):
    """Args: {(layers, seed): gap}, the others for all seeds."""
    dataset = GrammarConfig().make(24)
    batch = dataset.batch(self.few(dataset, 256))
    oracle = np.stack([dataset.next_token_probabilities(x) for x in batch["inputs"]])
    floor = losses_by_position(oracle, batch["targets"]).mean()
    verbs = INTRANSITIVE + TRANSITIVE
    plural = dataset.tokenizer.encode(" ".join(verbs))
    singular = dataset.tokenizer.encode(" ".join(f"{verb}s" for verb in verbs))
    # of seeds that differ the mean is what is given
    of_seed = (1.0,) if reduced else (0.9, 1.0, 1.1)

    def outcome(config, seed):
      layers = config.model.num_layers
      gap = GAPS[layers] * of_seed[seed]
      return Given(floor + (gaps or {}).get((layers, seed), gap), floor, seed)

    def read(model, tokens_BT):
      layers, factor = model.model.config.num_layers, of_seed[model.params]
      self.assertEqual(layers, 2 if reduced else 4)
      if len(tokens_BT) == 1:
        words = dataset.tokenizer.decode(tokens_BT[0].tolist())
        self.assertEndsWith(words, "the cats that the dog sees")
        next_V = np.zeros((layers + 1, 1, tokens_BT.shape[1], oracle.shape[-1]))
        next_V[:, :, :, singular] = 1 / len(singular)
        for ids, share in zip((plural, singular), said, strict=True):
          next_V[-1, 0, -1, ids] = share * factor / len(ids)
        return next_V
      chex.assert_trees_all_equal(tokens_BT, batch["inputs"])
      each = (*lens[:layers], lens[-1])
      return np.stack(
        [with_gap(oracle, batch["targets"], np.full(24, gap * factor)) for gap in each]
      )

    with (
      mock.patch.object(stacking, "new_figure", figures(picture)),
      mock.patch.object(stacking, "validation_windows", self.few),
      mock.patch.object(stacking, "lens", read),
      mock.patch.object(stacking, "train", train_giving(outcome)),
    ):
      return stacking.run(reduced)

  def test_holds(self):
    report = self.run_on(picture=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Gap")
    self.assertEqual([row["layers"] for row in rows], list(GAPS))
    assert_close(rows[0]["mean"], GAPS[1])
    assert_close(rows[1]["gap, seed 2"], GAPS[2] * 1.1)
    rows = table(report, "The logit lens")
    measured = [row["gap"] for row in rows]
    assert_close(np.array(measured), np.array([*LENS, 0.0]), dtype=np.float32)
    shares = [[row["for the cats"], row["for the dog"]] for row in rows]
    some, said = np.array([shares[0], *shares[-2:]]), np.array([[0, 1], SAID, [1, 0]])
    assert_close(some, said, dtype=np.float32)
    self.assertEqual(rows[-1]["read after"], "the language itself")

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 4)

  @parameterized.parameters(
    (0, {"gaps": {(1, 1): 0.025}}),
    (0, {"gaps": {(2, 2): 0.04}}),
    (1, {"gaps": {(4, 1): 0.1}}),
    (1, {"gaps": {(3, 2): 0.1}}),
    (2, {"lens": (8.8, 2.5, 0.73, 0.8, 0.013)}),
    (2, {"lens": (8.8, 9.5, 0.73, 0.14, 0.013)}),
    (3, {"said": (0.7, 0.25)}),
  )
  def test_does_not_hold(self, finding, figures):
    self.assertEqual(held(self.run_on(**figures)), all_but(4, finding))

import functools

import chex
import jax
import numpy as np

from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.pipeline import validation_windows
from lessons.training import experiment, losses_by_position, train
from tests.close import assert_close

DATA = InductionConfig(num_symbols=5, min_period=2, max_period=3)
CHANGES = {
  "model.context_length": 8,
  "model.num_layers": 1,
  "model.num_heads": 1,
  "model.embed_dim": 8,
  "model.feed_forward": False,
  "optimizer.name": "adamw",
  "train.num_steps": 5,
  "eval.every_steps": 2,
  "eval.num_windows": 16,
}


@functools.cache
def alone():
  [trained] = train(DATA, CHANGES, seeds=(0,))
  return trained


class TrainingTest(chex.TestCase):
  def test_an_experiment_is_the_default_one_with_changes(self):
    config, dataset = experiment(DATA, CHANGES)
    self.assertEqual(config.model.vocab_size, dataset.tokenizer.vocab_size)
    self.assertEqual((dataset.context_length, config.model.context_length), (8, 8))
    self.assertEqual((config.optimizer.name, config.optimizer.beta1), ("adamw", 0.9))
    self.assertFalse(config.model.feed_forward)

  def test_a_key_that_does_not_exist(self):
    with self.assertRaisesRegex(KeyError, "num_layer"):
      experiment(DATA, {"model.num_layer": 2})

  def test_each_seed_has_its_own_weights_and_data(self):
    seen = []
    one, other = train(
      DATA, CHANGES, seeds=(0, 1), watch=lambda model, params: seen.append(params)
    )
    chex.assert_trees_all_equal(one.params, alone().params)
    for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
      self.assertGreater(np.abs(a - b).max(), 0)
    self.assertEqual(one.floor, other.floor)  # the same windows
    self.assertNotEqual(one.loss, other.loss)
    self.assertEqual(one.gap, one.loss - one.floor)
    self.assertEqual([step for step, _ in one.history], [2, 4, 5])
    self.assertLen(seen, 6)


class LossesByPositionTest(chex.TestCase):
  def test_is_the_mean_over_the_rows_that_count(self):
    probabilities = np.array(
      [
        [[0.5, 0.5], [0.25, 0.75], [0.2, 0.8]],
        [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]],
      ]
    )
    targets = np.array([[-1, 0, 0], [-1, 1, -1]])
    losses = losses_by_position(probabilities, targets)
    self.assertTrue(np.isnan(losses[0]))
    expected = [(np.log(4) + np.log(2)) / 2, np.log(5)]  # one row counts
    assert_close(losses[1:], np.array(expected))

  def test_averages_to_the_loss_that_training_reports(self):
    trained = alone()
    _, dataset = experiment(DATA, CHANGES)
    batch = dataset.batch(validation_windows(dataset, CHANGES["eval.num_windows"]))
    logits = jax.jit(trained.model.apply)(trained.params, batch["inputs"])
    losses = losses_by_position(jax.nn.softmax(logits), batch["targets"])
    assert_close(losses.mean(), trained.loss, dtype=np.float32)

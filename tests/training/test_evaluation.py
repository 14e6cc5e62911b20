"""Validation losses are exact, whatever the batch size; samples are judged fairly."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from gpt2_flax import datasets
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.experiment import parse
from gpt2_flax.transformer import GPT2
from tests.close import assert_close


def make_evaluator(batch_size: int = 8, num_windows: int = 10, sample_tokens: int = 4):
  config = toy.get_config()
  config.model.context_length = 8
  config.model.num_layers = 1
  config.model.embed_dim = 8
  config.model.num_heads = 2
  config.train.batch_size = batch_size
  config.eval.num_windows = num_windows
  config.eval.sample_tokens = sample_tokens
  experiment, dataset = parse(config)
  model = GPT2(experiment.model)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Evaluator(model, dataset, experiment, device), model, params, dataset


class EvaluatorTest(chex.TestCase):
  @parameterized.parameters(1, 4, 8, 16)
  def test_loss_is_the_mean_over_all_targets(self, batch_size):
    evaluator, model, params, dataset = make_evaluator(batch_size)
    windows = np.stack([dataset.window("validation", i) for i in range(10)])
    logits = np.asarray(model.apply(params, windows[:, :-1]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
    values = evaluator.losses(params)
    assert_close(values["val/loss"], (log_z - chosen).mean(), dtype=np.float32)
    self.assertEqual(values["val/floor"], datasets.floor(dataset, windows))
    self.assertEqual(values["val/gap"], values["val/loss"] - values["val/floor"])

  def test_text_has_no_floor(self):
    evaluator, _, params, dataset = make_evaluator()
    with mock.patch.object(
      type(dataset), "next_token_probabilities", return_value=None
    ):
      self.assertEqual(set(evaluator.losses(params)), {"val/loss"})
      self.assertIsNone(evaluator.possible_share(params, 4, seed=0))

  def test_possible_share_counts_what_the_grammar_can_write(self):
    evaluator, _, params, dataset = make_evaluator()
    real = np.stack([dataset.window("train", i)[:5] for i in range(3)])
    wrong = np.repeat(real[:1, :1], 5, axis=1)  # five start tokens
    with mock.patch.object(
      Evaluator, "samples", return_value=np.concatenate([real, wrong])
    ):
      self.assertEqual(evaluator.possible_share(params, 4, seed=0), 0.75)

  def test_samples_are_text_and_repeatable(self):
    evaluator, _, params, _ = make_evaluator()
    text = evaluator.sample(params, seed=3)
    self.assertLen(text.split(), 4)
    self.assertEqual(text, evaluator.sample(params, seed=3))
    self.assertNotEqual(text, evaluator.sample(params, seed=4))
    self.assertIsNone(make_evaluator(sample_tokens=0)[0].sample(params, seed=3))

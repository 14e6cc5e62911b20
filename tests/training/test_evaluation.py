"""Validation losses are exact, whatever the batch size; samples are judged fairly."""

import functools
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from configs import text as text_config
from configs import toy
from gpt2_flax import datasets
from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import evaluation
from gpt2_flax.training.evaluation import Evaluator, text_loss
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.step import make_eval_step
from gpt2_flax.transformer import GPT2
from tests.close import assert_close
from tests.params import random_params
from tests.reference import reference_logits


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
  params = random_params(model)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return Evaluator(model, dataset, experiment, device), model, params, dataset


class EvaluatorTest(chex.TestCase):
  def test_sums_over_many_batches_lose_no_digits(self):
    """As float32, a large sum would not grow by a one."""
    batches = iter([(np.float32(2**24), 1), (np.float32(1), 1), (np.float32(1), 1)])
    step = mock.Mock(side_effect=lambda *_: next(batches))
    with mock.patch.object(evaluation, "make_eval_step", return_value=step):
      evaluator, _, params, _ = make_evaluator(batch_size=4)
    self.assertEqual(evaluator.losses(params)["val/loss"], (2**24 + 2) / 3)

  @parameterized.parameters(4, 16)  # with a part left over, and only a part
  def test_loss_is_the_mean_over_all_targets(self, batch_size):
    evaluator, model, params, dataset = make_evaluator(batch_size)
    windows = np.stack([dataset.window("validation", i) for i in range(10)])
    logits = np.asarray(jax.jit(model.apply)(params, windows[:, :-1]), np.float64)
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
    at_the_end = np.concatenate([real[:1, :4], wrong[:, :1]], axis=1)
    samples = np.concatenate([real, wrong, at_the_end])
    with mock.patch.object(Evaluator, "samples", return_value=samples):
      self.assertEqual(evaluator.possible_share(params, 5, seed=0), 0.6)

  def test_samples_begin_with_the_start_token_and_go_on_past_the_context(self):
    evaluator, model, params, dataset = make_evaluator(sample_tokens=11)
    samples = evaluator.samples(params, 3, seed=1)
    self.assertEqual(samples.shape, (3, 1 + 11))
    self.assertGreater(11, model.config.context_length)
    self.assertEqual(samples[:, 0].tolist(), [dataset.tokenizer.start_id] * 3)
    self.assertLess(samples.max(), dataset.tokenizer.vocab_size)

  def test_without_a_start_token_samples_begin_as_the_validation_text(self):
    text = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "text.txt"
    text.write_text("be to or not " * 9)
    config = text_config.get_config()
    config.data.path = str(text)
    config.model.update(num_layers=1, embed_dim=8, num_heads=2, context_length=8)
    config.eval.sample_tokens = 2
    experiment, dataset = parse(config)
    model = GPT2(experiment.model)
    params = random_params(model)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    evaluator = Evaluator(model, dataset, experiment, device)
    first = int(dataset.window("validation", 0)[0])
    self.assertGreater(first, 0)
    self.assertEqual(evaluator.samples(params, 2, seed=1)[:, 0].tolist(), [first] * 2)

  def test_samples_are_text_and_repeatable(self):
    evaluator, _, params, _ = make_evaluator()
    text = evaluator.sample(params, seed=3)
    self.assertLen(text.split(), 4)
    self.assertEqual(text, evaluator.sample(params, seed=3))
    self.assertNotEqual(text, evaluator.sample(params, seed=4))
    silent = make_evaluator(sample_tokens=0)[0]
    self.assertIsNone(silent.sample(params, seed=3))
    self.assertIsNone(silent.possible_share(params, 4, seed=3))


eval_step_once = functools.cache(make_eval_step)  # compiled for all texts


class TextLossTest(chex.TestCase):
  @parameterized.parameters(
    (0, 21), (2, 10), (3, 21), (3, 23), (3, 2), (4, 8), (5, 9), (8, 9), (8, 21)
  )
  def test_is_that_of_the_common_recipe(self, stride, num_tokens):
    """The loop of "Perplexity of fixed-length models", window by window, and its mean;
    where the last window has one token for it, that counts for nothing."""
    config, params, tokens = self.text(num_tokens)
    stride_of = stride or 4  # 0: half the context
    weighted, weights, total, count, end = 0.0, 0, 0.0, 0, 0
    for begin in range(0, num_tokens, stride_of):
      before, end = end, min(begin + 8, num_tokens)
      window, num_new = tokens[begin:end], end - before
      predicted = [i for i in range(1, len(window)) if i >= len(window) - num_new]
      logits = reference_logits(params, np.array([window]), config)[0]
      losses = [
        np.log(np.exp(logits[i - 1]).sum()) - logits[i - 1, window[i]]
        for i in predicted
      ]
      if losses:
        weighted += np.mean(losses) * (num_new - 1)
        weights += num_new - 1
      total, count = total + np.sum(losses), count + len(losses)
      if end == num_tokens:
        break
    for batch_size in (1, 3):
      with mock.patch.object(evaluation, "make_eval_step", eval_step_once):
        found = text_loss(
          GPT2(config), params, tokens, stride=stride, batch_size=batch_size
        )
      self.assertEqual(found.count, count)
      assert_close(found.total, total, dtype=np.float32)
      assert_close(found.mean, weighted / weights, dtype=np.float32)
    if stride_of < 8:  # each token once, but the first
      self.assertEqual(count, num_tokens - 1)

  @parameterized.parameters(
    (dict(stride=9), "stride is 9: must be 2 to model.context_length, which is 8"),
    (dict(stride=1), "stride is 1: must be 2 to"),
    (dict(stride=-1), "stride is -1: must be 2 to"),
    (dict(batch_size=0), "batch_size is 0: must be at least 1"),
    (dict(length=1), r"the text has 1 token\(s\): must have at least 2"),
  )
  def test_refuses(self, changes, message):
    config, params, tokens = self.text(changes.pop("length", 5))
    arguments = dict(stride=4, batch_size=2) | changes
    with self.assertRaisesRegex(InputError, message):
      text_loss(GPT2(config), params, tokens, **arguments)

  def text(self, length):
    config = GPT2Config(11, 8, num_layers=1, num_heads=2, embed_dim=8)
    tokens = np.random.default_rng(0).integers(0, 11, length).astype(np.uint16)
    return config, random_params(GPT2(config)), tokens

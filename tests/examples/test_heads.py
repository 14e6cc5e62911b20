"""Heads of one's own: the formula, training, the cache, the trace, the page."""

import dataclasses
import functools
import pathlib
import tempfile

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy
from examples import heads
from gpt2_flax import generation, GPT2, GPT2Config, interpret, load, MultiHeadAttention
from gpt2_flax.errors import InputError
from gpt2_flax.interpret.page import page_data, render_page
from gpt2_flax.self_attention import HEADS
from gpt2_flax.tokenizer import NumberTokenizer
from gpt2_flax.training import loop
from gpt2_flax.training.experiment import parse
from tests.close import assert_close
from tests.params import shapes_of

NAMES = ("sink", "normed", "sliding", "linear")
B, T, D, K = 2, 11, 8, 4
CONFIG = GPT2Config(
  vocab_size=13, context_length=24, num_layers=1, num_heads=2, embed_dim=D
)
TOKENS = np.random.default_rng(0).integers(0, 13, (B, T))


@functools.cache
def model_and_params(name: str):
  model = GPT2(dataclasses.replace(CONFIG, attention=name))
  key = jax.random.key(0, impl="unsafe_rbg")  # compiled in a quarter of the time
  params = jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))
  spread = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)
  return model, spread


def expected_weights(name: str, scores: np.ndarray, near: int = 8) -> np.ndarray:
  """From the formulas, row by row: scores [T, S] before the mask."""
  weights = np.zeros_like(scores)
  for t, row in enumerate(scores):
    seen = [s for s in range(t + 1) if name != "sliding" or t - s < near]
    odds = row[seen] if name == "linear" else np.exp(row[seen])
    weights[t, seen] = odds / (odds.sum() + (name == "sink"))
  return weights


class HeadsTest(chex.TestCase):
  @parameterized.parameters(*NAMES)
  def test_is_what_its_formula_says(self, name):
    model, params = model_and_params(name)
    logits, run = interpret.trace(model, params, TOKENS)
    chex.assert_trees_all_equal(logits, model.apply(params, TOKENS))
    query, key = (np.asarray(x[0, 1, 0], np.float64) for x in (run.query, run.key))
    if name == "normed":
      for x in (query, key):
        lengths = (x**2).mean(-1) / 8**2  # the scale that the norm has here
        np.testing.assert_allclose(lengths, 1, atol=1e-3)  # its epsilon
    if name == "linear":
      query, key = (np.where(x > 0, x + 1, np.exp(x)) for x in (query, key))
      scores = query @ key.T
    else:
      scores = query @ key.T / K**0.5
    parts = abs(query) @ abs(key).T
    assert_close(run.scores[0, 1, 0], scores, 64, scale=parts, dtype=np.float32)
    expected = expected_weights(name, np.asarray(run.scores[0, 1, 0], np.float64))
    assert_close(run.weights[0, 1, 0], expected, 64, dtype=np.float32)

  @parameterized.parameters(*NAMES)
  def test_generates_with_the_cache_as_without(self, name):
    model, params = model_and_params(name)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    made = generation.generate(
      model, params, prompts, num_tokens=12, sampling=generation.Sampling(temperature=0)
    )
    apply = jax.jit(model.apply)
    for prompt, new in zip(prompts, made, strict=True):
      text = np.array([prompt + new])
      logits = np.array(apply(params, text[:, :-1])[0])
      chosen = np.take_along_axis(logits, text[0, 1:, None], -1)[len(prompt) - 1 :, 0]
      # each token is the most probable, up to what the order of sums changes
      best = logits[len(prompt) - 1 :].max(-1)
      np.testing.assert_array_less(best - chosen, 1e-4 * abs(logits).max())

  def test_can_be_cut_into_and_shown(self):
    self.cut_into_and_show("normed")  # has parameters of its own

  @parameterized.parameters(*(name for name in NAMES if name != "normed"))
  @pytest.mark.slow
  def test_so_can_the_others(self, name):
    self.cut_into_and_show(name)

  def cut_into_and_show(self, name):
    model, params = model_and_params(name)
    edit = interpret.ablate_heads(jnp.array([[False, True]]))
    logits, run = interpret.trace(model, params, TOKENS, [edit])
    self.assertEqual(float(abs(run.head_output[0, 1]).max()), 0)
    self.assertGreater(float(abs(logits - model.apply(params, TOKENS)).max()), 1e-3)
    tokenizer = NumberTokenizer(13)
    data = page_data(model, params, tokenizer, TOKENS[0].tolist(), title=name)
    self.assertIn(name, render_page(data, model.config))

  def test_a_step_that_calls_the_one_it_overrides_is_edited_once(self):
    model, params = model_and_params("sink")
    _, plain = interpret.trace(model, params, TOKENS)
    edit = interpret.make_edit("weights", True, 0.5, 0.0)
    _, halved = interpret.trace(model, params, TOKENS, [edit])
    chex.assert_trees_all_equal(halved.weights[0], plain.weights[0] / 2)

  def test_a_class_will_do_in_place_of_a_name(self):
    by_name, params = model_and_params("sink")
    by_class = GPT2(CONFIG, head=heads.SinkHead)
    expected = by_name.apply(params, TOKENS)
    chex.assert_trees_all_equal(by_class.apply(params, TOKENS), expected)
    chex.assert_trees_all_equal(interpret.trace(by_class, params, TOKENS)[0], expected)
    plain = GPT2(CONFIG).apply(params, TOKENS)
    self.assertGreater(float(abs(plain - expected).max()), 1e-3)
    attention = MultiHeadAttention(num_heads=2, head_dim=K, head=heads.SinkHead)
    x = jax.ShapeDtypeStruct((B, T, D), "float32")
    out = jax.eval_shape(attention.apply, shapes_of(attention, x), x)
    chex.assert_shape(out, (B, T, D))

  @pytest.mark.slow  # doors/test_own_parts.py trains one and opens it
  def test_trains_and_opens_again(self):
    self.train_and_open("normed")  # has parameters of its own

  @parameterized.parameters("sink", "sliding", "linear")
  @pytest.mark.slow
  def test_the_others_too(self, name):
    self.train_and_open(name)

  def train_and_open(self, name):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
    config = toy.get_config()
    config.model.update(num_heads=2, embed_dim=8, context_length=12, attention=name)
    config.model.num_layers = 1
    config.optimizer.update(name="adamw", learning_rate=0.01)
    config.train.update(num_steps=4, batch_size=8, log_every_steps=1)
    config.eval.update(num_windows=8, sample_tokens=0)
    config.optimizer.warmup_steps = 1
    experiment, dataset = parse(config)
    self.assertRegex(experiment.own["attention"], "^examples.heads:.*Head$")
    result = loop.train(experiment, dataset, folder)
    model, params, _ = load(folder)
    windows = np.stack([dataset.window("validation", i) for i in range(8)])
    batch = dataset.batch(windows)
    logits = jax.jit(model.apply)(params, batch["inputs"])
    losses = -jax.nn.log_softmax(logits)[
      jnp.arange(8)[:, None], jnp.arange(12)[None], batch["targets"]
    ]
    assert_close(result.metrics["val/loss"], losses.mean(), 512, dtype=np.float32)


class RegistryTest(chex.TestCase):
  def test_a_name_that_is_taken(self):
    with self.assertRaisesRegex(
      InputError, "model.attention 'flash' is there already: gpt2_flax.self_attention:"
    ):
      HEADS.add("flash", heads.SinkHead)
    self.assertIs(HEADS.add("sink", heads.SinkHead), heads.SinkHead)  # a reload

  def test_an_unknown_name(self):
    with self.assertRaisesRegex(InputError, "model.attention 'snik': did you mean"):
      GPT2Config(attention="snik")

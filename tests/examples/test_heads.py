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
from tests.interpret.test_page import unmeasured
from tests.params import random_params, shapes_of
from tests.reference import reference_logits

NAMES = ("sink", "normed", "sliding", "linear")
B, T, D, K = 2, 11, 8, 4
CONFIG = GPT2Config(
  vocab_size=13, context_length=24, num_layers=1, num_heads=2, embed_dim=D
)
TOKENS = np.random.default_rng(0).integers(0, 13, (B, T))


@functools.cache
def model_and_params(name: str):
  model = GPT2(dataclasses.replace(CONFIG, attention=name))
  params = random_params(model, scale=0.5)
  for norm in ("query_norm", "key_norm"):
    heads = params["params"]["blocks_0"]["attention"]["heads"]
    if norm in heads:
      heads[norm]["scale"] = np.full((2, K), 8, "f4")
  return model, params


@functools.cache
def program(name: str):
  """Logits and trace with weights scaled and heads silent, and the model's logits."""
  model, params = model_and_params(name)

  @jax.jit
  def run(tokens, scale, silent):
    edits = (
      interpret.make_edit("weights", True, scale, 0.0),
      interpret.ablate_heads(silent),
    )
    traced = interpret.trace(model, params, tokens, edits)
    return *traced, model.apply(params, tokens)

  return run


def run(name: str, tokens=TOKENS, scale=1.0, silent=((False, False),)):
  found = program(name)(tokens, np.float32(scale), np.array(silent))
  return jax.tree.map(np.asarray, found)


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
    logits, trace, own_logits = run(name)
    assert_close(logits, own_logits)
    query, key = (x[0, 1, 0].astype("f8") for x in (trace.query, trace.key))
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
    assert_close(trace.scores[0, 1, 0], scores, 64, scale=parts, dtype=np.float32)
    expected = expected_weights(name, trace.scores[0, 1, 0].astype("f8"))
    assert_close(trace.weights[0, 1, 0], expected, 64, dtype=np.float32)

  @parameterized.parameters("sliding", "linear")  # each has its own way to leave out
  def test_generates_with_the_cache_as_without(self, name):
    self.generate_with_the_cache(name)

  @parameterized.parameters("sink", "normed")
  @pytest.mark.slow  # they leave out as every head does
  def test_so_do_the_others(self, name):
    self.generate_with_the_cache(name)

  def generate_with_the_cache(self, name):
    model, params = model_and_params(name)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    made = generation.generate(
      model, params, prompts, num_tokens=6, sampling=generation.Sampling(temperature=0)
    )
    texts = np.zeros((B, T), int)  # what comes after a text changes nothing in it
    for text, prompt, new in zip(texts, prompts, made, strict=True):
      text[: len(prompt + new)] = prompt + new
    for text, prompt, logits in zip(texts, prompts, run(name, texts)[2], strict=True):
      written = slice(len(prompt) - 1, len(prompt) + 5)
      chosen = np.take_along_axis(logits[:-1], text[1:, None], -1)[written, 0]
      # each token is the most probable, up to what the order of sums changes
      best = logits[written].max(-1)
      np.testing.assert_array_less(best - chosen, 1e-4 * abs(logits).max())

  def test_can_be_cut_into_and_shown(self):
    self.cut_into_and_show("normed")  # has parameters of its own

  @parameterized.parameters(*(name for name in NAMES if name != "normed"))
  @pytest.mark.slow
  def test_so_can_the_others(self, name):
    self.cut_into_and_show(name)

  def cut_into_and_show(self, name):
    logits, trace, own_logits = run(name, silent=[[False, True]])
    self.assertEqual(abs(trace.head_output[0, 1]).max(), 0)
    self.assertGreater(abs(logits - own_logits).max(), 1e-3)
    model, params = model_and_params(name)
    tokenizer = NumberTokenizer(13)
    with unmeasured():
      data = page_data(model, params, tokenizer, TOKENS[0].tolist(), title=name)
    self.assertIn(name, render_page(data, model.config))

  def test_a_step_that_calls_the_one_it_overrides_is_edited_once(self):
    _, plain, _ = run("sink")
    _, halved, _ = run("sink", scale=0.5)
    chex.assert_trees_all_equal(halved.weights[0], plain.weights[0] / 2)

  def test_a_class_will_do_in_place_of_a_name(self):
    _, params = model_and_params("sink")
    by_class = GPT2(CONFIG, head=heads.SinkHead)
    traced = functools.partial(interpret.trace, by_class)
    logits, trace = jax.jit(traced)(params, TOKENS)
    assert_close((logits, trace), run("sink")[:2])
    own_logits = jax.jit(by_class.apply)(params, TOKENS)
    assert_close(logits, own_logits)
    plain = reference_logits(params, TOKENS, CONFIG)
    self.assertGreater(abs(plain - logits).max(), 1e-3)
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

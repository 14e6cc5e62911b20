import dataclasses
import functools
import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config, InputError, interpret, pretrained
from tests.close import assert_close
from tests.params import random_params
from tests.reference import reference_logits

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
EPSILON = 1e-2  # of norms; large enough that no other would do
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))
CONFIGS = {
  "plain": {},
  "learned_untied": dict(positional_encoding="learned", tied_embeddings=False),
  "no_positions_one_head": dict(positional_encoding="none", num_heads=1),
}


def make_model(**changes):
  sizes = dict(vocab_size=11, context_length=8, num_layers=2, num_heads=2, embed_dim=8)
  sizes |= dict(mlp_dim=6, layer_norm_epsilon=EPSILON)
  return GPT2(GPT2Config(**(sizes | changes)))


def everything(model, params, tokens, edits=()):
  """Logits, trace, lens and attribution, by one program."""

  @jax.jit
  def run(params, tokens):
    logits, trace = interpret.trace(model, params, tokens, edits)
    lens = interpret.logit_lens(model, params, trace)
    return logits, trace, lens, interpret.logit_attribution(model, params, trace)

  return jax.tree.map(np.asarray, run(params, tokens))


@functools.cache
def told(name):
  """Model, params, tokens and the rest: random, or of published weights."""
  if name in CONFIGS:
    model = make_model(**CONFIGS[name])
    params = random_params(model, scale=0.4, seed=1)
  else:
    model, params = pretrained.load(GOLDEN / name)
  tokens = TOKENS % model.config.vocab_size
  return model, params, tokens, *everything(model, params, tokens)


@functools.cache
def edited():
  """Logits, trace, lens and attribution without some heads, the last layer steered."""
  edits = [
    interpret.steer(np.arange(8.0), [0, 1], "mlp_output"),
    interpret.ablate_heads([[0, 1], [1, 0]]),
  ]
  return everything(*told("plain")[:3], edits)


def total(parts):
  """float64 [B, T, V]: all parts of all layers and heads."""
  arrays = [np.asarray(part, "f8") for part in parts]
  return sum(array.sum(tuple(range(array.ndim - 3))) for array in arrays)


def size(parts):
  """Likewise, of their absolute values: how much may cancel in the total."""
  return total(jax.tree.map(abs, parts))


class LogitLensTest(chex.TestCase):
  def test_each_layer_is_a_model_that_ends_there(self):
    model, params, tokens, logits, _, lens, _ = told("learned_untied")
    chex.assert_shape(lens, (3, 3, 5, 11))
    assert_close(lens[2], logits)
    shorter = dataclasses.replace(model.config, num_layers=1)
    assert_close(lens[1], reference_logits(params, tokens, shorter))
    p = params["params"]
    x = p["token_embedding"]["embedding"][tokens]
    x = x + p["positional_encoding"]["embedding"]["embedding"][:5]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    x = x * p["final_norm"]["scale"] + p["final_norm"]["bias"]
    assert_close(lens[0], x @ p["output_embedding"]["embedding"].T)

  def test_of_an_edited_run(self):
    logits, _, lens, _ = edited()
    self.assertGreater(np.abs(logits - told("plain")[3]).max(), 0.1)
    assert_close(lens[-1], logits)


class LogitAttributionTest(chex.TestCase):
  @parameterized.parameters(*CONFIGS, "by_layer")
  def test_the_parts_sum_to_the_logits(self, name):
    model, _, _, logits, trace, _, parts = told(name)
    chex.assert_shape(parts.heads, (*trace.head_output.shape[:4], logits.shape[-1]))
    self.assertGreater(np.abs(logits).max(), 0.3)
    assert_close(total(parts), logits, scale=size(parts))
    # Every part says something, but for positions where there are none.
    said = [np.abs(part).max() > 1e-4 for part in parts]
    silent = model.config.positional_encoding == "none"
    self.assertEqual(said, [True, not silent, True, True, True, True])

  def test_each_part_goes_through_the_frozen_norm(self):
    _, params, tokens, _, t, _, parts = told("learned_untied")
    p = params["params"]
    final = t.residual_after[-1]
    spread = np.sqrt(final.var(-1, keepdims=True) + EPSILON)

    def say(x):
      x = (x - x.mean(-1, keepdims=True)) / spread * p["final_norm"]["scale"]
      return x @ p["output_embedding"]["embedding"].T

    output = p["blocks_0"]["attention"]["output"]
    embeddings = p["token_embedding"]["embedding"][tokens]
    places = p["positional_encoding"]["embedding"]["embedding"][:5][None]
    assert_close(parts.token_embeddings, say(embeddings))
    assert_close(parts.positions, say(np.tile(places, (3, 1, 1))))
    assert_close(parts.heads[0, 1], say(t.head_output[0, 1] @ output["kernel"][4:]))
    assert_close(parts.attention_bias[0], say(np.tile(output["bias"], (3, 5, 1))))
    assert_close(parts.mlp[1], say(t.mlp_output[1]))

  def test_of_chosen_tokens(self):
    model, params, tokens, _, trace, _, whole = told("plain")
    targets = (tokens + 2) % 11
    run = jax.jit(functools.partial(interpret.logit_attribution, model))
    chosen = run(params, trace, targets)
    for one, all_tokens in zip(chosen, whole, strict=True):
      picked = np.zeros(one.shape, "f4")
      for b, t in np.ndindex(3, 5):
        picked[..., b, t] = all_tokens[..., b, t, targets[b, t]]
      assert_close(one, picked)

  def test_of_a_run_without_some_heads(self):
    logits, _, _, parts = edited()
    self.assertEqual(np.abs(parts.heads[0, 1]).max(), 0)
    assert_close(total(parts), logits, scale=size(parts))

  def test_in_bfloat16_the_sum_is_as_exact_as_the_model(self):
    _, params, tokens, *_ = told("plain")
    logits, _, _, parts = everything(make_model(dtype="bfloat16"), params, tokens)
    chex.assert_trees_all_equal_dtypes(*parts)
    # Of the sum with the positions; in each of two layers of a projection and two sums,
    # one of which follows the feed-forward; of the last norm and the embeddings.
    roundings = 1 + 2 * (4 + 2) + 2
    scale = size(parts)
    assert_close(total(parts), logits, roundings, scale=scale, dtype=jnp.bfloat16)

  def test_a_trace_without_what_is_needed_is_refused(self):
    model, params, tokens, *_ = told("plain")
    run = functools.partial(interpret.trace, model, taps=["residual_after"])
    _, trace = jax.eval_shape(run, params, tokens)
    with self.assertRaisesRegex(InputError, "no 'residual_before': taps must include"):
      interpret.logit_lens(model, params, trace)
    with self.assertRaisesRegex(InputError, "no 'token_embeddings': taps must include"):
      interpret.logit_attribution(model, params, trace)

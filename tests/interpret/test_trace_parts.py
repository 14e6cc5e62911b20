"""Traces of a lone part, of a module that holds parts, and inside interceptors."""

import functools

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import numpy as np
import pytest

from gpt2_flax import GPT2, InputError, interpret, MultiHeadAttention, SelfAttention
from gpt2_flax.positional_encoding import PositionalEncoding
from gpt2_flax.transformer import Block, FeedForward
from tests.close import assert_close
from tests.interpret.test_edits import (
  model_and_params,
  TOKENS,
  traced_with,
  unedited,
  VECTOR,
)
from tests.params import random_params, shapes_of

X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("f4")


def weights_of(block, *names):
  params = model_and_params()[1]["params"][block]
  for name in names:
    params = params[name]
  return {"params": params}


@functools.cache
def program(module):
  run = functools.partial(interpret.trace, module)
  return jax.jit(run, static_argnames="taps")


def traced(module, params, x, **kwargs):
  """By one program for each kind of part."""
  return jax.tree.map(np.asarray, program(module)(params, x, **kwargs))


class LonePartTest(chex.TestCase):
  """Each is given what it got in the model, and must tell what it told there."""

  def test_a_head(self):
    whole = unedited()[1]
    params = weights_of("blocks_1", "attention", "heads")
    params = jax.tree.map(lambda leaf: leaf[1], params)
    x = whole.residual_before[1]
    norm = weights_of("blocks_1", "attention_norm")["params"]
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = (x - x.mean(-1, keepdims=True)) / spread * norm["scale"] + norm["bias"]
    out, trace = traced(SelfAttention(head_dim=4), params, normed)
    taps = ["query", "key", "value", "scores", "weights", "head_output"]
    self.assertEqual(list(trace), taps)
    for tap in taps:
      assert_close(trace[tap], whole[tap][1, 1])
    chex.assert_trees_all_equal(out, trace.head_output)

  def test_attention(self):
    module = MultiHeadAttention(num_heads=2, head_dim=4)
    params = weights_of("blocks_0", "attention")
    taps = ("weights", "attention_output")
    out, trace = traced(module, params, X, taps=taps)
    assert_close(out, jax.jit(module.apply)(params, X))
    chex.assert_trees_all_equal(trace.attention_output, out)
    for head in range(2):
      own = jax.tree.map(lambda leaf, head=head: leaf[head], params["params"]["heads"])
      alone = SelfAttention(head_dim=4)
      _, expected = traced(alone, {"params": own}, X)
      assert_close(trace.weights[head], expected.weights)
    self.assertLen(trace, 2)

  def test_a_block_a_feed_forward_and_positions(self):
    whole, config = unedited()[1], model_and_params()[0].config
    (out, _), trace = traced(
      Block(config), weights_of("blocks_0"), whole.residual_before[0]
    )
    chex.assert_trees_all_equal(out, trace.residual_after)
    for tap in trace:
      assert_close(trace[tap], whole[tap][0])
    self.assertLen(trace, 12)
    module = FeedForward(config)
    out, trace = traced(module, weights_of("blocks_0", "feed_forward"), X)
    self.assertEqual(list(trace), ["mlp_hidden", "mlp_output"])
    chex.assert_trees_all_equal(out, trace.mlp_output)
    module = PositionalEncoding("sinusoidal", 8)
    out, trace = traced(module, {}, X, positions=np.arange(5)[None])
    assert_close(out, X + trace.positions)

  def test_may_be_jitted_and_has_gradients(self):
    params = weights_of("blocks_0", "attention", "heads")
    params = jax.tree.map(lambda leaf: leaf[0], params)

    def weight(x):
      run = interpret.trace(SelfAttention(head_dim=4), params, x, taps=["weights"])[1]
      return run.weights[0, 4, 0]

    slope = np.asarray(jax.jit(jax.grad(weight))(X))
    self.assertGreater(np.abs(slope[0, 4]).max(), 1e-4)
    chex.assert_trees_all_equal(slope[1:], np.zeros((2, 5, 8), "f4"))


class Mine(nn.Module):
  """Two kinds of attention, whose names do not tell their order."""

  wide: int = 4

  @nn.compact
  def __call__(self, x_BTD):
    x_BTD = x_BTD + MultiHeadAttention(2, 4, name="zebra")(x_BTD)
    return x_BTD + MultiHeadAttention(2, self.wide, name="ant")(x_BTD)


class LoudHead(SelfAttention):
  def mix(self, weights_BTS, value_BSK):
    return 2 * super().mix(weights_BTS, value_BSK)


class OwnModuleTest(chex.TestCase):
  def test_layers_are_counted_as_they_are_called(self):
    module = Mine()
    params = random_params(module, X)
    out, trace = traced(module, params, X)
    chex.assert_shape(trace.weights, (2, 2, 3, 5, 5))
    assert_close(out, X + trace.attention_output[0] + trace.attention_output[1])
    own = {"params": params["params"]["zebra"]}
    zebra, _ = traced(
      MultiHeadAttention(2, 4), own, X, taps=("weights", "attention_output")
    )
    assert_close(trace.attention_output[0], zebra)

  def test_parts_of_several_shapes_do_not_stack(self):
    module = Mine(wide=6)
    params = shapes_of(module, X)
    with self.assertRaisesRegex(
      InputError, r"tap 'query' has several shapes, .*zebra.*\(2, 3, 5, 4\).*ant.*6"
    ):
      jax.eval_shape(functools.partial(interpret.trace, module), params, X)
    weights = functools.partial(interpret.trace, module, taps=["weights"])
    _, trace = jax.eval_shape(weights, params, X)
    chex.assert_shape(trace.weights, (2, 2, 3, 5, 5))

  def test_a_head_that_calls_its_base_class_is_edited_once(self):
    model, params = model_and_params()
    loud = GPT2(model.config, head=LoudHead)
    edit = interpret.scale_heads(np.full((2, 2), 0.5))
    found = jax.jit(lambda: interpret.trace(loud, params, TOKENS, [edit]))()
    assert_close(found, unedited())

  def test_says_what_it_needs(self):
    module = nn.Dense(3)
    params = random_params(module, X)
    with self.assertRaisesRegex(
      InputError, "Dense has nothing to trace: must be or hold one of .*SelfAttention"
    ):
      jax.eval_shape(lambda: interpret.trace(module, params, X))
    with self.assertRaisesRegex(InputError, "tap 'mlp_output' hit nothing"):
      module = SelfAttention(head_dim=4)
      params = random_params(module, X)
      jax.eval_shape(lambda: interpret.trace(module, params, X, taps=["mlp_output"]))
    with self.assertRaisesRegex(InputError, "edits need a GPT2: SelfAttention"):
      interpret.trace(module, params, X, [interpret.steer(VECTOR, True)])


class InsideInterceptorsTest(chex.TestCase):
  @parameterized.parameters(
    ("read", "blocks_0", "residual_between", True),
    ("mix", "heads", "head_output", False),
  )
  def test_the_trace_has_what_flows_on(self, *step):
    self.assert_flows_on(*step)

  @parameterized.parameters(  # again with a cache, and without
    ("attend", "attention", "attention_output", True),
    ("think", "blocks_0", "residual_after", False),
    ("hidden", "feed_forward", "mlp_hidden", False),
  )
  @pytest.mark.slow
  def test_so_it_has_of_other_steps(self, *step):
    self.assert_flows_on(*step)

  def assert_flows_on(self, method, name, site, has_cache):
    """An interceptor of the caller's doubles a step; so does an edit of that site."""
    model, params = model_and_params()

    def double(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.method_name != method or context.module.name != name:
        return out
      return (2 * out[0], *out[1:]) if has_cache else 2 * out

    @jax.jit
    def run():
      return interpret.trace(model, params, TOKENS), model.apply(params, TOKENS)

    with nn.intercept_methods(double):
      (logits, found), own_logits = run()
    chex.assert_trees_all_equal(logits, own_logits)
    layers = [1, 0] if name == "blocks_0" else [1, 1]
    edit = interpret.make_edit(site, layers, 2.0, 0.0)
    assert_close((logits, found), traced_with(edit))
    self.assertGreater(np.abs(logits - unedited()[0]).max(), 0.01)

  def test_the_interceptors_are_there_afterwards_in_their_order(self):
    model, params = model_and_params()
    seen = []

    def note(letter):
      def interceptor(call, args, kwargs, context):
        if context.method_name == "unembed":
          seen.append(letter)
        return call(*args, **kwargs)

      return interceptor

    trace = functools.partial(interpret.trace, model, params, taps=())
    apply = functools.partial(model.apply, params)
    with nn.intercept_methods(note("a")), nn.intercept_methods(note("b")):
      jax.eval_shape(lambda: trace(TOKENS))
      with self.assertRaises(InputError):
        jax.eval_shape(lambda: trace(TOKENS + 99))
      jax.eval_shape(lambda: apply(TOKENS))
    self.assertEqual(seen, ["a", "b"] * 2)
    jax.eval_shape(lambda: apply(TOKENS))
    self.assertLen(seen, 4)

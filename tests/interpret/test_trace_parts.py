"""Traces of a lone part, of a module that holds parts, and inside interceptors."""

import functools

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, InputError, interpret, MultiHeadAttention, SelfAttention
from gpt2_flax.positional_encoding import PositionalEncoding
from gpt2_flax.transformer import Block, FeedForward
from tests.close import assert_close
from tests.interpret.test_edits import (
  model_and_params,
  TOKENS,
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


class LonePartTest(chex.TestCase):
  """Each is given what it got in the model, and must tell what it told there."""

  def test_a_head(self):
    whole = unedited()[1]
    params = weights_of("blocks_1", "attention", "heads")
    params = jax.tree.map(lambda leaf: leaf[1], params)
    model, everything = model_and_params()
    normed = model.apply(
      everything,
      whole.residual_before[1],
      method=lambda model, x: model.blocks[1].attention_norm(x),
    )
    out, trace = interpret.trace(SelfAttention(head_dim=4), params, normed)
    taps = ["query", "key", "value", "scores", "weights", "head_output"]
    self.assertEqual(list(trace), taps)
    for tap in taps:
      assert_close(trace[tap], whole[tap][1, 1])
    chex.assert_trees_all_equal(out, trace.head_output)

  def test_attention(self):
    module = MultiHeadAttention(num_heads=2, head_dim=4)
    params = weights_of("blocks_0", "attention")
    out, trace = interpret.trace(
      module, params, X, taps=["weights", "attention_output"]
    )
    chex.assert_trees_all_equal(out, module.apply(params, X))
    chex.assert_trees_all_equal(trace.attention_output, out)
    for head in range(2):
      own = jax.tree.map(lambda leaf, head=head: leaf[head], params["params"]["heads"])
      alone = SelfAttention(head_dim=4)
      _, expected = interpret.trace(alone, {"params": own}, X, taps=["weights"])
      assert_close(trace.weights[head], expected.weights)
    self.assertLen(trace, 2)

  def test_a_block_a_feed_forward_and_positions(self):
    whole, config = unedited()[1], model_and_params()[0].config
    (out, _), trace = interpret.trace(
      Block(config), weights_of("blocks_0"), whole.residual_before[0]
    )
    chex.assert_trees_all_equal(out, trace.residual_after)
    for tap in trace:
      assert_close(trace[tap], whole[tap][0])
    self.assertLen(trace, 12)
    module = FeedForward(config)
    out, trace = interpret.trace(module, weights_of("blocks_0", "feed_forward"), X)
    self.assertEqual(list(trace), ["mlp_hidden", "mlp_output"])
    chex.assert_trees_all_equal(out, trace.mlp_output)
    module = PositionalEncoding("sinusoidal", 8)
    out, trace = interpret.trace(module, {}, X, positions=np.arange(5)[None])
    assert_close(out, X + trace.positions)

  def test_may_be_jitted_and_has_gradients(self):
    params = weights_of("blocks_0", "attention", "heads")
    params = jax.tree.map(lambda leaf: leaf[0], params)

    def weight(x):
      run = interpret.trace(SelfAttention(head_dim=4), params, x, taps=["weights"])[1]
      return run.weights[0, 4, 0]

    slope = jax.jit(jax.grad(weight))(X)
    self.assertGreater(float(jnp.abs(slope[0, 4]).max()), 1e-4)
    chex.assert_trees_all_equal(slope[1:], jnp.zeros((2, 5, 8)))


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
    out, trace = interpret.trace(module, params, X)
    chex.assert_shape(trace.weights, (2, 2, 3, 5, 5))
    first = X + trace.attention_output[0]
    chex.assert_trees_all_equal(out, first + trace.attention_output[1])
    own = {"params": params["params"]["zebra"]}
    zebra = MultiHeadAttention(2, 4).apply(own, X)
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
    logits, trace = interpret.trace(loud, params, TOKENS, [edit])
    assert_close((logits, trace), unedited())

  def test_says_what_it_needs(self):
    module = nn.Dense(3)
    params = random_params(module, X)
    with self.assertRaisesRegex(
      InputError, "Dense has nothing to trace: must be or hold one of .*SelfAttention"
    ):
      interpret.trace(module, params, X)
    with self.assertRaisesRegex(InputError, "tap 'mlp_output' hit nothing"):
      module = SelfAttention(head_dim=4)
      params = random_params(module, X)
      interpret.trace(module, params, X, taps=["mlp_output"])
    with self.assertRaisesRegex(InputError, "edits need a GPT2: SelfAttention"):
      interpret.trace(module, params, X, [interpret.steer(VECTOR, True)])


class InsideInterceptorsTest(chex.TestCase):
  @parameterized.parameters(
    ("attend", "attention", "attention_output", True),
    ("read", "blocks_0", "residual_between", True),
    ("think", "blocks_0", "residual_after", False),
    ("mix", "heads", "head_output", False),
    ("hidden", "feed_forward", "mlp_hidden", False),
  )
  def test_the_trace_has_what_flows_on(self, method, name, site, has_cache):
    """An interceptor of the caller's doubles a step; so does an edit of that site."""
    model, params = model_and_params()

    def double(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.method_name != method or context.module.name != name:
        return out
      return (2 * out[0], *out[1:]) if has_cache else 2 * out

    with nn.intercept_methods(double):
      logits, found = interpret.trace(model, params, TOKENS)
      chex.assert_trees_all_equal(logits, model.apply(params, TOKENS))
    layers = [1, 0] if name == "blocks_0" else [1, 1]
    edit = interpret.make_edit(site, layers, 2.0, 0.0)
    expected = interpret.trace(model, params, TOKENS, [edit])
    assert_close((logits, found), expected)
    self.assertGreater(float(jnp.abs(logits - unedited()[0]).max()), 0.01)

  def test_the_interceptors_are_there_afterwards_in_their_order(self):
    model, params = model_and_params()
    seen = []

    def note(letter):
      def interceptor(call, args, kwargs, context):
        if context.method_name == "unembed":
          seen.append(letter)
        return call(*args, **kwargs)

      return interceptor

    with nn.intercept_methods(note("a")), nn.intercept_methods(note("b")):
      interpret.trace(model, params, TOKENS, taps=())
      with self.assertRaises(InputError):
        interpret.trace(model, params, TOKENS + 99)
      model.apply(params, TOKENS)
    self.assertEqual(seen, ["a", "b"] * 2)
    model.apply(params, TOKENS)
    self.assertLen(seen, 4)

"""Flash attention is the explicit one, in a single kernel where there is one."""

import functools
import re
from unittest import mock

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax.errors import InputError
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.self_attention import FlashSelfAttention, SelfAttention
from tests.close import assert_close, ROUNDINGS, sizes, walk
from tests.params import random_params, shapes_of

B, T, H, K, D = 2, 6, 3, 4, 5
INPUT = jax.ShapeDtypeStruct((B, T, D), "float32")
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
MASKS = {
  "none": None,
  "padding": np.array([[[0, 0, 1, 1, 1, 1]], [[1, 1, 1, 1, 1, 0]]], bool),
  "documents": DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :],
}


def inputs():
  return np.random.default_rng(1).normal(size=(B, T, D)).astype("f4")


def both(**changes):
  """The explicit module and the flash one; what has both names is compared."""
  changes = dict(num_heads=H, head_dim=K) | changes
  return MultiHeadAttention(**changes), MultiHeadAttention(
    **changes, head=FlashSelfAttention
  )


def out_and_gradients(module, params, mask="none"):
  """Of a loss that weighs each output differently, in params and in x."""
  return run(module)(params, inputs(), MASKS[mask])


@functools.cache
def run(module):
  """Compiled once for all masks of a shape."""
  weigh = np.random.default_rng(2).normal(size=(B, T, D)).astype("f4")

  @jax.jit
  def out_and_gradients(params, x, mask):
    def loss(params, x):
      out = module.apply(params, x, mask)
      return jnp.sum(weigh * out.astype(jnp.float32)), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return out, grads

  return out_and_gradients


class EqualTest(chex.TestCase):
  @parameterized.parameters(
    ("none", "none"), ("padding", "rotary"), ("documents", "alibi")
  )
  def test_outputs_and_gradients(self, mask, encoding):
    self.assert_equal(mask, encoding)

  @parameterized.parameters(
    *[("none", "rotary"), ("none", "alibi"), ("padding", "none"), ("padding", "alibi")],
    *[("documents", "none"), ("documents", "rotary")],
  )
  @pytest.mark.slow
  def test_so_are_the_other_pairs(self, mask, encoding):
    self.assert_equal(mask, encoding)

  def assert_equal(self, mask, encoding):
    explicit, flash = both(positional_encoding=encoding)
    params = random_params(explicit, INPUT)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      nn.unbox(shapes_of(flash, INPUT)), params
    )
    expected = out_and_gradients(explicit, params, mask)
    found = out_and_gradients(flash, params, mask)
    assert_close(found, expected, 2 * ROUNDINGS, scale=sizes(expected))

  @parameterized.parameters(
    dict(causal=False), dict(temperature=3.0), dict(num_heads=1), dict(head_dim=2)
  )
  def test_whatever_the_head(self, **changes):
    explicit, flash = both(**changes)
    params = random_params(explicit, INPUT)
    expected = out_and_gradients(explicit, params, "padding")
    found = out_and_gradients(flash, params, "padding")
    assert_close(found, expected, 2 * ROUNDINGS, scale=sizes(expected))

  @parameterized.parameters("none", "alibi")
  def test_bfloat16_is_as_near_float32_as_the_explicit_one(self, encoding):
    exact, _ = both(positional_encoding=encoding)
    explicit, flash = both(positional_encoding=encoding, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_params(exact, INPUT))
    expected = out_and_gradients(exact, params)
    # An input's, then as in tests/close.py: projections, weights, mix, projection. The
    # gradient goes there and back.
    roundings = walk(2 * (1 + 2 * 4 + 2 + 4))
    for module in (explicit, flash):
      found = out_and_gradients(module, params)
      chex.assert_type(found[0], jnp.bfloat16)
      scale = sizes(expected)
      assert_close(found, expected, roundings, scale=scale, dtype=jnp.bfloat16)

  def test_with_a_cache(self):
    explicit, flash = both()
    params, x = random_params(explicit, INPUT), inputs()
    cache = KeyValues(*np.zeros((2, H, B, T, K), "f4"))
    attend, expected = (
      jax.jit(functools.partial(module.apply, method="attend"))
      for module in (flash, explicit)
    )
    for start, end in (0, 4), (4, T):
      arguments = params, x[:, start:end], MASKS["padding"], cache, start
      out, cache = attend(*arguments)
      chex.assert_trees_all_equal((out, cache), expected(*arguments))

  def test_one_head_alone(self):
    params = random_params(SelfAttention(K), INPUT)
    found, expected = (
      jax.jit(head(K).apply)(params, inputs(), slope=0.3)
      for head in (FlashSelfAttention, SelfAttention)
    )
    assert_close(found, expected)


class RefusalTest(chex.TestCase):
  def test_dropout(self):
    _, flash = both(dropout_rate=0.1)
    with self.assertRaisesRegex(
      InputError, "dropout_rate is 0.1: must be 0 with flash"
    ):
      shapes_of(flash, INPUT)


class KernelTest(chex.TestCase):
  """What an NVIDIA GPU would get, read off the program compiled for one elsewhere."""

  def lowered(self, dtype=jnp.bfloat16, mask=None, capability="9.0", **changes):
    _, flash = both(num_heads=4, head_dim=16, dtype=dtype, **changes)
    x = jax.ShapeDtypeStruct((8, 32, 64), dtype)
    params = nn.unbox(shapes_of(flash, x))

    def loss(params, x):
      return flash.apply(params, x, mask).astype(jnp.float32).sum()

    device = mock.Mock(compute_capability=capability)
    with (
      mock.patch.object(jax, "devices", return_value=[device]),
      mock.patch.object(cudnn, "check_cudnn_version", return_value=91000),
    ):
      traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x)
      program = traced.lower(lowering_platforms=("cuda",)).as_text()
    return program.replace(r"\22", '"')

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_is_cudnns_with_heads_where_it_wants_them(self, dtype):
    program = self.lowered(dtype)
    calls = re.findall(
      r'call @__cudnn\$(\w+)\(.*"mask_type": "(\w+)".* : \((.*?)\) ->', program
    )
    self.assertEqual(
      [(name, mask) for name, mask, _ in calls],
      [("fmhaSoftmax", "CAUSAL"), ("fmhaSoftmaxBackward", "CAUSAL")],
    )
    for _, _, operands in calls:  # queries, keys and values: [B, T, H, K]
      self.assertEqual(operands.split(", ")[:3], operands.split(", ")[:1] * 3)
      self.assertTrue(operands.startswith("tensor<8x32x4x16x"), operands)
    self.assertNotIn("32x32", program)  # no scores

  @parameterized.parameters(
    dict(dtype=jnp.float32),
    dict(mask=np.ones((8, 1, 32), bool)),
    dict(positional_encoding="alibi"),
    dict(capability="7.5"),
    dict(capability="gfx942"),  # AMD
  )
  def test_is_xlas_where_cudnns_does_not_fit(self, **changes):
    self.assertNotIn("cudnn", self.lowered(**changes))

"""LayerNorm: of mean 0 and variance 1, however far from 0 its input is."""

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.layer_norm import layer_norm
from tests.close import assert_close

D = 8


def formula(x, params, epsilon):
  x = np.asarray(x, np.float64)
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  return centred / np.sqrt(variance + epsilon) * params["scale"] + params["bias"]


def random_params(rng):
  return {name: rng.normal(size=D).astype("f4") for name in ("scale", "bias")}


class LayerNormTest(chex.TestCase):
  @parameterized.parameters(1e-5, 0.5)
  def test_is_the_papers_formula(self, epsilon):
    rng = np.random.default_rng(0)
    x, params = rng.normal(1, 2, (2, 3, D)).astype("f4"), random_params(rng)
    found = jax.jit(layer_norm(epsilon).apply)({"params": params}, x)
    assert_close(found, formula(x, params, epsilon), 2 * D + 8)

  def test_large_activations_keep_their_small_differences(self):
    """Of integers, whose mean and differences are exact; their squares are not."""
    rng = np.random.default_rng(0)
    x = 2.0**13 + rng.permuted(np.tile(np.arange(D), (2, 3, 1)), axis=-1) - 3.5
    params = random_params(rng)
    found = jax.jit(layer_norm(1e-5).apply)({"params": params}, x.astype("f4"))
    assert_close(found, formula(x, params, 1e-5), 2 * D + 8)

  def test_begins_as_the_norm_alone_with_axes_named(self):
    module = layer_norm(1e-5)
    x = np.random.default_rng(0).normal(size=(2, D)).astype("f4")
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    self.assertEqual({name: p.names for name, p in params.items()}, NAMES)
    chex.assert_trees_all_equal(
      nn.unbox(params), {"scale": np.ones(D, "f4"), "bias": np.zeros(D, "f4")}
    )

  def test_dtype_is_that_of_the_result_alone(self):
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(100, 1, (2, 3, D)), jnp.bfloat16)
    params = random_params(rng)
    found = layer_norm(1e-5, "bfloat16").apply({"params": params}, x)
    chex.assert_type(found, jnp.bfloat16)
    expected = formula(x.astype(jnp.float32), params, 1e-5)
    assert_close(found, expected, 1, dtype=jnp.bfloat16)


NAMES = {"scale": ("embed",), "bias": ("embed",)}

"""A linear layer: a product and a sum, whatever the axes before it."""

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.linear import linear
from tests.close import assert_close


class LinearTest(chex.TestCase):
  @parameterized.parameters([()], [(4,)], [(2, 3)], [(2, 3, 4)])
  def test_is_a_product_and_a_sum(self, *leading):
    leading = leading[0]
    x = np.random.default_rng(0).normal(size=(*leading, 5)).astype(np.float32)
    layer = linear(7, ("embed", "mlp"), nn.initializers.normal(1.0))
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))
    kernel, bias = np.asarray(params["params"]["kernel"]), np.arange(7.0)
    params["params"]["bias"] = jnp.asarray(bias)
    y = layer.apply(params, x)
    self.assertEqual(y.shape, (*leading, 7))
    assert_close(y, x.astype(np.float64) @ kernel + bias, 5 + 1)

  def test_parameters_name_their_axes(self):
    layer = linear(3, ("embed", "mlp"), nn.initializers.ones_init())
    params = layer.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    self.assertEqual(params["kernel"].names, ("embed", "mlp"))
    self.assertEqual(params["bias"].names, ("mlp",))
    chex.assert_trees_all_equal(params["kernel"].value, jnp.ones((2, 3)))
    chex.assert_trees_all_equal(params["bias"].value, jnp.zeros(3))

  def test_dtype_is_that_of_the_product(self):
    layer = linear(3, ("embed", "mlp"), nn.initializers.ones_init(), jnp.bfloat16)
    x = jnp.ones((1, 2))
    params = layer.init(jax.random.key(0), x)
    self.assertEqual(layer.apply(params, x).dtype, jnp.bfloat16)
    self.assertEqual(nn.meta.unbox(params)["params"]["kernel"].dtype, jnp.float32)

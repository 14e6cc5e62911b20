"""A linear layer: a product and a sum, whatever the axes before it."""

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.linear import linear
from tests.close import assert_close
from tests.params import random_params, shapes_of


class LinearTest(chex.TestCase):
  @parameterized.parameters([()], [(4,)], [(2, 3)], [(2, 3, 4)])
  def test_is_a_product_and_a_sum(self, *leading):
    leading = leading[0]
    x = np.random.default_rng(0).normal(size=(*leading, 5)).astype(np.float32)
    layer = linear(7, ("embed", "mlp"), nn.initializers.normal(1.0))
    params = random_params(layer, x)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    y = jax.jit(layer.apply)(params, x)
    self.assertEqual(y.shape, (*leading, 7))
    assert_close(y, x.astype(np.float64) @ kernel + bias, 5 + 1)

  def test_parameters_name_their_axes(self):
    layer = linear(3, ("embed", "mlp"), nn.initializers.ones_init())
    params = jax.jit(layer.init)(jax.random.key(0), np.ones((1, 2), "f4"))["params"]
    self.assertEqual(params["kernel"].names, ("embed", "mlp"))
    self.assertEqual(params["bias"].names, ("mlp",))
    chex.assert_trees_all_equal(params["kernel"].value, np.ones((2, 3), "f4"))
    chex.assert_trees_all_equal(params["bias"].value, np.zeros(3, "f4"))

  def test_dtype_is_that_of_the_product(self):
    layer = linear(3, ("embed", "mlp"), nn.initializers.ones_init(), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 2), "float32")
    params = shapes_of(layer, x)
    self.assertEqual(jax.eval_shape(layer.apply, params, x).dtype, jnp.bfloat16)
    self.assertEqual(nn.unbox(params)["params"]["kernel"].dtype, jnp.float32)

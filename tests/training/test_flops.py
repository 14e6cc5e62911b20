import dataclasses
from unittest import mock

from absl.testing import parameterized
import chex
import jax

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.training import flops
from tests.params import shapes_of

SMALL = GPT2Config(
  vocab_size=11, context_length=6, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=20
)


def matrix_products(jaxpr) -> int:
  """Two operations for each number that a jaxpr's dot products multiply."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      ((contracted, _), _) = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      depth = 1
      for axis in contracted:
        depth *= left[axis]
      total += 2 * depth * equation.outvars[0].aval.size
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        total += matrix_products(inner)
  return total


class FlopsTest(chex.TestCase):
  @parameterized.parameters(
    {},
    dict(feed_forward=False),
    dict(num_heads=4, num_layers=3, mlp_dim=0),
    dict(tied_embeddings=False, positional_encoding="learned"),
  )
  def test_is_that_of_the_models_matrix_products(self, **changes):
    model = GPT2(dataclasses.replace(SMALL, **changes))
    tokens = jax.ShapeDtypeStruct((1, 6), int)
    program = jax.make_jaxpr(model.apply)(shapes_of(model), tokens)
    forward = matrix_products(program.jaxpr)
    self.assertEqual(flops.flops_per_token(model.config) * 6, 3 * forward)

  def test_peak_is_of_all_devices_or_unknown(self):
    h100 = mock.Mock(device_kind="NVIDIA H100 80GB HBM3")
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    self.assertIsNone(flops.peak_flops(half))  # this CPU's is not known
    with mock.patch.object(jax, "devices", return_value=[h100, h100]):
      self.assertEqual(flops.peak_flops(half), 2 * 989e12)
      self.assertIsNone(flops.peak_flops(SMALL))

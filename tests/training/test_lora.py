"""Adapters: W + scale A B, however the kernel and the layers are laid out."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.layer_stacking import stack_layers
from gpt2_flax.training import lora
from tests.close import assert_close

QUERY, CONTRACT = "attention/heads/query/kernel", "feed_forward/contract/kernel"
SHAPES = {QUERY: (3, 6, 2), CONTRACT: (10, 6)}  # heads, embed_dim, head_dim; F, D
RANK, SCALE = 4, 2.5
CHOSEN = (f"blocks_0/{QUERY}", f"blocks_2/{QUERY}", f"blocks_1/{CONTRACT}")


def draw(shape):
  return np.random.default_rng(math.prod(shape)).normal(size=shape).astype("f4")


def params():
  flat = {"final_norm/scale": draw((6,))}
  for layer in range(3):
    for name, shape in SHAPES.items():
      flat[f"blocks_{layer}/{name}"] = draw(shape) + layer
  return lora.nested(flat)


def adapters():
  """Those of CHOSEN, as if they had learned."""
  kernels = [(name, SHAPES[name.partition("/")[2]]) for name in CHOSEN]
  fresh = lora.new_adapters(kernels, RANK, jax.random.key(0))
  return jax.tree.map(lambda leaf: leaf + draw(leaf.shape), fresh)


class AdaptersTest(chex.TestCase):
  def test_are_gaussian_and_zero(self):
    kernels = [("a/kernel", (3, 100, 7)), ("b/kernel", (200, 30))]
    found = lora.pairs(lora.new_adapters(kernels, 50, jax.random.key(0)))
    for (name, shape), (a_IR, b_RO) in zip(kernels, found.values(), strict=True):
      size, num_out = shape[-2], math.prod(shape) // shape[-2]
      self.assertEqual((a_IR.shape, b_RO.shape), ((size, 50), (50, num_out)), name)
      np.testing.assert_array_equal(b_RO, 0)
      normal = np.sort(np.ravel(a_IR)) * math.sqrt(size)
      error = 1 / math.sqrt(len(normal))
      self.assertAlmostEqual(np.mean(normal), 0, delta=5 * error)
      self.assertAlmostEqual(np.var(normal), 1, delta=5 * error * math.sqrt(2))
      within = np.mean(np.abs(normal) < 1)  # 0.6827 of a Gaussian's, 0.5774 if uniform
      self.assertAlmostEqual(within, 0.6827, delta=5 * error * 0.466)

  def test_each_draws_its_own_and_the_same_again(self):
    kernels = [("a/kernel", (8, 6)), ("b/kernel", (8, 6))]
    one, again, other = (
      lora.pairs(lora.new_adapters(kernels, RANK, jax.random.key(seed)))
      for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, again)
    drawn = [one["a/kernel"][0], one["b/kernel"][0], other["a/kernel"][0]]
    self.assertLen({np.asarray(a_IR).tobytes() for a_IR in drawn}, 3)

  def test_change_nothing_at_first(self):
    kernels = [(f"blocks_0/{QUERY}", SHAPES[QUERY])]
    fresh = lora.new_adapters(kernels, RANK, jax.random.key(0))
    chex.assert_trees_all_equal(lora.merged(params(), fresh, SCALE), params())


class MergedTest(chex.TestCase):
  def expected(self):
    flat = lora.by_name(params())
    for name, (a_IR, b_RO) in lora.pairs(adapters()).items():
      product = SCALE * np.float64(a_IR) @ np.float64(b_RO)
      if name.endswith(QUERY):  # head h takes its head_dim columns
        product = np.stack([product[:, 2 * h : 2 * h + 2] for h in range(3)])
      flat[name] = flat[name] + product
    return lora.nested(flat)

  def test_adds_the_product_to_each_kernel_and_to_nothing_else(self):
    found = lora.merged(params(), adapters(), SCALE)
    # a sum of RANK products, a factor and a sum
    assert_close(found, self.expected(), RANK + 2, dtype=np.float32)
    before, after = lora.by_name(params()), lora.by_name(found)
    same = {k for k in before if np.array_equal(before[k], after[k])}
    self.assertEqual(same, before.keys() - set(CHOSEN))

  def test_so_it_does_where_layers_are_stacked(self):
    stacked = stack_layers(params())
    self.assertIn("blocks", stacked["params"])
    found = lora.merged(stacked, adapters(), SCALE)
    assert_close(found, stack_layers(self.expected()), RANK + 2, dtype=np.float32)

  def test_by_a_scale_of_its_own(self):
    scales = dict(zip(CHOSEN, (SCALE, 0.0, SCALE), strict=True))
    found = lora.by_name(lora.merged(params(), adapters(), scales))
    expected = lora.by_name(self.expected())
    expected[CHOSEN[1]] = lora.by_name(params())[CHOSEN[1]]
    assert_close(found, expected, RANK + 2, dtype=np.float32)

  def test_takes_part_in_a_gradient(self):
    def total(adapters):
      flat = lora.by_name(lora.merged(params(), adapters, SCALE))
      return jnp.sum(flat[CHOSEN[2]] ** 2)

    gradients = lora.pairs(jax.grad(total)(adapters()))
    a_IR, b_RO = lora.pairs(adapters())[CHOSEN[2]]
    slope = 2 * lora.by_name(self.expected())[CHOSEN[2]]  # of the sum in the kernel
    expected = SCALE * slope @ b_RO.T, SCALE * a_IR.T @ slope
    assert_close(gradients[CHOSEN[2]], expected, 2 * (RANK + 10 + 4), dtype=np.float32)
    np.testing.assert_array_equal(gradients[CHOSEN[0]][0], 0)

"""Slots of a cache, written: the same under vmap, with gradients, and in place."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.key_values import KeyValues, squeezed, written
from tests.close import assert_close

H, B, S, T, K = 3, 2, 6, 2, 4


def arrays(*axes):
  """A cache, and what goes into T slots of it, with these axes before the slots."""
  cached = np.arange(np.prod(axes) * S * K, dtype=np.float32).reshape(*axes, S, K)
  new = -1.0 - np.arange(np.prod(axes) * T * K).reshape(*axes, T, K)
  return cached, np.float32(new)


def expected(cached, new, start):
  out = cached.copy()
  out[..., start : start + T, :] = new
  return out


class WrittenTest(chex.TestCase):
  @parameterized.parameters(0, 1, 4)
  def test_those_slots_and_no_others(self, start):
    for axes in ((B,), (H, B), (H, 1), (1, 1)):
      cached, new = arrays(*axes)
      found = jax.jit(written)(cached, new, start)
      assert_close(found, expected(cached, new, start))

  def test_under_vmap(self):
    cached, new = arrays(H, B)
    wanted = expected(cached, new, 3)
    one = jax.vmap(written, (0, 0, None))
    two, turned = jax.vmap(one, (0, 0, None)), jax.vmap(written, (1, 1, None), 1)
    for write in (one, two, turned):
      assert_close(jax.jit(write)(cached, new, 3), wanted)

  def test_what_is_the_same_for_all(self):
    cached, new = arrays(H, B)
    same_cache = jax.jit(jax.vmap(written, (None, 0, None)))(cached[0], new, 1)
    same_new = jax.jit(jax.vmap(written, (0, None, None)))(cached, new[0], 1)
    for head in range(H):
      assert_close(same_cache[head], expected(cached[0], new[head], 1))
      assert_close(same_new[head], expected(cached[head], new[0], 1))

  def test_each_to_slots_of_its_own(self):
    cached, new = arrays(H, B)
    found = jax.jit(jax.vmap(written))(cached, new, np.array([4, 0, 1]))
    for head, start in enumerate((4, 0, 1)):
      assert_close(found[head], expected(cached[head], new[head], start))

  @parameterized.parameters(False, True)
  def test_gradients(self, batched):
    cached, new = arrays(H, B)
    weight = np.random.default_rng(0).normal(size=cached.shape).astype("f4")
    write = jax.vmap(written, (0, 0, None)) if batched else written

    def loss(cached, new):
      return (weight * write(cached, new, jnp.array(3)) ** 2).sum()

    slopes = jax.jit(jax.grad(loss, (0, 1)))(cached, new)
    _, forward = jax.jit(lambda *at: jax.jvp(loss, at, at))(cached, new)
    of_cached, of_new = map(np.asarray, slopes)
    whole = 2 * weight * expected(cached, new, 3)
    assert_close(of_new, whole[..., 3 : 3 + T, :])
    whole[..., 3 : 3 + T, :] = 0
    assert_close(of_cached, whole)
    assert_close(forward, (of_cached * cached).sum() + (of_new * new).sum())

  def test_a_cache_keeps_its_dtype(self):
    cached, new = arrays(B)
    half = KeyValues(jnp.bfloat16(cached), jnp.bfloat16(cached))
    longer = half.extended(jnp.asarray(new), jnp.asarray(2 * new), 3)
    assert_close(np.float32(longer.key), expected(cached, new, 3))
    assert_close(np.float32(longer.value), expected(cached, 2 * new, 3))
    self.assertEqual(longer.key.dtype, jnp.bfloat16)

  def test_squeezed(self):
    shapes = {(3, 1, 6, 4): (3, 6, 4), (1, 1, 1, 1): (1, 1), (3, 2, 1, 4): (3, 2, 1, 4)}
    for shape, wanted in shapes.items():
      self.assertEqual(squeezed(jnp.zeros(shape)), wanted)

import math

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.positional_encoding import (
  alibi_bias,
  alibi_slopes,
  PositionalEncoding,
  rotate_by_position,
  sinusoidal_positional_encoding,
)
from tests.close import assert_close
from tests.params import shapes_of

# A frequency is exp(-e): e has three roundings (a quotient, a logarithm, a product) and
# the exponential two. With the position it makes the angle: (3 e + 3) exp(-e), at most
# 3 roundings in a row, of the size of the position. Sine and cosine hand them on, and
# have two more, of size 1: together less than 3 of size 1 + position.
ANGLE = 3


def frequency(feature, embed_dim, max_period=10_000.0):
  pair = feature // 2
  return 1.0 / max_period ** (2 * pair / embed_dim)


def paper(positions, embed_dim, max_period=10_000.0):
  """Vaswani et al. (2017), section 3.5, number by number in float64."""
  positions = np.asarray(positions)
  encoding = np.empty((*positions.shape, embed_dim), np.float64)
  for index in np.ndindex(positions.shape):
    for feature in range(embed_dim):
      angle = float(positions[index]) * frequency(feature, embed_dim, max_period)
      wave = math.cos if feature % 2 else math.sin
      encoding[(*index, feature)] = wave(angle)
  return encoding


def embeddings():
  return jnp.array(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)


class SinusoidalTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @parameterized.product(
    positions=(3, [0, 1, 2, 49], [[[5, 0]], [[1, 30]]]), embed_dim=(1, 7, 16)
  )
  def test_is_the_papers_formula(self, positions, embed_dim):
    encode = self.variant(sinusoidal_positional_encoding, static_argnums=1)
    encoding = encode(jnp.array(positions), embed_dim)
    chex.assert_shape(encoding, (*np.shape(positions), embed_dim))
    chex.assert_type(encoding, jnp.float32)
    assert_close(
      encoding, paper(positions, embed_dim), ANGLE, scale=1 + np.max(positions)
    )

  @chex.variants(with_jit=True)
  @parameterized.parameters(1_000, 100_000)
  def test_far_out_positions(self, far):
    positions = far + np.arange(20)
    encode = self.variant(sinusoidal_positional_encoding, static_argnums=1)
    encoding = encode(positions, 15)
    assert_close(encoding, paper(positions, 15), ANGLE, scale=1 + np.max(positions))

  def test_max_period(self):
    encoding = sinusoidal_positional_encoding(jnp.arange(50), 8, 100.0)
    assert_close(encoding, paper(np.arange(50), 8, 100.0), ANGLE, scale=50)

  @parameterized.parameters(1, 7, 100)
  def test_a_shift_rotates_each_pair(self, offset):
    embed_dim = 12
    positions = jnp.arange(40)
    pairs_shape = (len(positions), embed_dim // 2, 2)
    here = sinusoidal_positional_encoding(positions, embed_dim)
    there = sinusoidal_positional_encoding(positions + offset, embed_dim)
    # One matrix a pair, the same for all positions.
    angles = [offset * frequency(2 * pair, embed_dim) for pair in range(embed_dim // 2)]
    rotations = np.array(
      [[[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] for a in angles]
    )
    rotated = np.einsum("pij,tpj->tpi", rotations, here.reshape(pairs_shape))
    # turned, an error in each of a pair is the larger by up to the root of 2
    roundings = (1 + math.sqrt(2)) * ANGLE
    assert_close(there.reshape(pairs_shape), rotated, roundings, scale=40 + offset)


class RotaryTest(chex.TestCase):
  """Su et al. (2021), section 3.2."""

  @chex.variants(with_jit=True)
  @parameterized.parameters(2, 6)
  def test_turns_each_pair_as_a_complex_number(self, head_dim):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, head_dim)).astype("f4")
    positions = np.array([0, 1, 7, 300])
    turned = self.variant(rotate_by_position)(x, positions)
    expected = np.empty(x.shape)
    for t, position in enumerate(positions):
      for pair in range(head_dim // 2):
        angle = position * frequency(2 * pair, head_dim)
        numbers = x[:, t, 2 * pair] + 1j * x[:, t, 2 * pair + 1]
        numbers = numbers * complex(math.cos(angle), math.sin(angle))
        expected[:, t, 2 * pair] = numbers.real
        expected[:, t, 2 * pair + 1] = numbers.imag
    # of an angle, a product and a sum; and a pair has a length
    length = math.sqrt(2) * abs(x).max()
    for t, position in enumerate(positions):
      scale = length * (1 + position)
      assert_close(turned[:, t], expected[:, t], ANGLE + 2, scale=scale)
    chex.assert_trees_all_equal(turned[:, 0], x[:, 0])

  def test_dot_products_know_the_distance_only(self):
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, 8)).astype("f4")

    def product(t, s):
      turned_query = rotate_by_position(query, jnp.array([t]))
      return float(jnp.vdot(turned_query, rotate_by_position(key, jnp.array([s]))))

    def products_from(start):
      return np.array([product(start + distance, start) for distance in range(6)], "f4")

    products = products_from(3)
    lengths = np.linalg.norm(query) * np.linalg.norm(key)
    for start in (0, 50, 1000):
      scale = lengths * (9 + start)  # one more than any position here
      # a query and a key, on both ways
      assert_close(products_from(start), products, 4 * (ANGLE + 2), scale=scale)
    self.assertGreater(np.std(products), 0.1)
    self.assertGreater(abs(product(5, 3) - product(3, 5)), 0.1)  # and its sign

  def test_bfloat16_is_turned_in_float32(self):
    x = np.random.default_rng(2).normal(size=(1, 3, 4)).astype(jnp.bfloat16)
    positions = np.array([1000, 1001, 1002])  # bfloat16 knows neither 1001 nor 1002
    turned = rotate_by_position(jnp.asarray(x), positions)
    chex.assert_type(turned, jnp.bfloat16)
    exact = rotate_by_position(x.astype("f4"), positions).astype(jnp.bfloat16)
    chex.assert_trees_all_equal(turned, exact)

  def test_refuses_an_odd_head_dim(self):
    with self.assertRaisesRegex(InputError, "head_dim is 3: .* even"):
      rotate_by_position(jnp.zeros((1, 2, 3)), jnp.arange(2))


def close_powers(powers, exponents):
  """Of 2, the least 2^-8: (3 e + 2) / ln 2 roundings of an exponent e / ln 2."""
  assert_close(np.log2(powers, dtype="f8"), exponents, 4, scale=8, dtype=np.float32)


class AlibiTest(chex.TestCase):
  """Press et al. (2022), section 3."""

  @parameterized.parameters(
    (1, [2**-8]),
    (2, [2**-4, 2**-8]),
    (3, [2**-4, 2**-8, 2**-2]),
    (4, [2**-2, 2**-4, 2**-6, 2**-8]),
    (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
  )
  def test_slopes(self, num_heads, expected):
    slopes = alibi_slopes(num_heads)
    chex.assert_type(slopes, jnp.float32)
    close_powers(slopes, np.log2(expected))

  @parameterized.parameters(5, 12, 16, 25)
  def test_no_two_heads_have_the_same_slope(self, num_heads):
    slopes = alibi_slopes(num_heads)
    self.assertLen(np.unique(slopes), num_heads)
    close_powers(slopes.min(), -8.0)
    self.assertLess(slopes.max(), 1)

  @chex.variants(with_jit=True, without_jit=True)
  def test_bias_falls_with_distance(self):
    bias = self.variant(alibi_bias)(0.5, jnp.array([2, 3]), jnp.arange(5))
    expected = np.array([[[-1, -0.5, 0, -0.5, -1], [-1.5, -1, -0.5, 0, -0.5]]], "f4")
    chex.assert_trees_all_equal(bias, expected)


class PositionalEncodingTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @parameterized.parameters(
    (None,), ([[0, 1, 2, 3, 4]],), ([[7, 3, 3, 0, 1], [0, 1, 0, 1, 2]],)
  )
  def test_adds_the_sinusoid(self, positions):
    x = embeddings()
    given = None if positions is None else jnp.array(positions)
    module = PositionalEncoding("sinusoidal")
    self.assertEmpty(shapes_of(module, x))
    out = self.variant(module.apply)({}, x, given)
    encoding = paper([[0, 1, 2, 3, 4]] if positions is None else positions, 6)
    scale = 1 + 7 + abs(x).max()  # of the position and of the sum
    assert_close(out, np.asarray(x) + encoding, ANGLE + 1, scale=scale)

  @chex.variants(with_jit=True)
  @parameterized.parameters(
    (None,), ([[0, 1, 2, 3, 4]],), ([[7, 3, 3, 0, 1], [0, 1, 0, 1, 2]],)
  )
  def test_adds_the_learned_vector(self, positions):
    x = embeddings()
    given = None if positions is None else jnp.array(positions)
    module = PositionalEncoding("learned", context_length=8)
    table = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    shapes = shapes_of(module, x)
    params = jax.tree.map(lambda _: jnp.asarray(table), shapes)
    chex.assert_trees_all_equal_shapes(params, shapes)
    out = self.variant(module.apply)(params, x, given)
    rows = np.array([[0, 1, 2, 3, 4]] if positions is None else positions)
    assert_close(out, np.asarray(x) + table[rows], 2)

  @chex.variants(with_jit=True)
  @parameterized.parameters("rotary", "alibi", "none")
  def test_adds_nothing(self, kind):
    x = embeddings()
    module = PositionalEncoding(kind)
    self.assertEmpty(shapes_of(module, x))
    out = self.variant(module.apply)({}, x, jnp.array([[4, 3, 2, 1, 0]]))
    chex.assert_trees_all_equal(out, x)

  @parameterized.parameters("sinusoidal", "learned", "rotary", "alibi", "none")
  def test_keeps_the_embeddings_dtype(self, kind):
    x = embeddings().astype(jnp.bfloat16)
    init = PositionalEncoding(kind).init_with_output
    out, params = jax.eval_shape(init, jax.random.key(1), x)
    chex.assert_type(out, jnp.bfloat16)
    for leaf in jax.tree.leaves(params):
      chex.assert_type(leaf, jnp.float32)

  @parameterized.product(x=(jnp.float32, jnp.bfloat16), dtype=("float32", "bfloat16"))
  def test_dtype_is_that_of_the_result(self, x, dtype):
    apply = PositionalEncoding("sinusoidal", dtype=dtype).apply
    out = jax.eval_shape(apply, {}, embeddings().astype(x))
    chex.assert_type(out, jnp.dtype(dtype))

  @parameterized.parameters(
    ("sinusoid", "sinusoidal"), ("learnt", "learned"), ("None", "none")
  )
  def test_refuses_an_unknown_kind_and_names_the_nearest(self, kind, nearest):
    with self.assertRaisesRegex(InputError, f"'{kind}': did you mean '{nearest}'"):
      PositionalEncoding(kind).apply({}, embeddings())

  def test_refuses_embeddings_without_a_batch_axis(self):
    with self.assertRaisesRegex(AssertionError, "rank"):
      PositionalEncoding().apply({}, embeddings()[0])

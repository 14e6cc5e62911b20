"""The comparison that other tests rely on: what it lets pass, and what it does not."""

from absl.testing import parameterized
import chex
import jax.numpy as jnp
import numpy as np

from tests.close import assert_close, ROUNDINGS, sizes, walk

UNITS = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8}


class CloseTest(chex.TestCase):
  def assert_apart(self, *args, says="", **kwargs):
    with self.assertRaises(AssertionError) as raised:
      assert_close(*args, **kwargs)
    self.assertIn(says, str(raised.exception))

  @parameterized.product(dtype=tuple(UNITS), roundings=(1, ROUNDINGS), sign=(1, -1))
  def test_so_many_roundings_and_not_one_more(self, dtype, roundings, sign):
    expected = np.array([[1.0, -8.0], [0.0, 2.0]])
    for places, close in ((roundings, True), (roundings + 1, False)):
      found = expected.copy()
      found[1, 0] += sign * places * 8 * UNITS[dtype]  # of the largest, anywhere
      if close:
        assert_close(found, expected, roundings, dtype=dtype)
      else:
        self.assert_apart(found, expected, roundings, dtype=dtype)

  def test_one_number_of_many_is_enough(self):
    expected = np.ones((100, 100), "f4")
    found = expected.copy()
    found[70, 3] += 1e-3
    self.assert_apart(found, expected, says="off by 0.001 at [70, 3]")
    self.assert_apart(expected, found, says="off by 0.001 at [70, 3]")

  def test_each_array_has_its_own_size(self):
    expected = {"large": np.full(2, 1e6, "f4"), "small": np.ones(2, "f4")}
    found = {"large": np.full(2, 1e6 + 1, "f4"), "small": np.array([1, 1.1], "f4")}
    self.assert_apart(found, expected, says="['small'] is off by 0.1 at [1]")
    assert_close(found["large"], expected["large"])

  def test_says_which_is_how_far_off_and_what_was_allowed(self):
    expected = [np.zeros(3, "f4"), {"kernel": np.array([[2, -4]], "f4")}]
    found = [np.zeros(3, "f4"), {"kernel": np.array([[2, -5]], "f4")}]
    says = (
      "[1]['kernel'] is off by 1 at [0, 1], -5.0 for -4.0: at most 2.38e-06,"
      " which is 10 roundings of float32 at the size of 4"
    )
    with self.assertRaises(AssertionError) as raised:
      assert_close(found, expected, 10)
    self.assertEqual(str(raised.exception), says)

  def test_scale_is_the_size_of_the_parts(self):
    parts = np.array([1000.0, -1000.0], "f4")
    found, expected = {"a": np.float32(2e-3)}, {"a": np.float32(1e-3)}
    self.assert_apart(found, expected)
    for scale in (1000.0, parts, {"a": parts}):
      assert_close(found, expected, scale=scale)
      self.assert_apart(found, expected, 8, scale=scale, says="at the size of 1e+03")
    self.assert_apart(found, expected, scale=1.0)  # for less too

  def test_scales_may_differ(self):
    zeros, off = {"a": 0.0, "b": 0.0}, {"a": 1e-9, "b": 1e-9}
    assert_close(off, zeros, scale={"a": 1e6, "b": 1e6})
    assert_close(off, zeros, scale=1e6)  # for both
    self.assert_apart(off, zeros, scale={"a": 1e6, "b": 1.0}, says="['b'] is off")
    self.assert_apart(off, zeros, scale=[1.0, 1.0], says="scale: must be")

  def test_zero_is_zero(self):
    zeros = np.zeros(3, "f4")
    assert_close(zeros, -zeros)
    self.assert_apart(np.array([0, 1e-30, 0], "f4"), zeros)
    assert_close(np.array([0, 1e-30, 0], "f4"), zeros, scale=1.0)
    assert_close(np.zeros((0, 2)), np.zeros((0, 2)))

  @parameterized.parameters(
    (np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf), (-np.inf, 1.0), (np.nan, np.inf)
  )
  def test_what_is_not_finite_must_be_the_same(self, found, expected):
    self.assert_apart(np.array([1.0, found]), np.array([1.0, expected]), says="at [1]")
    self.assert_apart(np.array([0.0, found]), np.array([0.0, expected]), scale=1e9)

  def test_what_is_not_finite_has_no_part_in_the_size(self):
    expected = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert_close(expected, expected)
    self.assert_apart(expected + np.array([0, 0, 0, 1e-3]), expected, says="at [3]")

  @parameterized.parameters(
    ([1.0], (1.0,), "PyTreeDef"),
    ({"a": 1.0}, {"b": 1.0}, "PyTreeDef"),
    ([1.0, None], [1.0, 2.0], "PyTreeDef"),
    (np.ones(3), np.ones((3, 1)), "has shape (3,): must be (3, 1)"),
    (np.ones(3), 1.0, "has shape (3,): must be ()"),
    (np.ones(3, int), np.ones(3), "is int64: must be a kind of float64"),
    (np.ones(3), np.ones(3, bool), "is float64: must be a kind of bool"),
    (np.ones(3, bool), np.ones(3, int), "is bool: must be a kind of int64"),
    (np.array([10**6]), np.array([10**6 + 1]), "is [1000000]: must be [1000001]"),
  )
  def test_structure_shape_and_kind_are_compared_too(self, found, expected, says):
    self.assert_apart(found, expected, says=says)

  def test_integers_of_any_width_are_equal_or_not(self):
    assert_close(np.array([1, 2], np.int32), np.array([1, 2], np.int64))
    assert_close(np.array([True]), np.array([True]))

  def test_float64_is_exact_where_both_are(self):
    found, expected = 1.0 + 1e-9, 1.0
    self.assert_apart(found, expected, says="of float64")
    assert_close(found, expected, dtype=np.float32)
    assert_close(np.float32(found), expected)
    assert_close(found, np.float32(expected))

  def test_a_narrower_dtype_must_be_named(self):
    half, whole = jnp.ones(3, jnp.bfloat16), np.ones(3, "f4")
    says = "is bfloat16: narrower than float32"
    self.assert_apart(half, whole, says=says)
    self.assert_apart(whole, half, says=says)
    self.assert_apart(half, half, says=says)
    assert_close(half, whole, dtype=jnp.bfloat16)
    self.assert_apart(whole, whole, dtype=np.float64, says="is float32: narrower")

  def test_the_keys_bias_is_measured_by_the_querys(self):
    heads = {
      name: {"kernel": np.full(2, size, "f4"), "bias": np.full(2, size, "f4")}
      for name, size in (("query", 1.0), ("key", 1e-9), ("value", 2.0))
    }
    found = sizes({"heads": heads, "bias": np.ones(3)})
    expected = {
      "query": heads["query"],
      "key": {"kernel": heads["key"]["kernel"], "bias": heads["query"]["bias"]},
      "value": heads["value"],
    }
    chex.assert_trees_all_equal(found, {"heads": expected, "bias": np.ones(3)})


class WalkTest(chex.TestCase):
  def test_few_all_count_and_many_are_a_walk(self):
    self.assertEqual([walk(n) for n in (1, 36, 100, 10_000)], [1, 36, 60, 600])

  def test_nothing_is_asked_of_the_default_that_is_not_derived(self):
    self.assertBetween(ROUNDINGS, walk(2 * 621), 2 * walk(2 * 621))

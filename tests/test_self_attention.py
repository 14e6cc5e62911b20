import functools
import itertools
import math
import re

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.self_attention import SelfAttention
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params

B, T, D, K = 2, 6, 5, 4
INPUT = jax.ShapeDtypeStruct((B, T, D), "float32")
SUM_OF_WEIGHTS = (T + 3) + T  # roundings of a softmax, and of the sum of its row
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
MASKS = {
  "none": None,
  "shared": np.tril(np.ones((1, T, T), bool), k=1),
  "padding": np.array([[[0, 0, 1, 1, 1, 1]], [[1, 1, 1, 1, 1, 0]]], bool),
  "documents": DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :],
}


def inputs():
  return np.random.default_rng(1).normal(size=(B, T, D)).astype("f4")


def reference(params, x, mask, causal, temperature=1.0):
  """softmax(Q K^T / sqrt(K)) V in float64, for each query and each key in turn."""
  x = np.asarray(x, np.float64)

  def project(name):
    p = params["params"][name]
    return x @ p["kernel"].astype(np.float64) + p["bias"].astype(np.float64)

  query, key, value = project("query"), project("key"), project("value")
  seen = np.ones((B, T, T), bool) if mask is None else np.broadcast_to(mask, (B, T, T))
  out = np.zeros((B, T, K))
  for b in range(B):
    for t in range(T):
      keys = [s for s in range(T) if seen[b, t, s] and (s <= t or not causal)]
      scores = [
        sum(query[b, t, k] * key[b, s, k] for k in range(K)) / math.sqrt(K)
        for s in keys
      ]
      scores = [score / temperature for score in scores]
      total = sum(math.exp(score) for score in scores)
      for s, score in zip(keys, scores, strict=True):
        out[b, t] += math.exp(score) / total * value[b, s]
  return out


class SelfAttentionTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @parameterized.product(causal=(True, False), mask=tuple(MASKS))
  def test_is_the_papers_formula(self, causal, mask):
    module = SelfAttention(K, causal=causal)
    params = random_params(module, INPUT)
    out = self.variant(module.apply)(params, inputs(), MASKS[mask])
    chex.assert_shape(out, (B, T, K))
    assert_close(out, reference(params, inputs(), MASKS[mask], causal))

  def test_temperature_divides_the_scores(self):
    module = SelfAttention(K, temperature=3.0)
    params = random_params(module, INPUT)
    assert_close(
      jax.jit(module.apply)(params, inputs()),
      reference(params, inputs(), None, True, temperature=3.0),
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_rows_of_weights_sum_to_one_or_to_zero(self):
    allowed = np.tril(np.ones((1, T, T), bool)) & MASKS["padding"]
    scores = np.random.default_rng(2).normal(0, 3, (B, T, T)).astype("f4")
    weights = self.variant(
      lambda *args: SelfAttention(K).apply({}, *args, method="weights")
    )(scores, allowed)
    self.assertGreaterEqual(weights.min(), 0)
    chex.assert_trees_all_equal(np.asarray(weights) > 0, allowed)
    assert_close(weights.sum(-1), allowed.any(-1).astype("f4"), SUM_OF_WEIGHTS)
    self.assertEqual((~allowed.any(-1)).sum(), 2)  # both kinds of row are there

  @chex.variants(with_jit=True)
  def test_scores_of_any_size_are_stable(self):
    low = -1e30  # and yet no score so low as not to count
    scores = [[1e30, 1e30, -1e30], [1e4, 1e4 + 1, 0.0], [low, low, 2 * low]]
    scores = np.array([[*scores, [low, low, 0.0]]], "f4")
    allowed = np.ones((1, 4, 3), bool)
    allowed[0, 3, 2] = False
    weights = self.variant(
      lambda *args: SelfAttention(K).apply({}, *args, method="weights")
    )(scores, allowed)
    e = 1 / (1 + math.e)
    # the 3 keys of a softmax, and the expected value is rounded once
    expected = [[0.5, 0.5, 0], [e, 1 - e, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    assert_close(weights, np.array([expected], "f4"), 3 + 3 + 1)

  def test_a_row_with_nothing_to_attend_to_is_zero_and_teaches_nothing(self):
    module = SelfAttention(K)
    params, x = random_params(module, INPUT), inputs()
    row = 3
    everything = np.ones((1, T, T), bool)
    blind = everything.copy()
    blind[:, row] = False
    target = np.random.default_rng(3).normal(size=(B, T, K)).astype("f4")

    @jax.jit
    def gradient(mask, target):
      def loss(params, x):
        return jnp.sum(target * module.apply(params, x, mask))

      return jax.grad(loss, argnums=(0, 1))(params, x)

    with jax.debug_nans(True):  # none on the way either
      out = module.apply(params, x, blind)
    chex.assert_trees_all_equal(np.asarray(out)[:, row], np.zeros((B, K), "f4"))
    found = gradient(blind, target)
    chex.assert_tree_all_finite(found)
    others = target.copy()
    others[:, row] = 0
    expected = gradient(everything, others)
    assert_close(found, expected, 2 * ROUNDINGS, scale=sizes(expected))
    nothing = gradient(~everything, target)
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, nothing))

  def test_a_score_of_minus_infinity_is_a_key_that_is_not_seen(self):
    allowed = np.ones((1, 1, 1), bool)
    scores = np.random.default_rng(2).normal(0, 3, (B, T, T)).astype("f4")
    scores[:, 3], scores[:, :, 4] = -np.inf, -np.inf  # a whole row, and one key
    apply = functools.partial(SelfAttention(K).apply, {}, method="weights")

    def total(scores):
      weights = apply(scores, allowed)
      return jnp.sum(weights * jnp.arange(T)[None, None]), weights

    run = jax.jit(jax.grad(total, has_aux=True))
    with jax.debug_nans(True):
      gradient, weights = run(scores)
    chex.assert_trees_all_equal(np.asarray(weights) > 0, np.isfinite(scores))
    expected = (np.arange(T) != 3).astype("f4")[None].repeat(B, 0)
    assert_close(np.asarray(weights).sum(-1), expected, SUM_OF_WEIGHTS)
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_equal(np.asarray(gradient) != 0, np.isfinite(scores))
    nothing = np.zeros((B, T, T), "f4")
    chex.assert_trees_all_equal(run(nothing - np.inf), (nothing, nothing))

  @parameterized.parameters(True, False)
  def test_a_mask_that_is_not_bool_or_does_not_fit_is_refused(self, causal):
    module = SelfAttention(K, causal=causal)
    params = random_params(module, INPUT)
    additive = np.where(MASKS["padding"], 0.0, -np.inf).astype("f4")
    apply = functools.partial(jax.eval_shape, module.apply, params, inputs())
    for mask in (additive, MASKS["padding"].astype("i4"), np.zeros((1, T, T), "f4")):
      with self.assertRaisesRegex(InputError, f"mask is of {mask.dtype}: .* bool"):
        apply(mask)
    for shape in (
      (B, T - 1, T),
      (B, T + 1, T),
      (B, T, 1 + T),
      (B + 1, 1, T),
      (1, 1, 1, 1),
    ):
      message = f"mask has shape {list(shape)}: must be broadcastable to [B, T, S] ="
      with self.assertRaisesRegex(InputError, re.escape(f"{message} {[B, T, T]}")):
        apply(np.ones(shape, bool))

  def test_a_mask_may_leave_axes_out(self):
    module = SelfAttention(K)
    params = random_params(module, INPUT)
    apply = jax.jit(module.apply)
    for mask in (np.arange(T) > 0, np.tri(T, dtype=bool).T | np.eye(T, dtype=bool)):
      full = np.broadcast_to(mask, (B, T, T))
      found = apply(params, inputs(), mask)
      chex.assert_trees_all_equal(found, apply(params, inputs(), full))
      assert_close(found, reference(params, inputs(), full, True))

  def test_kernels_begin_as_kernel_init_says(self):
    module = SelfAttention(K, kernel_init=nn.initializers.ones_init())
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), inputs()))["params"]
    self.assertEqual(params.keys(), {"query", "key", "value"})
    for projection in params.values():
      chex.assert_trees_all_equal(projection["kernel"], np.ones((D, K), "f4"))

  @parameterized.parameters(True, False)
  def test_causality_by_gradient(self, causal):
    module = SelfAttention(K, causal=causal)
    params = random_params(module, INPUT)
    gradient = jax.jit(jax.jacrev(lambda x: module.apply(params, x).sum(axis=(0, 2))))
    reached_TS = np.abs(gradient(inputs())).max(axis=(1, 3)) > 0
    chex.assert_trees_all_equal(reached_TS, np.tri(T, dtype=bool) | (not causal))

  @chex.variants(with_jit=True)
  def test_pieces_through_the_cache_equal_the_whole(self):
    module = SelfAttention(K)
    params, x = random_params(module, INPUT), inputs()
    num_slots = T + 2
    mask = np.pad(MASKS["padding"], ((0, 0), (0, 0), (0, 2)), constant_values=True)
    apply = self.variant(functools.partial(module.apply, method="attend"))
    cache = KeyValues(*np.zeros((2, B, num_slots, K), "f4"))
    pieces = []
    for start, end in itertools.pairwise([0, 1, 4, T]):
      piece, cache = apply(params, x[:, start:end], mask, cache, start)
      pieces.append(piece)
    whole = jax.jit(module.apply)(params, x, MASKS["padding"])
    assert_close(np.concatenate(pieces, axis=1), whole)
    project = jax.jit(functools.partial(module.apply, method="project"))
    _, key, value = project(params, x)
    assert_close(
      cache,
      KeyValues(*(np.pad(a, ((0, 0), (0, 2), (0, 0))) for a in (key, value))),
      2 * (D + 1),
    )

  @parameterized.parameters(dict(rotary=True), dict(slope=0.3))
  def test_relative_positions_know_the_distance_only(self, rotary=False, slope=None):
    """Alike tokens: what differs in the weights is where they stand."""
    module = SelfAttention(K, rotary=rotary, causal=False)
    params = random_params(module, INPUT)
    x = inputs()[:1, :1].repeat(T, axis=1)
    seen = {}

    def capture(call, args, kwargs, context):
      out = call(*args, **kwargs)
      if context.method_name == "weights":
        seen["scores"] = np.asarray(args[0])
        seen["log_weights_TS"] = np.log(np.asarray(out[0]))
      return out

    with nn.intercept_methods(capture):
      module.apply(params, x, slope=slope)
    # The softmax adds a constant to each row, so each is compared with its diagonal.
    scores_TS = seen["log_weights_TS"] - np.diag(seen["log_weights_TS"])[:, None]
    close = functools.partial(assert_close, scale=seen["scores"])
    close(scores_TS[1:, 1:], scores_TS[:-1, :-1])
    if slope:
      close(scores_TS[-1], -slope * np.arange(T)[::-1].astype("f4"))
    self.assertGreater(np.std(scores_TS[-1]), 0.05)

  @parameterized.parameters(dict(rotary=True), dict(slope=0.3))
  def test_pieces_of_relative_positions_equal_the_whole(self, rotary=False, slope=None):
    module = SelfAttention(K, rotary=rotary)
    params, x = random_params(module, INPUT), inputs()
    whole = jax.jit(module.apply)(params, x, slope=slope)
    plain = jax.jit(SelfAttention(K).apply)(params, x)
    self.assertGreater(np.abs(np.subtract(whole, plain)).max(), 0.05)
    # From slot 3 on, behind three of left padding.
    mask = np.arange(T + 3)[None, None] >= 3
    cache = KeyValues(*np.zeros((2, B, T + 3, K), "f4"))
    attend = jax.jit(functools.partial(module.apply, method="attend"))
    pieces = []
    for start, end in itertools.pairwise([0, 1, 4, T]):
      piece, cache = attend(params, x[:, start:end], mask, cache, start + 3, slope)
      pieces.append(piece)
    assert_close(np.concatenate(pieces, axis=1), whole)

  def test_start_means_nothing_without_a_cache(self):
    module = SelfAttention(K)
    params, x = random_params(module, INPUT), inputs()
    attend = jax.jit(functools.partial(module.apply, start=2, method="attend"))
    out, cache = attend(params, x)
    chex.assert_trees_all_equal(out, jax.jit(module.apply)(params, x))
    self.assertIsNone(cache)

  @parameterized.parameters((3, 3, 0), (2, 6, 3), (1, 4, 0), (4, 4, 2))
  def test_visible(self, num_queries, num_keys, start):
    slots = start + np.arange(num_queries), np.arange(num_keys)
    for causal in (True, False):
      expected = [
        [s <= start + t or not causal for s in range(num_keys)]
        for t in range(num_queries)
      ]
      chex.assert_trees_all_equal(
        SelfAttention(K, causal=causal).apply({}, *slots, method="visible"),
        np.array([expected]),
      )

  def test_softmax_is_in_float32_for_bfloat16_too(self):
    module = SelfAttention(K, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_params(module, INPUT))
    out, state = module.apply(
      params,
      inputs(),
      capture_intermediates=lambda _, method: method in ("scores", "weights"),
      mutable=["intermediates"],
    )
    chex.assert_type(out, jnp.bfloat16)
    (scores,), (weights,) = (
      state["intermediates"][name] for name in ("scores", "weights")
    )
    chex.assert_type([scores, weights], jnp.float32)
    assert_close(weights.sum(-1), np.ones((B, T), "f4"), SUM_OF_WEIGHTS)
    query, key, _ = module.apply(params, inputs(), method="project")
    chex.assert_type([query, key], jnp.bfloat16)
    # Exact up to float32's rounding of the products, whatever cancels.
    query, key = (np.asarray(a, np.float64) for a in (query, key))
    products = np.einsum("btk,bsk->bts", query, key) / math.sqrt(K)
    parts = np.einsum("btk,bsk->bts", abs(query), abs(key)) / math.sqrt(K)
    assert_close(scores, products, K + 1, scale=parts)
    # bfloat16's: of an input, of projections for a score, of the weights and the mix.
    expected = reference(params, inputs(), None, True)
    assert_close(out, expected, 1 + 2 * 4 + 2, dtype=jnp.bfloat16)

  def test_without_mask_it_is_permutation_equivariant(self):
    module = SelfAttention(K, causal=False)
    params, x = random_params(module, INPUT), inputs()
    order = np.array([3, 0, 5, 1, 4, 2])
    apply = jax.jit(module.apply)
    assert_close(apply(params, x[:, order]), np.asarray(apply(params, x))[:, order])

  def test_dropout_needs_an_rng_and_keeps_the_mean(self):
    module = SelfAttention(K, dropout_rate=0.25)
    params = random_params(module, INPUT)
    x = inputs()[:1].repeat(1000, axis=0)
    apply = jax.jit(module.apply)
    quiet = np.asarray(jax.jit(SelfAttention(K).apply)(params, x))
    chex.assert_trees_all_equal(apply(params, x), quiet)
    drawn = np.asarray(apply(params, x, rngs={"dropout": jax.random.key(4)}))
    self.assertGreater(np.abs(drawn[0] - drawn[1]).max(), 0.1)
    five_standard_errors = 5 * drawn.std(0) / math.sqrt(1000)
    self.assertTrue((np.abs(drawn.mean(0) - quiet[0]) <= five_standard_errors).all())

  def test_dropout_of_rate_zero_is_none(self):
    module = SelfAttention(K)
    params, x = random_params(module, INPUT), inputs()
    apply = jax.jit(module.apply)
    chex.assert_trees_all_equal(
      apply(params, x, rngs={"dropout": jax.random.key(4)}), apply(params, x)
    )

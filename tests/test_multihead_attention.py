import functools
import itertools
import re

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.layers.key_values import KeyValues
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.self_attention import FlashSelfAttention, SelfAttention
from tests.close import assert_close
from tests.params import random_params, shapes_of

B, T, H, K, D = 2, 6, 3, 4, 5
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
MASKS = {
  "none": None,
  "padding": np.array([[[1, 1, 1, 1, 0, 0]], [[1, 1, 0, 1, 1, 1]]], bool),
  "documents": DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :],
}


def inputs(embed_dim=D):
  return np.random.default_rng(1).normal(size=(B, T, embed_dim)).astype("f4")


def head_params(params, head):
  return {"params": jax.tree.map(lambda leaf: leaf[head], params["params"]["heads"])}


class LadderTest(chex.TestCase):
  """Each rung equals the one below it."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_one_head_is_single_head_attention_and_a_projection(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=1, head_dim=K)
    params = random_params(module, x)

    def one_head(params, x):
      out_BTK = SelfAttention(K).apply(head_params(params, 0), x)
      return nn.Dense(D).apply({"params": params["params"]["output"]}, out_BTK)

    assert_close(
      self.variant(module.apply)(params, x), self.variant(one_head)(params, x)
    )

  @chex.variants(with_jit=True)
  @parameterized.parameters((True, "none"), (True, "documents"), (False, "padding"))
  def test_many_heads_are_single_heads_side_by_side(self, causal, mask):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K, causal=causal)
    params = random_params(module, x)
    output = params["params"]["output"]

    def side_by_side(params, x, mask):
      heads = [
        SelfAttention(K, causal=causal).apply(head_params(params, head), x, mask)
        for head in range(H)
      ]
      return jnp.concatenate(heads, axis=-1)

    concatenated = self.variant(side_by_side)(params, x, MASKS[mask])
    assert_close(
      self.variant(module.apply)(params, x, MASKS[mask]),
      np.asarray(concatenated) @ output["kernel"] + output["bias"][None, None],
    )

  @parameterized.product(causal=(True, False), mask=("none", "padding"))
  def test_equals_flax(self, causal, mask):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K, causal=causal)
    params = random_params(module, x)
    ours = params["params"]
    theirs = {
      name: {
        "kernel": ours["heads"][name]["kernel"].transpose(1, 0, 2),  # [D, H, K]
        "bias": ours["heads"][name]["bias"],  # [H, K]
      }
      for name in ("query", "key", "value")
    }
    theirs["out"] = {
      "kernel": ours["output"]["kernel"].reshape(H, K, D),
      "bias": ours["output"]["bias"],
    }
    allowed = np.tri(T, dtype=bool)[None, None] if causal else None
    if mask != "none":
      allowed = nn.combine_masks(allowed, MASKS[mask][:, None], dtype=bool)
    flax_module = nn.MultiHeadDotProductAttention(num_heads=H, qkv_features=H * K)
    assert_close(
      jax.jit(module.apply)(params, x, MASKS[mask]),
      jax.jit(flax_module.apply)({"params": theirs}, x, mask=allowed),
    )


class MultiHeadAttentionTest(chex.TestCase):
  @parameterized.parameters(1, 3, 4)
  def test_each_head_has_its_own_slope(self, num_heads):
    x = inputs()
    module = MultiHeadAttention(num_heads, K, positional_encoding="alibi")
    params = random_params(module, x)
    slopes = {1: [2**-8], 3: [2**-4, 2**-8, 2**-2], 4: [0.25, 2**-4, 2**-6, 2**-8]}
    one_head = jax.jit(SelfAttention(K).apply)
    heads = [
      one_head(head_params(params, head), x, slope=slope)
      for head, slope in enumerate(slopes[num_heads])
    ]
    output = params["params"]["output"]
    expected = np.concatenate(heads, -1) @ output["kernel"] + output["bias"]
    assert_close(jax.jit(module.apply)(params, x), expected)

  def test_refuses_an_unknown_positional_encoding(self):
    with self.assertRaisesRegex(InputError, "'rotery': did you mean 'rotary'"):
      shapes_of(MultiHeadAttention(H, K, positional_encoding="rotery"), inputs())

  def test_parameters_have_a_named_heads_axis(self):
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    boxed = shapes_of(module, inputs())
    kernel, bias = (H, D, K), (H, K)
    projection = {"kernel": kernel, "bias": bias}
    self.assertEqual(
      jax.tree.map(jnp.shape, nn.unbox(boxed)),
      {
        "params": {
          "heads": {"query": projection, "key": projection, "value": projection},
          "output": {"kernel": (H * K, D), "bias": (D,)},
        }
      },
    )
    projection = {
      "kernel": PartitionSpec("heads", "embed", "head_dim"),
      "bias": PartitionSpec("heads", "head_dim"),
    }
    self.assertEqual(
      nn.get_partition_spec(boxed),
      {
        "params": {
          "heads": {"query": projection, "key": projection, "value": projection},
          "output": {
            "kernel": PartitionSpec("heads", "embed"),
            "bias": PartitionSpec("embed"),
          },
        }
      },
    )

  def test_each_head_starts_with_its_own_weights(self):
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), inputs()))["params"]
    for name in ("query", "key", "value"):
      kernels = np.asarray(params["heads"][name]["kernel"])
      self.assertLen(np.unique(kernels), H * D * K)

  def test_kernels_begin_as_they_are_told_to(self):
    twos, threes = map(nn.initializers.constant, (2.0, 3.0))
    module = MultiHeadAttention(H, K, kernel_init=twos, output_init=threes)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), inputs()))["params"]
    twos, threes = np.full((H, D, K), 2, "f4"), np.full((H * K, D), 3, "f4")
    for projection in params["heads"].values():
      chex.assert_trees_all_equal(projection["kernel"], twos)
    chex.assert_trees_all_equal(params["output"]["kernel"], threes)

  def test_causality_by_gradient(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    params = random_params(module, x)
    gradient = jax.jit(jax.jacrev(lambda x: module.apply(params, x).sum(axis=(0, 2))))
    reached_TS = np.abs(gradient(x)).max(axis=(1, 3)) > 0
    chex.assert_trees_all_equal(reached_TS, np.tri(T, dtype=bool))

  def test_nothing_to_attend_to_gives_the_bias_and_finite_gradients(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    params = random_params(module, x)
    nothing = np.zeros((1, 1, T), bool)

    def total(params, x):
      out = module.apply(params, x, nothing)
      return jnp.sum(out), out

    (_, out), (d_params, d_x) = jax.jit(
      jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    )(params, x)
    bias = params["params"]["output"]["bias"]
    chex.assert_trees_all_equal(out, np.broadcast_to(bias, (B, T, D)))
    chex.assert_tree_all_finite(d_params)
    chex.assert_trees_all_equal(d_x, np.zeros_like(x))
    chex.assert_trees_all_equal(
      d_params["params"]["output"]["bias"], np.full(D, B * T, "f4")
    )

  @parameterized.parameters(
    (SelfAttention, True, B),
    (SelfAttention, False, 1),
    (FlashSelfAttention, True, 1),
    (FlashSelfAttention, False, B),
  )
  def test_a_mask_for_each_head_is_that_heads_mask(self, head, causal, rows):
    x = inputs()
    module = MultiHeadAttention(H, K, causal=causal, head=head)
    params = random_params(module, x)
    output = params["params"]["output"]
    mask_BHTS = np.random.default_rng(5).random((rows, H, T, T)) < 0.6
    one_head = jax.jit(SelfAttention(K, causal=causal).apply)
    heads = [one_head(head_params(params, h), x, mask_BHTS[:, h]) for h in range(H)]
    expected = np.concatenate(heads, -1) @ output["kernel"] + output["bias"]
    apply = jax.jit(module.apply)
    assert_close(apply(params, x, mask_BHTS), expected)
    one = mask_BHTS[:, :1]  # an axis of one is the same for all heads
    chex.assert_trees_all_equal(apply(params, x, one), apply(params, x, one[:, 0]))
    attend = jax.jit(functools.partial(module.apply, method="attend"))
    cache = KeyValues(*np.zeros((2, H, B, T, K), "f4"))
    pieces = []
    for start, end in ((0, 4), (4, T)) if causal else ((0, T),):
      mask = mask_BHTS[:, :, start:end]
      piece, cache = attend(params, x[:, start:end], mask, cache, start)
      pieces.append(piece)
    assert_close(np.concatenate(pieces, axis=1), expected)

  @parameterized.product(head=(SelfAttention, FlashSelfAttention), causal=(True, False))
  def test_a_mask_that_does_not_fit_is_refused(self, head, causal):
    x = inputs()
    module = MultiHeadAttention(H, K, causal=causal, head=head)
    params = random_params(module, x)
    apply = functools.partial(jax.eval_shape, module.apply, params, x)
    for shape, axes in (
      ((B, H + 1, T, T), "[B, H, T, S] = [2, 3, 6, 6]"),
      ((T, 1, B, T, T), "[B, H, T, S] = [2, 3, 6, 6]"),
      ((B, T, T - 1), "[B, T, S] = [2, 6, 6]"),
    ):
      message = f"mask has shape {list(shape)}: must be broadcastable to {axes}"
      with self.assertRaisesRegex(InputError, re.escape(message)):
        apply(np.ones(shape, bool))
      for additive in (np.zeros(shape, "f4"), np.zeros((1, 1, T), "f4")):
        with self.assertRaisesRegex(InputError, "mask is of float32: .* bool"):
          apply(additive)

  @chex.variants(with_jit=True)
  def test_a_mask_reaches_the_cached_tokens(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    params = random_params(module, x)
    apply = self.variant(functools.partial(module.apply, method="attend"))
    num_slots = T + 2
    mask = np.pad(MASKS["padding"], ((0, 0), (0, 0), (0, 2)), constant_values=True)
    cache = KeyValues(*np.zeros((2, H, B, num_slots, K), "f4"))
    first, cache = apply(params, x[:, :4], mask, cache, 0)
    second, cache = apply(params, x[:, 4:], mask, cache, 4)
    chex.assert_tree_shape_prefix(cache, (H, B, num_slots, K))
    whole = jax.jit(module.apply)(params, x, MASKS["padding"])
    assert_close(np.concatenate([first, second], axis=1), whole)

  def test_any_split_through_the_cache_equals_the_whole(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    params = random_params(module, x)
    apply = jax.jit(functools.partial(module.apply, method="attend"))
    length = 4
    whole = np.asarray(jax.jit(module.apply)(params, x[:, :length]))
    for is_cut in itertools.product([False, True], repeat=length - 1):
      cuts = [0, *(1 + np.flatnonzero(is_cut)), length]
      cache = KeyValues(*np.zeros((2, H, B, length, K), "f4"))
      for start, end in itertools.pairwise(cuts):
        piece, cache = apply(params, x[:, start:end], None, cache, start)
        assert_close(piece, whole[:, start:end])

  def test_bfloat16_computes_near_float32(self):
    x = inputs()
    module = MultiHeadAttention(num_heads=H, head_dim=K)
    half = MultiHeadAttention(num_heads=H, head_dim=K, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda leaf: np.float32(0.3) * leaf, random_params(module, x))
    chex.assert_trees_all_equal_shapes_and_dtypes(nn.unbox(shapes_of(half, x)), params)
    out = jax.jit(half.apply)(params, x)
    chex.assert_type(out, jnp.bfloat16)
    exact = jax.jit(module.apply)(params, x)
    # of an input, then as in tests/close.py: projections, weights, mix, projection
    assert_close(out, exact, 1 + 2 * 4 + 2 + 4, dtype=jnp.bfloat16)

  def test_each_head_draws_its_own_dropout(self):
    x = inputs(H * K)
    module = MultiHeadAttention(num_heads=H, head_dim=K, dropout_rate=0.5)
    params = random_params(module, x)["params"]
    # All heads alike, shown unmixed: only dropout can tell them apart.
    alike = jax.tree.map(lambda leaf: np.stack([leaf[0]] * H), params["heads"])
    unmixed = {"kernel": np.eye(H * K, dtype="f4"), "bias": np.zeros(H * K, "f4")}
    params = {"params": {"heads": alike, "output": unmixed}}

    apply = jax.jit(module.apply)
    quiet = np.asarray(apply(params, x)).reshape(B, T, H, K)
    assert_close(quiet, quiet[:, :, :1].repeat(H, axis=2))
    noisy = apply(params, x, rngs={"dropout": jax.random.key(2)})
    noisy = np.asarray(noisy).reshape(B, T, H, K)
    for one, other in [(0, 1), (0, 2), (1, 2)]:
      self.assertGreater(np.abs(noisy[:, :, one] - noisy[:, :, other]).max(), 0.1)

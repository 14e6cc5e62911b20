import dataclasses
import functools
import itertools
import math

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

import gpt2_flax
from gpt2_flax import pretrained
from gpt2_flax.errors import InputError
from gpt2_flax.generation import empty_cache, generate
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.multihead_attention import MultiHeadAttention
from gpt2_flax.self_attention import SelfAttention
from gpt2_flax.transformer import abstract_params, GPT2, init_params, num_params
from tests.close import assert_close, walk
from tests.params import random_params, shapes_of
from tests.reference import reference_logits

B, T = 2, 8
TINY = GPT2Config(
  vocab_size=11, context_length=T, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=12
)
TOY = GPT2Config(
  vocab_size=70, context_length=48, num_layers=2, num_heads=4, embed_dim=64
)


def tiny(**changes):
  return GPT2(dataclasses.replace(TINY, **changes))


def random_key(seed):
  """XLA compiles this generator in a quarter of the default one's time."""
  return jax.random.key(seed, impl="unsafe_rbg")


@functools.cache
def jitted(model, method="__call__"):
  """One program for all tests of a model: model.apply, or with another method."""
  return jax.jit(functools.partial(model.apply, method=method))


@functools.cache
def initial_params(num_layers, feed_forward):
  """What `init` gives to a model like TOY, and its config."""
  config = dataclasses.replace(
    TOY, num_layers=num_layers, positional_encoding="learned", feed_forward=feed_forward
  )
  init = jax.jit(GPT2(config).init)
  return config, nn.unbox(init(random_key(0), tokens((1, 2))))


def tokens(shape=(B, T), vocab_size=TINY.vocab_size):
  return np.random.default_rng(1).integers(0, vocab_size, shape)


class LibraryTest(chex.TestCase):
  def test_three_lines(self):
    model = gpt2_flax.GPT2(gpt2_flax.GPT2Config.published("small", num_layers=1))
    params = jax.eval_shape(model.init, random_key(0), jnp.zeros((B, T), int))
    logits = jax.eval_shape(model.apply, params, jnp.zeros((B, T), int))
    chex.assert_shape(logits, (B, T, 50_257))

  def test_exports(self):
    promised = {
      "GPT2",
      "GPT2Config",
      "SelfAttention",
      "MultiHeadAttention",
      "PositionalEncoding",
      "sinusoidal_positional_encoding",
    }
    self.assertContainsSubset(promised, gpt2_flax.__all__)
    for name in gpt2_flax.__all__:
      self.assertEqual(getattr(gpt2_flax, name).__name__, name)
    self.assertRegex(gpt2_flax.__version__, r"^\d+\.\d+\.\d+")


KINDS = (
  dict(),
  dict(positional_encoding="learned", scale_attention_by_layer=True, mlp_dim=0),
  dict(positional_encoding="none", activation="gelu", tied_embeddings=False),
  dict(activation="relu", layer_norm_epsilon=0.1, scale_attention=False),
  dict(positional_encoding="rotary", scale_attention_by_layer=True),
  dict(positional_encoding="alibi", scale_attention=False),
  dict(feed_forward=False),
  dict(attention="flash", scale_attention_by_layer=True),
)


class LogitsTest(chex.TestCase):
  @parameterized.parameters(*KINDS)
  def test_equal_the_reference(self, **changes):
    model = tiny(**changes)
    self.assert_equal_the_reference(model, jitted(model))

  @parameterized.parameters(*KINDS)
  @pytest.mark.slow
  def test_equal_the_reference_without_jit(self, **changes):
    model = tiny(**changes)
    self.assert_equal_the_reference(model, model.apply)

  def assert_equal_the_reference(self, model, apply):
    params = random_params(model, scale=0.5)
    logits = apply(params, tokens())
    chex.assert_shape(logits, (B, T, TINY.vocab_size))
    chex.assert_type(logits, jnp.float32)
    assert_close(logits, reference_logits(params, tokens(), model.config))

  def test_packed_documents_get_what_each_gets_alone(self):
    model = tiny(positional_encoding="learned")
    params = random_params(model, scale=0.5)
    document = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    mask = (document[:, None] == document[None, :])[None]
    packed = jitted(model)(params, tokens(), positions, mask)
    alone = [
      reference_logits(params, tokens()[:, document == number], model.config)
      for number in (0, 1)
    ]
    assert_close(packed, np.concatenate(alone, axis=1))

  @parameterized.parameters("explicit", "flash")
  def test_a_mask_for_each_head_with_and_without_the_cache(self, attention):
    model = tiny(attention=attention)
    params = random_params(model, scale=0.5)
    mask_BHTS = np.random.default_rng(3).random((B, 2, T, T)) < 0.5
    mask_BHTS |= np.eye(T, dtype=bool)
    expected = reference_logits(params, tokens(), model.config, mask_BHTS)
    assert_close(jitted(model)(params, tokens(), mask=mask_BHTS), expected)
    cache, pieces = empty_cache(model.config, B, T), []
    extend = jitted(model, "extend")
    for start, end in ((0, 4), (4, T)):
      mask = mask_BHTS[:, :, start:end]
      piece, cache = extend(params, tokens()[:, start:end], None, mask, cache, start)
      pieces.append(piece)
    hidden = np.concatenate(pieces, axis=1)
    assert_close(jitted(model, "unembed")(params, hidden), expected)

  @parameterized.parameters("learned", "rotary", "alibi")
  def test_pieces_through_the_cache_equal_the_whole(self, positional_encoding):
    model = tiny(positional_encoding=positional_encoding)
    params = random_params(model, scale=0.5)
    extend = jitted(model, "extend")
    cache = empty_cache(model.config, B, T + 1)
    pieces = []
    for start, end in itertools.pairwise(range(0, T + 1, 2)):
      piece, cache = extend(params, tokens()[:, start:end], cache=cache, start=start)
      pieces.append(piece)
    self.assertLen(cache, 2)
    chex.assert_tree_shape_prefix(cache, (2, B, T + 1, 4))
    whole = jitted(model, "hidden")(params, tokens())
    assert_close(np.concatenate(pieces, axis=1), whole)

  @parameterized.parameters("sinusoidal", "rotary")
  def test_bfloat16_is_near_float32(self, kind):
    half = tiny(dtype="bfloat16", positional_encoding=kind)
    model = tiny(positional_encoding=kind)
    params = random_params(model, scale=0.5)
    chex.assert_trees_all_equal_shapes_and_dtypes(nn.unbox(shapes_of(half)), params)

    @jax.jit
    def logits_and_hidden(params):
      seen = []

      def keep(method, args, kwargs, context):
        out = method(*args, **kwargs)
        if (type(context.module), context.method_name) == (GPT2, "hidden"):
          seen.append(out)
        return out

      with nn.intercept_methods(keep):
        return half.apply(params, tokens()), seen

    logits, [hidden] = logits_and_hidden(params)
    chex.assert_type(hidden, jnp.bfloat16)
    chex.assert_type(logits, jnp.float32)
    exact = reference_logits(params, tokens(), model.config)
    assert_close(logits, exact, walk(3 + 2 * 36 + 2), dtype=jnp.bfloat16)
    self.assertGreater(abs(logits - exact).max(), 1e-4)  # so it was not float32


class OrderTest(chex.TestCase):
  """Who can see whom, and who stands where."""

  def test_causality_by_gradient(self):
    model = tiny()
    params = random_params(model, scale=0.5)

    def logits(perturbation):
      def perturb(method, args, kwargs, context):
        out = method(*args, **kwargs)
        return out + perturbation if context.method_name == "embed" else out

      with nn.intercept_methods(perturb):
        return model.apply(params, tokens()).sum(axis=(0, 2))

    jacobian = jax.jit(jax.jacrev(logits))(jnp.zeros((B, T, TINY.embed_dim)))
    reached_TS = np.abs(jacobian).max(axis=(1, 3)) > 0
    chex.assert_trees_all_equal(reached_TS, np.tri(T, dtype=bool))

  def test_without_mask_and_positions_order_means_nothing(self):
    model = tiny(positional_encoding="none")
    params = random_params(model, scale=0.5)
    order = np.array([3, 0, 7, 5, 1, 6, 4, 2])

    def see_all(method, args, kwargs, context):
      if isinstance(context.module, SelfAttention) and context.method_name == "weights":
        scores, allowed = args
        args = scores, jnp.ones_like(allowed)
      return method(*args, **kwargs)

    @jax.jit
    def unmasked(tokens_BT):
      with nn.intercept_methods(see_all):
        return model.apply(params, tokens_BT)

    whole = np.asarray(unmasked(tokens()))
    assert_close(unmasked(tokens()[:, order]), whole[:, order])
    # Which is the mask's doing: with it, order means something.
    whole = np.asarray(jitted(model)(params, tokens()))
    moved = jitted(model)(params, tokens()[:, order]) - whole[:, order]
    self.assertGreater(np.abs(moved).max(), 0.1)

  def test_the_mask_alone_tells_two_layers_the_order_but_not_one(self):
    shuffled = tokens()[:, [3, 0, 5, 1, 6, 4, 2, 7]]
    ends = {}
    for num_layers in (1, 2):
      model = tiny(positional_encoding="none", num_layers=num_layers)
      params = random_params(model, scale=0.5)
      ends[num_layers] = [
        np.asarray(jitted(model)(params, text))[:, -1] for text in (shuffled, tokens())
      ]
    assert_close(*ends[1])
    self.assertGreater(np.abs(np.subtract(*ends[2])).max(), 0.1)


SIZES = (
  ("small", 124_439_808),
  ("medium", 354_823_168),
  ("large", 774_030_080),
  ("xl", 1_557_611_200),
)


class ParametersTest(chex.TestCase):
  @parameterized.parameters("rotary", "alibi")
  def test_relative_positions_have_none(self, positional_encoding):
    relative = shapes_of(tiny(positional_encoding=positional_encoding))
    chex.assert_trees_all_equal_structs(
      relative, shapes_of(tiny(positional_encoding="none"))
    )

  def test_attention_only_blocks_have_nothing_else(self):
    params = shapes_of(tiny(feed_forward=False))["params"]
    self.assertEqual(params["blocks_1"].keys(), {"attention_norm", "attention"})
    whole = shapes_of(tiny())["params"]["blocks_1"]
    self.assertEqual(
      whole.keys() - params["blocks_1"].keys(), {"feed_forward_norm", "feed_forward"}
    )

  @parameterized.parameters(*SIZES)
  def test_published_sizes(self, size, count):
    """Of stacked layers, since to trace one takes less time than to trace all."""
    self.assert_has(size, count, scan_layers=True)

  @parameterized.parameters(*SIZES)
  @pytest.mark.slow
  def test_published_sizes_of_layers_apart(self, size, count):
    self.assert_has(size, count)

  def test_each_key_draws_what_init_draws(self):
    model, init = tiny(), jax.jit(tiny().init)
    for seed in (0, 1):
      found = init_params(model, random_key(seed))
      expected = init(random_key(seed), tokens())
      assert_close(nn.unbox(found), nn.unbox(expected))
      chex.assert_trees_all_equal_shapes_and_dtypes(abstract_params(model), expected)
      for drawn in (found, abstract_params(model)):  # names of axes too
        self.assertEqual(jax.tree.structure(drawn), jax.tree.structure(expected))

  def assert_has(self, size, count, **changes):
    config = GPT2Config.published(size, **changes)
    self.assertEqual(num_params(shapes_of(GPT2(config))), count)

  def test_every_axis_has_a_name(self):
    boxed = shapes_of(tiny(positional_encoding="learned", tied_embeddings=False))
    shapes = jax.tree_util.tree_leaves_with_path(nn.unbox(boxed))
    names = jax.tree_util.tree_leaves_with_path(
      nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    self.assertLen(shapes, 2 * 16 + 5)
    sizes = {
      "vocab": {11},
      "position": {8},
      "embed": {8},
      "mlp": {12},
      "head_dim": {4},
      "heads": {2, 2 * 4},  # the output projection reads heads side by side
    }
    for (path, leaf), (same_path, spec) in zip(shapes, names, strict=True):
      self.assertEqual(path, same_path)
      self.assertLen(spec, leaf.ndim, path)
      for size, name in zip(leaf.shape, spec, strict=True):
        self.assertIn(size, sizes[name], path)
    heads = nn.unbox(boxed)["params"]["blocks_1"]["attention"]["heads"]
    chex.assert_shape(heads["query"]["kernel"], (2, 8, 4))

  @parameterized.parameters((2, True), (1, False))
  def test_initial_values(self, num_layers, feed_forward):
    _, params = initial_params(num_layers, feed_forward)
    num_residual = (2 if feed_forward else 1) * num_layers
    residual = 0.02 / math.sqrt(num_residual)
    shrunk = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      chex.assert_type(leaf, jnp.float32)
      leaf = np.asarray(leaf)
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      if name.endswith("bias"):
        chex.assert_trees_all_equal(leaf, np.zeros_like(leaf))
      elif name.endswith("scale"):
        chex.assert_trees_all_equal(leaf, np.ones_like(leaf))
      else:
        is_residual = name.endswith(("output/kernel", "contract/kernel"))
        shrunk += is_residual
        std = residual if is_residual else 0.02
        # five standard errors, of a mean and of a standard deviation
        five = 5 * std / math.sqrt(leaf.size)
        self.assertLess(abs(np.mean(leaf)), five, name)
        self.assertLess(abs(np.std(leaf) - std), five / math.sqrt(2), name)
    self.assertEqual(shrunk, num_residual)

  def test_initial_loss_is_that_of_guessing(self):
    config, params = initial_params(2, True)
    sequences = tokens((8, 49), TOY.vocab_size)
    logits = reference_logits(
      jax.tree.map(np.asarray, params), sequences[:, :-1], config
    )
    total = np.log(np.exp(logits).sum(-1))
    of_target = np.take_along_axis(logits, sequences[:, 1:, None], axis=-1)[..., 0]
    guessing = math.log(TOY.vocab_size)
    loss = (total - of_target).mean()
    self.assertBetween(loss, 0.99 * guessing, 1.01 * guessing)

  @pytest.mark.slow  # training/test_step.py learns one
  def test_one_batch_can_be_learned_by_heart(self):
    model = tiny(embed_dim=16, num_layers=1)
    rng = np.random.default_rng(2)
    batch = np.stack([rng.permutation(TINY.vocab_size)[: T + 1] for _ in range(4)])
    batch[:, 0] = np.arange(4)  # so that what follows is no matter of chance
    optimizer = optax.adam(1e-2)

    def loss(params):
      logits = model.apply(params, batch[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch[:, 1:]
      ).mean()

    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def train(key):
      params = nn.unbox(model.init(key, batch[:, :-1]))
      return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1]

    losses = train(random_key(0))
    self.assertGreater(losses[0], 2.0)
    self.assertLess(losses[-1], 0.01)


class OwnPartsTest(chex.TestCase):
  def test_a_feed_forward_and_a_norm_of_ones_own(self):
    class Doubled(nn.Module):
      config: GPT2Config

      def __call__(self, x_BTD):
        return 2 * x_BTD

    def no_norm(epsilon, dtype):
      del epsilon, dtype
      return lambda x_BTD: x_BTD

    config = dataclasses.replace(TINY, num_layers=1, positional_encoding="none")
    model = GPT2(config, mlp=Doubled, norm=no_norm)
    params = random_params(model, scale=0.5)
    names = {"token_embedding", "blocks_0"}
    self.assertEqual(set(params["params"]), names)
    self.assertEqual(set(params["params"]["blocks_0"]), {"attention"})
    embedding_VD = params["params"]["token_embedding"]["embedding"]
    x_BTD = embedding_VD[tokens()]
    attention = MultiHeadAttention(config.num_heads, config.head_dim)
    weights = {"params": params["params"]["blocks_0"]["attention"]}
    x_BTD += jax.jit(attention.apply)(weights, x_BTD)
    expected = np.einsum("BTD,VD->BTV", 3 * x_BTD, embedding_VD)
    assert_close(jitted(model)(params, tokens()), expected)

  @parameterized.parameters("learned", "rotary", "alibi")
  def test_without_causality_every_token_sees_all(self, positional_encoding):
    """So the first sees the last. With it, LogitsTest has what is seen."""
    model = tiny(positional_encoding=positional_encoding, causal=False, num_layers=1)
    params = random_params(model, scale=0.5)
    last = tokens().copy()
    last[:, -1] = (last[:, -1] + 1) % TINY.vocab_size
    first = [np.asarray(jitted(model)(params, text))[:, 0] for text in (tokens(), last)]
    self.assertTrue((first[0] != first[1]).any())

  def test_without_causality_nothing_is_written(self):
    model = tiny(causal=False)
    params = random_params(model, scale=0.5)
    with self.assertRaisesRegex(InputError, "causal is False: must be True to gen"):
      generate(model, params, [[1]], num_tokens=1, key=random_key(0))
    with self.assertRaisesRegex(InputError, "causal is False: must be True to be"):
      pretrained.save("nowhere", tiny(positional_encoding="learned", causal=False), {})


class TokenIdsTest(chex.TestCase):
  @parameterized.parameters(-1, 11, 12, -(2**31), 2**31 - 1)
  def test_one_that_is_none_of_the_vocabulary_is_refused(self, token):
    model = tiny()
    params = random_params(model, scale=0.5)
    wrong = tokens()
    wrong[1, 2] = token
    for given in (wrong, jnp.asarray(wrong)):
      for method in ("__call__", "hidden", "extend"):
        message = f"token id is {token}: must be 0 to 10, by model.vocab_size"
        with self.assertRaisesRegex(InputError, message):
          model.apply(params, given, method=method)

  def test_the_first_and_the_last_of_the_vocabulary_are_taken(self):
    model = tiny(num_layers=1)
    params = random_params(model, scale=0.5)
    ends = tokens()
    ends[:, 3:5] = [[0, 10], [10, 0]]
    found = model.apply(params, ends)
    assert_close(found, reference_logits(params, ends, model.config))

  def test_where_values_are_not_known_large_ones_give_nan_and_negative_ones_count_back(
    self,
  ):
    model = tiny()
    params = random_params(model, scale=0.5)
    wrong = tokens()
    wrong[0, 3], wrong[1, 5] = 11, -2
    logits = np.asarray(jitted(model)(params, wrong))
    self.assertTrue(np.isnan(logits[0, 3:]).all())
    back = tokens()
    back[1, 5] = 11 - 2
    expected = np.asarray(jitted(model)(params, back))
    chex.assert_trees_all_equal(logits[1], expected[1])

"""The model in the page beside JAX: every step's value, in a real browser."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax import interpret
from gpt2_flax.interpret.page.arrays import encoded
from gpt2_flax.positional_encoding import alibi_bias, alibi_slopes, rotate_by_position
from gpt2_flax.tokenizer import NumberTokenizer
from tests.interpret.test_page import make
from tests.interpret.workshop import Workshop

NUM_PROMPTS, QUICK_PROMPTS = 100, 30
LENGTH, VOCAB_SIZE = 7, 11
# What the page promises; it computes in float64, so the difference is JAX's rounding.
OF_LARGEST = 1e-5
# Every kind of position, activation and output layer, and every way to scale scores.
QUICK_SHAPES = (
  dict(positional_encoding="sinusoidal", activation="gelu_tanh", num_layers=1),
  dict(
    num_layers=1,
    positional_encoding="learned",
    activation="gelu",
    tied_embeddings=False,
    scale_attention=False,
    causal=False,
  ),
  dict(
    positional_encoding="rotary",
    activation="relu",
    num_heads=1,
    scale_attention_by_layer=True,
  ),
  dict(
    positional_encoding="alibi",
    num_heads=3,
    embed_dim=12,
    feed_forward=False,
  ),
)
SHAPES = (
  dict(positional_encoding="sinusoidal", activation="gelu_tanh"),
  dict(positional_encoding="learned", activation="gelu", tied_embeddings=False),
  dict(positional_encoding="rotary", activation="relu", num_heads=1),
  dict(positional_encoding="alibi", num_heads=3, embed_dim=12),
  dict(positional_encoding="none", scale_attention=False, causal=False),
  dict(feed_forward=False, scale_attention_by_layer=True, num_layers=3),
)
# Gives, for each name, the largest difference over all texts, the largest value, and
# how many values there were.
COMPARE = """([texts, expected]) => {
  const flat = (value) =>
    (typeof value[0] === "number" ? [...value] : value.flatMap(flat));
  const worst = {};
  for (const [name, base64] of Object.entries(expected)) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const theirs = new Float32Array(bytes.buffer);
    const ours = texts.flatMap((tokens) => {
      const { taps, logits } = inside.trace(tokens);
      return flat(name === "logits" ? logits : taps[name]);
    });
    let [off, most] = [0, 0];
    theirs.forEach((value, i) => {
      off = Math.max(off, Math.abs(ours[i] - value));
      most = Math.max(most, Math.abs(value));
    });
    worst[name] = [ours.length === theirs.length ? off : NaN, most, ours.length];
  }
  return worst;
}"""


def expected_values(model, params, tokens_BT) -> dict[str, np.ndarray]:
  """By name, [B, ...] with the page's axes; and what TAPS has no name for."""

  def compute(params, tokens_BT):
    logits, run = interpret.trace(model, params, tokens_BT)
    values = {name: (run[name], interpret.TAPS[name]) for name in run}
    values["logits"] = (logits, "BTV")
    config = model.config
    layers = range(config.num_layers)
    norms = {"attention_norm": ("attention_norm", "residual_before")}
    if config.feed_forward:
      norms["mlp_norm"] = ("feed_forward_norm", "residual_between")
    for name, (norm, source) in norms.items():
      normed = [
        model.apply(
          params,
          run[source][i],
          method=lambda model, x, i=i, norm=norm: getattr(model.blocks[i], norm)(x),
        )
        for i in layers
      ]
      values[name] = (jnp.stack(normed), "LBTD")
    if config.positional_encoding == "rotary":
      turn = jax.vmap(jax.vmap(lambda x: rotate_by_position(x, jnp.arange(LENGTH))))
      for name in ("query", "key"):
        values[f"rotated_{name}"] = (turn(run[name]), "LHBTK")
    if config.positional_encoding == "alibi":
      places = jnp.arange(LENGTH)
      bias = jax.vmap(lambda slope: alibi_bias(slope, places, places))(
        alibi_slopes(config.num_heads)
      )
      values["biased_scores"] = (run.scores + bias[None], "LHBTS")
    return {name: value for name, (value, _) in values.items()}, {
      name: axes for name, (_, axes) in values.items()
    }

  axes = {}

  def values_only(params, tokens_BT):
    values, found = compute(params, tokens_BT)
    axes.update(found)
    return values

  values = jax.jit(values_only)(params, tokens_BT)
  batch_size = len(tokens_BT)
  moved = {}
  for name, value in values.items():
    value = np.asarray(value)
    at = axes[name].index("B")
    if value.shape[at] == 1:  # positions that all rows share
      value = np.repeat(value, batch_size, at)
    moved[name] = np.moveaxis(value, at, 0)
  return moved


class ModelInPageTest(Workshop):
  @parameterized.parameters(*QUICK_SHAPES)
  def test_every_value_is_that_of_jax(self, **shape):
    self.assert_every_value_is_that_of_jax(QUICK_PROMPTS, **shape)

  @parameterized.parameters(*SHAPES)
  @pytest.mark.slow
  def test_so_it_is_with_one_change_at_a_time(self, **shape):
    self.assert_every_value_is_that_of_jax(NUM_PROMPTS, **shape)

  def assert_every_value_is_that_of_jax(self, num_prompts, **shape):
    model, params = make(VOCAB_SIZE, **shape)
    rng = np.random.default_rng(0)
    # Biases and scales are 0 and 1 at first, which would hide them. Larger weights
    # would let JAX's own roundings grow past what is promised.
    params = jax.tree.map(
      lambda leaf: leaf / 3 + 0.2 * rng.normal(size=leaf.shape).astype("f4"), params
    )
    texts = rng.integers(VOCAB_SIZE, size=(num_prompts, LENGTH), dtype=np.int32)
    self.write(model, params, NumberTokenizer(VOCAB_SIZE), [1, 2])
    page = self.open()
    self.assertEqual(self.trouble, [])
    expected = expected_values(model, params, texts)
    coded = {name: encoded(value)["data"] for name, value in expected.items()}
    worst = page.evaluate(COMPARE, [texts.tolist(), coded])
    self.assertEqual(set(worst), set(expected))
    for name, (off, most, count) in worst.items():
      self.assertEqual(count, expected[name].size, name)
      self.assertLessEqual(off, OF_LARGEST * most, name)

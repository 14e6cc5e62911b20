import functools
import pathlib

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from gpt2_flax import GPT2, GPT2Config, InputError, interpret, pretrained
from gpt2_flax.generation import empty_cache
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params, shapes_of

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SIZES = dict(B=3, T=5, S=5, L=2, H=2, K=4, D=8, F=6, V=11)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))
CONFIGS = {
  "plain": {},
  "learned_untied": dict(positional_encoding="learned", tied_embeddings=False),
  "no_positions_one_head": dict(positional_encoding="none", num_heads=1),
  "by_layer": dict(scale_attention_by_layer=True),
  "bfloat16": dict(dtype="bfloat16"),
}


def make_model(**changes):
  sizes = dict(vocab_size=11, context_length=8, num_layers=2, num_heads=2, embed_dim=8)
  return GPT2(GPT2Config(**(sizes | dict(mlp_dim=6) | changes)))


@functools.cache
def traced(name="plain"):
  model = make_model(**CONFIGS[name])
  params = random_params(model, scale=0.5)
  run = functools.partial(interpret.trace, model)
  return model, params, *compiled(name, run)(params, TOKENS)


def compiled(name, function):
  """In bfloat16 each step by itself takes long to compile; as one program it is the
  same, if XLA skips no roundings between steps that it fuses."""
  if name != "bfloat16":
    return function
  return jax.jit(function, compiler_options={"xla_allow_excess_precision": False})


class TraceTest(chex.TestCase):
  @parameterized.parameters(*CONFIGS)
  def test_the_logits_are_the_models_to_the_bit(self, name):
    model, params, logits, _ = traced(name)
    expected = compiled(name, model.apply)(params, TOKENS)
    chex.assert_trees_all_equal(logits, expected)
    chex.assert_type(logits, jnp.float32)

  def test_flash_attention_is_traced_as_the_explicit_one(self):
    flash = make_model(attention="flash")
    _, params, logits, trace = traced()
    found = interpret.trace(flash, params, TOKENS)
    chex.assert_trees_all_equal(found, (logits, trace))
    edited = interpret.edited(flash, params, [])
    chex.assert_trees_all_equal(edited[0].apply(edited[1], TOKENS), logits)

  def test_jitted_the_logits_are_the_jitted_models_to_the_bit(self):
    model, params, _, _ = traced()
    trace = jax.jit(functools.partial(interpret.trace, model))
    logits = trace(params, TOKENS)[0]
    chex.assert_trees_all_equal(logits, jax.jit(model.apply)(params, TOKENS))

  def test_axes_are_those_of_the_table(self):
    _, _, _, trace = traced()
    self.assertEqual(list(trace), list(interpret.TAPS))
    for name, axes in interpret.TAPS.items():
      shape = tuple(SIZES[axis] for axis in axes)
      if name == "positions":
        shape = (1, *shape[1:])  # all rows share them
      chex.assert_shape(getattr(trace, name), shape)

  def test_activations_have_the_models_dtype(self):
    trace = traced("bfloat16")[-1]
    float32 = {"positions", "scores", "weights"}
    for name in trace:
      chex.assert_type(trace[name], jnp.float32 if name in float32 else jnp.bfloat16)

  @parameterized.parameters(*(name for name in CONFIGS if name != "bfloat16"))
  def test_each_step_follows_from_those_before(self, name):
    model, params, logits, trace = traced(name)
    t = jax.tree.map(lambda x: np.asarray(x, np.float64), trace)
    p = params["params"]

    def norm(x, p):
      centred = x - x.mean(-1, keepdims=True)
      spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
      return centred / spread * p["scale"] + p["bias"]

    # the longest step: a norm, a projection, and a GELU, which is float32 here too
    step = (2 * 8 + 8) + (8 + 1) + 2 * 10
    check = functools.partial(assert_close, roundings=step, dtype=np.float32)

    table = p["token_embedding"]["embedding"]
    sinusoidal = model.config.positional_encoding == "sinusoidal"
    check(t.token_embeddings, table[TOKENS] * (8**0.5 if sinusoidal else 1))
    if name == "learned_untied":
      check(t.positions[0], p["positional_encoding"]["embedding"]["embedding"][:5])
    check(t.residual_before[0], t.token_embeddings + t.positions)
    check(t.residual_before[1:], t.residual_after[:-1])
    for layer in range(2):
      block = p[f"blocks_{layer}"]
      read = norm(t.residual_before[layer], block["attention_norm"])
      heads = block["attention"]["heads"]
      head_dim = model.config.head_dim
      for head in range(model.config.num_heads):
        for step in ("query", "key", "value"):
          projection = jax.tree.map(lambda x, head=head: x[head], heads[step])
          check(
            getattr(t, step)[layer, head],
            read @ projection["kernel"] + projection["bias"],
          )
        scores = np.einsum("btk,bsk->bts", t.query[layer, head], t.key[layer, head])
        by_layer = layer + 1 if name == "by_layer" else 1
        check(t.scores[layer, head], scores / head_dim**0.5 / by_layer)
        odds = np.exp(t.scores[layer, head]) * np.tril(np.ones((1, 5, 5)))
        check(t.weights[layer, head], odds / odds.sum(-1, keepdims=True))
        check(t.head_output[layer, head], t.weights[layer, head] @ t.value[layer, head])
      joined = np.moveaxis(t.head_output[layer], 0, 2).reshape(3, 5, -1)
      output, feed_forward = block["attention"]["output"], block["feed_forward"]
      check(t.attention_output[layer], joined @ output["kernel"] + output["bias"])
      check(
        t.residual_between[layer], t.residual_before[layer] + t.attention_output[layer]
      )
      read = norm(t.residual_between[layer], block["feed_forward_norm"])
      expand, contract = feed_forward["expand"], feed_forward["contract"]
      hidden = np.asarray(nn.gelu(read @ expand["kernel"] + expand["bias"]))
      check(t.mlp_hidden[layer], hidden)
      check(
        t.mlp_output[layer],
        t.mlp_hidden[layer] @ contract["kernel"] + contract["bias"],
      )
      check(t.residual_after[layer], t.residual_between[layer] + t.mlp_output[layer])
    check(t.final_norm, norm(t.residual_after[-1], p["final_norm"]))
    if name == "learned_untied":
      table = p["output_embedding"]["embedding"]
    check(np.asarray(logits), t.final_norm @ table.T)

  def test_published_weights(self):
    expected = load_file(GOLDEN / "plain" / "expected.safetensors")
    model, params = pretrained.load(GOLDEN / "plain")
    tokens = expected["tokens"]
    run = jax.jit(functools.partial(interpret.trace, model, taps=["weights"]))
    logits, trace = run(params, tokens)
    assert_close(logits, expected["logits"])
    assert_close(trace.weights.sum(-1), jnp.ones(trace.weights.shape[:-1]))

  def test_params_may_carry_axis_names(self):
    model, params, logits, _ = traced()
    boxed = shapes_of(model)
    boxed = jax.tree.unflatten(jax.tree.structure(boxed), jax.tree.leaves(params))
    self.assertNotEqual(jax.tree.structure(boxed), jax.tree.structure(params))
    chex.assert_trees_all_equal(
      interpret.trace(model, boxed, TOKENS, taps=())[0], logits
    )

  def test_more_than_ten_layers_stay_in_order(self):
    model = make_model(num_layers=11, feed_forward=False)
    params = random_params(model, scale=0.5)
    taps = ["residual_before", "residual_after"]
    _, trace = interpret.trace(model, params, TOKENS, taps=taps)
    before, after = np.asarray(trace.residual_before), np.asarray(trace.residual_after)
    chex.assert_trees_all_equal(before[1:], after[:-1])


class TapsTest(chex.TestCase):
  def test_only_what_is_asked_for_is_kept(self):
    model, params, logits, whole = traced()
    again, trace = interpret.trace(
      model, params, TOKENS, taps=("weights", "final_norm")
    )
    chex.assert_trees_all_equal(again, logits)
    chex.assert_trees_all_equal(trace.weights, whole.weights)
    self.assertEqual(list(trace), ["weights", "final_norm"])
    self.assertIsNone(trace.scores)
    _, nothing = interpret.trace(model, params, TOKENS, taps=())
    self.assertEmpty(jax.tree.leaves(nothing))

  def test_an_unknown_tap_is_refused_with_a_hint(self):
    model, params, _, _ = traced()
    with self.assertRaisesRegex(
      InputError, "unknown tap 'wieghts': did you mean 'weights'.*residual_between"
    ):
      interpret.trace(model, params, TOKENS, taps=["wieghts"])

  def test_a_step_that_the_model_lacks_is_refused_only_if_asked_for(self):
    model = JustANorm(GPT2Config(num_layers=1, num_heads=1, embed_dim=4))
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype("f4")
    params = random_params(model, x)
    out, trace = interpret.trace(model, params, x)
    chex.assert_trees_all_equal(trace.final_norm, out)
    self.assertLen(jax.tree.leaves(trace), 1)
    with self.assertRaisesRegex(
      InputError, "tap 'mlp_hidden' hit nothing: this model has final_norm$"
    ):
      interpret.trace(model, params, x, taps=["mlp_hidden"])
    edit = interpret.steer(jnp.ones(4), True)
    with self.assertRaisesRegex(
      InputError, "edits need a GPT2: JustANorm can be traced only"
    ):
      interpret.trace(model, params, x, [edit], taps=())


class JustANorm(nn.Module):
  config: GPT2Config

  def setup(self):
    self.final_norm = nn.LayerNorm()

  def __call__(self, x_BTD):
    return self.final_norm(x_BTD)


@functools.cache
def differentiated():
  """The gradients of the logits' variance and of one weight, in the params."""
  model, params, _, _ = traced()

  @jax.jit
  def run(params):
    def of_the_trace(params):
      logits, trace = interpret.trace(model, params, TOKENS)
      return logits.var(), trace.weights[0, 1, 0, 4, 0]

    _, gradient = jax.vjp(of_the_trace, params)
    return gradient((1.0, 0.0))[0], gradient((0.0, 1.0))[0]

  return jax.tree.map(np.asarray, run(params))


class TransformationsTest(chex.TestCase):
  def test_vmap_over_tokens(self):
    model, params, logits, whole = traced()
    rows = TOKENS[:, None]
    one = lambda tokens: interpret.trace(model, params, tokens, taps=["scores"])  # noqa: E731
    again, trace = jax.jit(jax.vmap(one))(rows)
    assert_close(np.asarray(again)[:, 0], logits)
    scores = np.moveaxis(np.asarray(trace.scores)[:, :, :, 0], 0, 2)
    assert_close(scores, whole.scores)

  def test_gradients_are_the_models(self):
    gradients, _ = differentiated()
    apply = traced()[0].apply
    expected = jax.jit(jax.grad(lambda params: apply(params, TOKENS).var()))
    expected = expected(traced()[1])
    assert_close(gradients, expected, 2 * ROUNDINGS, scale=sizes(expected))

  def test_a_tap_has_a_gradient(self):
    _, bias = differentiated()
    heads = bias["params"]["blocks_0"]["attention"]["heads"]["query"]["bias"]
    chex.assert_trees_all_equal(heads[0], np.zeros(4, "f4"))  # the other head's
    self.assertGreater(np.abs(heads[1]).max(), 1e-4)

  def test_nothing_stays_behind_in_jits_cache(self):
    model, params, _, _ = traced()
    apply = jax.jit(model.apply)
    before = apply(params, TOKENS)
    edit = interpret.ablate_heads(np.ones((2, 2)))
    edited, _ = interpret.trace(model, params, TOKENS, [edit])
    self.assertGreater(np.abs(np.subtract(edited, before)).max(), 0.1)
    chex.assert_trees_all_equal(apply(params, TOKENS), before)
    apply.clear_cache()
    chex.assert_trees_all_equal(apply(params, TOKENS), before)

  def test_tracing_goes_on_where_a_cache_ends(self):
    model, params, _, whole = traced()
    cache = empty_cache(model.config, batch_size=3, num_slots=7)
    run = jax.jit(functools.partial(interpret.trace, model, method="extend"))
    (first, cache), _ = run(params, TOKENS[:, :2], cache=cache, start=0)
    (last, cache), trace = run(params, TOKENS[:, 2:4], cache=cache, start=2)
    trace, whole = jax.tree.map(np.asarray, (trace, whole))
    assert_close(np.concatenate([first, last], 1), whole.final_norm[:, :4])
    chex.assert_shape(trace.weights, (2, 2, 3, 2, 7))
    assert_close(trace.weights[..., :4], whole.weights[..., 2:4, :4])
    assert_close(trace.weights[..., 4:], np.zeros((2, 2, 3, 2, 3), "f4"))  # still free
    assert_close(trace.key, whole.key[..., 2:4, :])
    assert_close(trace.residual_after, whole.residual_after[..., 2:4, :])
    assert_close(np.asarray(cache[1].key)[:, :, :4], whole.key[1, :, :, :4])

  def test_positions_and_mask_reach_the_model(self):
    model, params, _, _ = traced()
    positions, mask = np.array([[3, 1, 0, 2, 2]]), np.ones((1, 5, 5), bool)
    mask[..., 0] = False
    logits, trace = interpret.trace(
      model, params, TOKENS, positions=positions, mask=mask
    )
    chex.assert_trees_all_equal(
      logits, model.apply(params, TOKENS, positions=positions, mask=mask)
    )
    self.assertEqual(np.abs(np.asarray(trace.weights)[..., 0]).max(), 0)


class OtherModelsTest(chex.TestCase):
  """Positions inside attention, and blocks without a feed-forward."""

  @staticmethod
  @functools.cache
  def runs_of(**changes):
    """The model, its logits as of the trace and as of itself, the trace, the parts."""
    model = make_model(**changes)

    @jax.jit
    def run(params):
      logits, trace = interpret.trace(model, params, TOKENS)
      parts = interpret.logit_attribution(model, params, trace)
      return logits, model.apply(params, TOKENS), trace, parts

    found = run(random_params(model, scale=0.5))
    return model, *jax.tree.map(np.asarray, found)

  @parameterized.parameters(
    dict(positional_encoding="rotary"),
    dict(positional_encoding="alibi"),
    dict(feed_forward=False),
  )
  def test_traces_as_it_runs(self, **changes):
    model, logits, own_logits, trace, parts = self.runs_of(**changes)
    chex.assert_trees_all_equal(logits, own_logits)
    t, where = np.arange(5), 1j * np.arange(5)
    query, key = (np.asarray(x, np.float64) for x in (trace.query, trace.key))
    scores = np.asarray(trace.scores, np.float64)
    if model.config.positional_encoding == "rotary":
      turns = np.exp(where[:, None] * 10_000.0 ** -(np.arange(2) / 2))
      query, key = ((x[..., 0::2] + 1j * x[..., 1::2]) * turns for x in (query, key))
      key = key.conj()
    products = np.einsum("lhbtk,lhbsk->lhbts", query, key).real
    assert_close(scores, products / 2, dtype=np.float32)
    if model.config.positional_encoding == "alibi":
      slopes = np.array([2.0**-4, 2.0**-8])
      distance = t[:, None] - t[None]
      scores = scores - slopes[None, :, None, None, None] * distance
    odds = np.exp(scores) * np.tril(np.ones((5, 5)))
    weights = odds / odds.sum(-1, keepdims=True)
    assert_close(trace.weights, weights)
    said = [
      np.asarray(part, np.float64).reshape(-1, *logits.shape)
      for part in parts
      if part is not None
    ]
    total = sum(part.sum(0) for part in said)
    assert_close(total, logits, scale=sum(abs(part).sum(0) for part in said))

  def test_attention_alone_has_no_feed_forward_to_look_at(self):
    model, _, _, trace, _ = self.runs_of(feed_forward=False)
    self.assertIsNone(trace.mlp_output)
    after = trace.residual_before + trace.attention_output
    assert_close(trace.residual_after, after, 2)
    run = functools.partial(interpret.trace, model, taps=["mlp_output"])
    with self.assertRaisesRegex(InputError, "tap 'mlp_output' hit nothing"):
      jax.eval_shape(run, shapes_of(model), TOKENS)

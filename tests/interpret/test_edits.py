"""Each edit against a model whose parameters were changed to the same effect."""

import copy
import functools
import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config, InputError, interpret, pretrained
from gpt2_flax.interpret import ablate_heads, patch, select, steer
from tests.close import assert_close, ROUNDINGS
from tests.params import random_params
from tests.reference import reference_logits

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
L, H, D, K = 2, 2, 8, 4
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5))
VECTOR = np.random.default_rng(2).normal(size=D).astype("f4")


def make_model(**changes):
  values = dict(vocab_size=11, context_length=24, num_layers=L, num_heads=H)
  values |= dict(embed_dim=D, mlp_dim=6, positional_encoding="learned")
  return GPT2(GPT2Config(**(values | changes)))


@functools.cache
def model_and_params():
  return make_model(), random_params(make_model(), scale=0.5)


@functools.cache
def traced():
  """One program for any tokens of one shape."""
  model, params = model_and_params()
  run = jax.jit(functools.partial(interpret.trace, model))
  return lambda tokens: jax.tree.map(np.asarray, run(params, tokens))


@functools.cache
def unedited():
  return traced()(TOKENS)


def run_with(*edits):
  """The logits, for a program of one's own."""
  return interpret.trace(*model_and_params(), TOKENS, edits, taps=())[0]


@functools.cache
def program():
  return jax.jit(functools.partial(interpret.trace, *model_and_params(), TOKENS))


def logits_with(*edits):
  return traced_with(*edits)[0]


def traced_with(*edits):
  """By a program that edits every site once, at every place: it serves all edits.

  `test_axes_that_are_left_out` has it that this makes no difference.
  """
  nothing = {
    site: interpret.make_edit(site, False, 1.0, 0.0) for site in interpret.TAPS
  }
  chosen = nothing | {edit.site: edit for edit in edits}
  assert len({edit.site for edit in edits}) == len(edits)

  def everywhere(edit):
    shape = unedited()[1][edit.site].shape
    mask, scale, value = (
      np.broadcast_to(np.asarray(array, dtype), shape)
      for array, dtype in ((edit.mask, bool), (edit.scale, "f4"), (edit.value, "f4"))
    )
    return edit.replace(mask=mask, scale=scale, value=value)

  found = program()([everywhere(edit) for edit in chosen.values()])
  return jax.tree.map(np.asarray, found)


def logits_of_changed_params(change, tokens=TOKENS):
  """The plain model by hand, after `change` has been made to a copy of its params."""
  model, params = model_and_params()
  params = jax.tree.map(np.float64, params)
  change(params["params"])
  return reference_logits(params, tokens, model.config)


def scale_output(scale_LH):
  """Multiplies the rows of the output projection that a head is projected by."""

  def change(params):
    for layer in range(L):
      kernel = params[f"blocks_{layer}"]["attention"]["output"]["kernel"]
      kernel *= np.repeat(scale_LH[layer], K)[:, None]

  return change


def add_to_bias(params, vector):
  params["blocks_1"]["attention"]["output"]["bias"] += vector


@functools.cache
def gradients():
  """Of the logits' variance: in the scales, at 1, and in a vector, at 0."""

  def loss(scale, vector):
    edits = interpret.scale_heads(scale), steer(vector, [0, 1], "residual_between")
    return run_with(*edits).var()

  return jax.jit(jax.grad(loss, (0, 1)))(np.ones((L, H), "f4"), 0 * VECTOR)


class EditsTest(chex.TestCase):
  def test_axes_that_are_left_out(self):
    """Each site in its own way: by layer, by head, by place, by what is added."""
    rng = np.random.default_rng(3)
    arrays = {}
    for number, (site, axes) in enumerate(interpret.TAPS.items()):
      shape = unedited()[1][site].shape
      first, last = number % (len(axes) - 1), 1 + number % 2
      arrays[site] = (
        rng.random(shape[: first + 1]) < 0.7,
        rng.normal(size=shape[:first]).astype("f4"),
        rng.normal(size=shape[-last:]).astype("f4"),
      )

    @jax.jit
    def run():
      edits = [interpret.make_edit(site, *arrays[site]) for site in arrays]
      return edits, run_with(*edits)

    edits, logits = run()
    assert_close(logits, logits_with(*edits))

  def test_scaled_heads(self):
    scale = np.array([[0.5, -1.0], [3.0, 1.0]])
    assert_close(
      logits_with(interpret.scale_heads(scale)),
      logits_of_changed_params(scale_output(scale)),
    )

  @parameterized.parameters(([[1, 0], [0, 0]],), ([[0, 1], [1, 0]],))
  def test_heads_ablated_to_zero(self, heads):
    assert_close(
      logits_with(ablate_heads(heads)),
      logits_of_changed_params(scale_output(1 - np.array(heads))),
    )

  def test_heads_ablated_to_their_mean(self):
    mean = unedited()[1].head_output.mean((2, 3), keepdims=True)

    def change(params):
      output = params["blocks_1"]["attention"]["output"]
      output["bias"] += np.asarray(mean[1, 0, 0, 0]) @ output["kernel"][:K]
      output["kernel"][:K] = 0

    assert_close(
      logits_with(ablate_heads([[0, 0], [1, 0]], mean)),
      logits_of_changed_params(change),
    )

  @parameterized.parameters(
    ("residual_before", [1, 0], ("positional_encoding", "embedding", "embedding")),
    ("residual_between", [0, 1], ("blocks_1", "attention", "output", "bias")),
    ("residual_after", [1, 0], ("blocks_0", "feed_forward", "contract", "bias")),
    ("residual_before", [0, 1], ("blocks_0", "feed_forward", "contract", "bias")),
    ("attention_output", [1, 0], ("blocks_0", "attention", "output", "bias")),
    ("mlp_output", [0, 1], ("blocks_1", "feed_forward", "contract", "bias")),
    ("final_norm", True, None),
    ("positions", True, ("positional_encoding", "embedding", "embedding")),
    ("token_embeddings", True, ("positional_encoding", "embedding", "embedding")),
  )
  def test_a_vector_added(self, site, layers, parameter):
    if parameter is None:
      table = model_and_params()[1]["params"]["token_embedding"]["embedding"]
      expected = unedited()[0] + table @ VECTOR
    else:

      def change(params):
        for name in parameter[:-1]:
          params = params[name]
        params[parameter[-1]] += np.broadcast_to(VECTOR, params[parameter[-1]].shape)

      expected = logits_of_changed_params(change)
    edited = logits_with(steer(VECTOR, layers, site=site))
    assert_close(edited, expected)
    self.assertGreater(np.abs(edited - unedited()[0]).max(), 0.1)

  @parameterized.parameters("query", "key", "value")
  def test_a_vector_added_in_one_head(self, site):
    def change(params):
      params["blocks_1"]["attention"]["heads"][site]["bias"][0] += VECTOR[:K]

    edit = interpret.make_edit(site, [[0, 0], [1, 0]], 1.0, VECTOR[:K])
    assert_close(logits_with(edit), logits_of_changed_params(change))

  def test_scores_and_mlp_hidden(self):
    def cold(params):
      query = params["blocks_0"]["attention"]["heads"]["query"]
      query["kernel"][1] *= 2
      query["bias"][1] *= 2

    edit = interpret.make_edit("scores", [[0, 1], [0, 0]], 2.0, 0.0)
    assert_close(logits_with(edit), logits_of_changed_params(cold))

    def without_neuron(params):
      params["blocks_1"]["feed_forward"]["contract"]["kernel"][2] = 0

    neuron = np.arange(6) == 2
    mask = np.zeros((L, 1, 1, 6), bool)
    mask[1, ..., neuron] = True
    edit = patch("mlp_hidden", 0.0, mask)
    assert_close(logits_with(edit), logits_of_changed_params(without_neuron))

  def test_a_pattern_replaced(self):
    def uniform(params):
      query = params["blocks_0"]["attention"]["heads"]["query"]
      query["kernel"][1] = query["bias"][1] = 0  # asks nothing: all scores are 0

    weights = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    edit = interpret.replace_pattern(weights, [[0, 1], [0, 0]])
    assert_close(logits_with(edit), logits_of_changed_params(uniform))

  def test_a_patch_at_one_position_is_another_token_there(self):
    model, _ = model_and_params()
    others = (TOKENS + 1) % 11
    _, other = traced()(others)
    mixed = TOKENS.copy()
    mixed[:, 2] = others[:, 2]
    expected = logits_of_changed_params(lambda params: None, mixed)
    for site, layers in (("residual_before", [0]), ("token_embeddings", None)):
      at = dict(layers=layers, positions=[2], length=5)
      mask = jax.jit(functools.partial(select, model, site, **at))()
      assert_close(logits_with(patch(site, other[site], mask)), expected)

  @parameterized.parameters("residual_between", "residual_after", "final_norm")
  def test_a_patch_of_everything_is_the_other_run(self, site):
    logits, trace = traced()((TOKENS + 3) % 11)
    assert_close(logits_with(patch(site, getattr(trace, site))), logits)

  def test_edits_of_one_site_come_in_order(self):
    add = steer(VECTOR, [1, 0])
    double = interpret.make_edit("residual_before", [1, 0], 2.0, 0 * VECTOR)
    before = unedited()[1].residual_before[0]
    model, params = model_and_params()
    run = jax.jit(functools.partial(interpret.trace, model, taps=["residual_before"]))
    for edits, expected in (
      ((add, double), 2 * (before + VECTOR)),
      ((double, add), 2 * before + VECTOR),
    ):
      _, trace = run(params, TOKENS, edits)
      assert_close(np.asarray(trace.residual_before)[0], expected)

  def test_two_places_of_one_layers_stream(self):
    def change(params):
      params["positional_encoding"]["embedding"]["embedding"] += VECTOR
      params["blocks_0"]["attention"]["output"]["bias"] -= 3 * VECTOR

    edits = steer(VECTOR, [1, 0]), steer(-3 * VECTOR, [1, 0], "residual_between")
    assert_close(logits_with(*edits), logits_of_changed_params(change))

  def test_the_stream_keeps_its_dtype(self):
    """However exact the vector that is added: else all that follows were as slow."""
    model = make_model(dtype="bfloat16")
    for site in ("token_embeddings", "residual_before", "residual_between"):
      edit = steer(VECTOR, True, site)
      traced = functools.partial(interpret.trace, model, edits=[edit])
      _, trace = jax.eval_shape(traced, random_params(model, scale=0.5), TOKENS)
      chex.assert_type(trace.residual_after, jnp.bfloat16)
      chex.assert_type(trace[site], jnp.bfloat16)

  def test_the_trace_has_the_edited_values(self):
    edits = [ablate_heads(np.ones((L, H))), steer(VECTOR, [0, 1], "residual_between")]
    model, params = model_and_params()
    taps = ["head_output", "residual_before", "residual_between"]
    run = jax.jit(functools.partial(interpret.trace, model, taps=taps))
    trace = jax.tree.map(np.asarray, run(params, TOKENS, edits)[1])
    self.assertEqual(np.abs(trace.head_output).max(), 0)
    for layer, added in enumerate((0 * VECTOR, VECTOR)):
      bias = params["params"][f"blocks_{layer}"]["attention"]["output"]["bias"]
      assert_close(
        trace.residual_between[layer] - trace.residual_before[layer],
        np.broadcast_to(bias + added, (3, 5, D)),
        scale=trace.residual_between[layer],
      )

  @parameterized.parameters(
    dict(), dict(num_heads=1, dtype="bfloat16", tied_embeddings=False)
  )
  def test_with_every_mask_zero_nothing_changes_to_the_bit(self, **changes):
    model = make_model(num_layers=1, **changes)
    params = random_params(model, scale=0.5)
    edits = [interpret.make_edit(site, False, 2.0, np.nan) for site in interpret.TAPS]

    def run(params, edits):
      return interpret.trace(model, params, TOKENS, edits, taps=["residual_after"])

    # XLA must not skip roundings between steps that it fuses: an edit between them
    # brings these back.
    run = jax.jit(run, compiler_options={"xla_allow_excess_precision": False})
    chex.assert_trees_all_equal(run(params, edits), run(params, ()))

  def test_scaled_by_one_nothing_changes(self):
    edits = [interpret.make_edit(site, True, 1.0, 0.0) for site in interpret.TAPS]
    chex.assert_trees_all_equal(logits_with(*edits), logits_with())
    assert_close(logits_with(), unedited()[0])

  def test_published_weights(self):
    model, params = pretrained.load(GOLDEN / "plain")
    config = model.config
    tokens = TOKENS % config.vocab_size
    heads = np.zeros((config.num_layers, config.num_heads), bool)
    heads[-1, 0] = True
    run = jax.jit(functools.partial(interpret.trace, model, taps=()))
    logits, _ = run(params, tokens, [ablate_heads(heads)])
    output = params["params"][f"blocks_{config.num_layers - 1}"]["attention"]["output"]
    output["kernel"] = np.array(output["kernel"])
    output["kernel"][: config.head_dim] = 0
    assert_close(logits, run(params, tokens, [ablate_heads(0 * heads)])[0])


class DataTest(chex.TestCase):
  def test_all_heads_ablated_in_one_vmapped_call(self):
    masks = np.eye(L * H, dtype=bool).reshape(-1, L, H)
    edits = jax.vmap(ablate_heads)(masks)
    self.assertEqual(edits.site, "head_output")
    at_once = np.asarray(jax.jit(jax.vmap(run_with))(edits))
    for logits, mask in zip(at_once, masks, strict=True):
      assert_close(logits, logits_of_changed_params(scale_output(~mask)))

  def test_an_edit_is_an_argument_of_jit(self):
    run = jax.jit(lambda edit: run_with(edit))
    for scale in (1.0, 0.0, -2.0):
      scales = np.full((L, H), scale, "f4")
      assert_close(
        run(interpret.scale_heads(scales)),
        logits_of_changed_params(scale_output(scales)),
      )
    self.assertEqual(run._cache_size(), 1)

  def slopes(self, shape, change):
    """By hand: `change(argument)` makes of params what the argument would."""

    def exact_loss(argument):
      return logits_of_changed_params(change(argument)).var()

    slopes = np.zeros(shape)
    for place in np.ndindex(*shape):
      step = np.zeros(shape)
      step[place] = 1e-4  # whose square is what the slope may be off by
      slopes[place] = (exact_loss(step) - exact_loss(-step)) / 2e-4
    return slopes

  def test_the_gradient_of_a_scale(self):
    slopes = self.slopes((L, H), lambda step: scale_output(1 + step))
    assert_close(gradients()[0], slopes, 2 * ROUNDINGS)

  def test_the_gradient_of_a_vector_that_is_still_zero(self):
    def change(vector):
      return lambda params: add_to_bias(params, vector)

    slopes = self.slopes((D,), change)
    self.assertGreater(np.abs(slopes).max(), 1e-2)
    assert_close(gradients()[1], slopes, 2 * ROUNDINGS)

  def test_the_callers_arrays_stay_as_they_are(self):
    model, params = model_and_params()
    heads, value = np.ones((L, H), bool), np.ones(K, "f4")
    before = copy.deepcopy((params, heads, value))
    edits = [ablate_heads(heads, value)]
    _, edited_params = interpret.edited(model, params, edits)
    jax.eval_shape(lambda: interpret.trace(model, params, TOKENS, edits))
    self.assertIn("edits", edited_params)
    chex.assert_trees_all_equal((params, heads, value), before)
    self.assertLen(edits, 1)


class RefusalsTest(chex.TestCase):
  @parameterized.parameters(
    (lambda: patch("residual", 0.0), "unknown tap 'residual'.*residual_before"),
    (lambda: ablate_heads(np.ones((3, 2))), "'head_output': axis L is 3: .* 1 or 2"),
    (lambda: ablate_heads(np.ones((2, 3))), "'head_output': axis H is 3: .* 1 or 2"),
    (lambda: steer(np.ones(7), [1, 0]), "'residual_before': axis D is 7: .* 1 or 8"),
    (lambda: steer(np.ones((4, 8)), [1, 0]), "axis T is 4: must be 1 or 5"),
    (
      lambda: interpret.make_edit("residual_before", True, np.ones((1, 1, 4)), 0.0),
      "'residual_before': axis T is 4: must be 1 or 5",
    ),
    (
      lambda: patch("mlp_output", 0.0, np.ones((1, 1, 4))),
      "axis T is 4: must be 1 or 5",
    ),
    (lambda: patch("positions", np.ones((3, 5, 8))), "axis B is 3: must be 1 or 1"),
    (lambda: patch("query", 0.0, np.ones((2,) * 6)), r"mask .* at most 5 axes, LHBTK"),
    (
      lambda: ablate_heads([[1, 0], [0, 0]]).replace(scale=jnp.ones(2)),
      r"has shape \(2,\): must have 5 axes, LHBTK",
    ),
    (
      lambda: interpret.Edit("heads", jnp.ones(1), jnp.ones(1), jnp.ones(1)),
      "unknown tap 'heads'",
    ),
  )
  def test_an_edit_that_does_not_fit(self, make, message):
    with self.assertRaisesRegex(InputError, message):
      jax.eval_shape(lambda: run_with(make()))

  @parameterized.parameters(
    (("weights",), dict(layers=[2]), "layers has 2: allowed: 0, 1$"),
    (("weights",), dict(heads=[0, -1]), "heads has -1: allowed: 0, 1$"),
    (("mlp_output",), dict(heads=[0]), "heads of 'mlp_output': its axes are LBTD"),
    (("weights",), dict(positions=[0]), "length is None"),
    (("weights",), dict(positions=[3], length=3), "positions has 3: allowed: 0, 1, 2$"),
    (("weigths",), {}, "unknown tap 'weigths': did you mean 'weights'"),
  )
  def test_a_selection_that_does_not_exist(self, site, indices, message):
    with self.assertRaisesRegex(InputError, message):
      jax.eval_shape(lambda: select(make_model(), *site, **indices))


class SelectTest(chex.TestCase):
  def test_names_what_it_selects(self):
    model = make_model(num_layers=3)
    at = dict(layers=[0, 2], heads=[1], positions=[3], length=4)
    mask = jax.jit(lambda: select(model, "weights", **at))()
    chex.assert_shape(mask, (3, 2, 1, 4, 1))
    self.assertEqual(np.argwhere(mask).tolist(), [[0, 1, 0, 3, 0], [2, 1, 0, 3, 0]])
    whole = select(model, "final_norm")
    chex.assert_shape(whole, (1, 1, 1))
    self.assertTrue(np.asarray(whole).all())

"""Pure functions of a value, spliced in: against a NumPy model with the same done."""

import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import InputError, interpret
from gpt2_flax.interpret import select, steer, transform
from tests.close import assert_close, ROUNDINGS
from tests.interpret.test_patching import (
  D,
  H,
  K,
  L,
  metric,
  model_and_params,
  run_by_hand,
  TOKENS,
  traced,
)

RNG = np.random.default_rng(7)
DIRECTIONS = RNG.normal(size=(3, D)).astype("f4")
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=-1, keepdims=True)


def without(x, direction):
  """Directional ablation; of arrays of JAX and of NumPy."""
  return x - (x @ direction)[..., None] * direction[None, None]


def squared(x, factor):
  return factor * x**2


def logits_with(*edits):
  return interpret.trace(*model_and_params(), TOKENS, edits, ())[0]


@functools.cache
def program():
  """For edits of one site with one function, whatever their arrays."""
  return jax.jit(lambda edit: logits_with(edit))


def before_layer(layer, *edits):
  """The stream, which takes less to compile than the logits."""

  @jax.jit
  def run(edits):
    _, trace = interpret.trace(*model_and_params(), TOKENS, edits, ["residual_before"])
    return trace.residual_before[layer]

  return run(edits)


def at_residual(layers, function, positions=slice(None)):
  """By hand: logits and steps where a function is put in, before these layers."""

  def replace(name, layer, value):
    if name != "residual_before" or layer not in layers:
      return value
    value = value.copy()
    value[:, positions] = function(value)[:, positions]
    return value

  return run_by_hand(replace=replace)


class TransformTest(chex.TestCase):
  @parameterized.parameters(([1], None), ([0, 2], [1, 2]), (None, None))
  def test_of_the_stream(self, layers, positions):
    at = dict(layers=layers, positions=positions, length=4)
    of_mask = functools.partial(select, model_and_params()[0], "residual_before", **at)
    mask = np.broadcast_to(jax.jit(of_mask)(), (L, 1, 4, 1))  # one program for all
    edit = transform("residual_before", without, DIRECTIONS[0], mask=mask)
    expected, _ = at_residual(
      range(L) if layers is None else layers,
      lambda x: without(x, DIRECTIONS[0].astype("f8")),
      positions or slice(None),
    )
    assert_close(program()(edit), expected)

  def test_of_chosen_heads(self):
    mask = np.array([[0, 1], [0, 0], [1, 0]], bool)

    def replace(name, layer, value):
      chosen = mask[layer][:, None, None, None]
      return np.where(chosen, squared(value, 0.5), value) if name == "value" else value

    edit = transform("value", squared, 0.5, mask=mask)
    assert_close(program()(edit), run_by_hand(replace=replace)[0])

  def test_the_function_sees_one_layer_and_head(self):
    shapes = []

    def look(x):
      shapes.append(x.shape)
      return x

    edits = transform("query", look), transform("mlp_output", look)
    jax.eval_shape(lambda: logits_with(*edits))
    self.assertEqual(set(shapes), {(2, 4, K), (2, 4, D)})

  def test_comes_in_its_turn_among_the_edits_of_a_site(self):
    vector = DIRECTIONS[1]
    double = functools.partial(squared, factor=2.0)
    squares = transform("residual_before", double, mask=[0, 1, 0])
    adds = steer(vector, [0, 1, 0])
    for edits, function in (
      ((squares, adds), lambda x: 2 * x**2 + vector),
      ((adds, squares), lambda x: 2 * (x + vector) ** 2),
    ):
      _, steps = at_residual([1], function)
      assert_close(before_layer(1, *edits), steps["residual_before", 1])

  def test_scale_and_value_come_after_the_function(self):
    edit = transform("residual_before", squared, 2.0, mask=[0, 1, 0])
    edit = edit.replace(scale=3 * edit.scale, value=edit.value + 0.5)
    _, steps = at_residual([1], lambda x: 6 * x**2 + 0.5)
    assert_close(before_layer(1, edit), steps["residual_before", 1])

  def test_its_arguments_are_arguments_of_jit(self):
    @jax.jit
    def run(direction):
      return logits_with(transform("residual_before", without, direction))

    for direction in DIRECTIONS:
      expected, _ = at_residual(range(L), lambda x, d=direction: without(x, d))
      assert_close(run(direction), expected)
    self.assertEqual(run._cache_size(), 1)

  def test_an_edit_is_an_argument_of_jit(self):
    run = program()
    before = run._cache_size()
    for direction in DIRECTIONS[:2]:
      mask = np.ones((L, 1, 4, 1), bool)
      edit = transform("residual_before", without, direction, mask=mask)
      expected, _ = at_residual(range(L), lambda x, d=direction: without(x, d))
      assert_close(run(edit), expected)
    self.assertLessEqual(run._cache_size(), before + 1)

  def test_vmapped_over_its_arguments(self):
    def run(direction):
      return logits_with(
        transform("residual_before", without, direction, mask=[1, 0, 0])
      )

    at_once = np.asarray(jax.jit(jax.vmap(run))(DIRECTIONS))
    for logits, direction in zip(at_once, DIRECTIONS, strict=True):
      expected, _ = at_residual([0], lambda x, d=direction: without(x, d))
      assert_close(logits, expected)

  def test_the_gradient_of_an_argument(self):
    def run(factor):
      return metric(logits_with(transform("head_output", squared, factor)))

    def by_hand(factor):
      def replace(name, layer, value):
        return squared(value, factor) if name == "head_output" else value

      return metric(run_by_hand(replace=replace)[0])

    step = 1e-4  # whose square is what the slope may be off by
    slope = (by_hand(0.5 + step) - by_hand(0.5 - step)) / (2 * step)
    self.assertGreater(abs(slope), 0.1)
    assert_close(jax.jit(jax.grad(run))(0.5), np.float64(slope), 4 * ROUNDINGS)

  def test_another_shape_is_refused(self):
    edit = transform("mlp_output", lambda x: x[..., :1])
    with self.assertRaisesRegex(
      InputError, r"'mlp_output'.* shape \(2, 4, 1\): must be \(2, 4, 8\)"
    ):
      jax.eval_shape(lambda: logits_with(edit))
    with self.assertRaisesRegex(InputError, "unknown tap 'mlp'"):
      transform("mlp", jnp.abs)

  def test_heads_alike_are_transformed_alike(self):
    """A function of no argument, at all heads of all layers."""
    model, params = model_and_params()
    trace = functools.partial(interpret.trace, model, taps=["weights"])
    _, run = jax.jit(trace)(params, TOKENS, edits=[transform("weights", jnp.sqrt)])
    plain = traced(others=False).weights[0]
    assert_close(np.asarray(run.weights)[0], np.sqrt(plain))
    chex.assert_shape(run.weights, (L, H, 2, 4, 4))

"""Muon: what it makes of a matrix, and that its steps are those of optax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt2_flax.training import muon
from tests.close import assert_close

SHAPES = {"tall": (7, 4), "wide": (4, 7), "square": (5, 5), "heads": (3, 2, 5, 4)}


def matrices(seed):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}


class MuonTest(chex.TestCase):
  def test_newton_schulz_acts_on_singular_values_alone(self):
    matrix = np.asarray(matrices(0)["wide"], np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values /= np.sqrt((values**2).sum())
    for _ in range(5):
      values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    self.assertLess(np.abs(np.log(values)).max(), np.log(1.5))
    # three products of up to 7 terms, five times, each of which may treble an error
    found = jax.jit(muon.newton_schulz)(matrix.astype("f4"))
    assert_close(found, left * values @ right, 5 * 3 * 7 * 8)

  def test_several_steps_are_those_of_optax(self):
    params = matrices(0)
    dimensions = {name: optax.contrib.MuonDimensionNumbers(-2, -1) for name in params}
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=dimensions)
    ours = optax.chain(
      muon.scale_by_muon(),
      optax.stateless(lambda updates, _: muon.scaled_by_shape(updates)),
      optax.scale(-0.1),
    )
    states = [jax.jit(rule.init)(params) for rule in (theirs, ours)]
    update_theirs, update_ours = jax.jit(theirs.update), jax.jit(ours.update)
    for step in range(4):
      grads = matrices(step + 1)
      expected, states[0] = update_theirs(grads, states[0], params)
      found, states[1] = update_ours(grads, states[1], params)
      assert_close(found, expected, 5 * 3 * 7 * 8)

  def test_a_kernel_and_those_of_its_shape_turned_are_worked_on_together(self):
    kernels = {"expand": jnp.ones((3, 6)), "contract": jnp.ones((6, 3))}
    program = str(jax.make_jaxpr(muon.orthogonalised)(kernels))
    self.assertEqual(program.count("dot_general["), 3 * muon.ITERATIONS)

  def test_a_kernel_of_zeros_stays_finite(self):
    found = jax.jit(muon.orthogonalised)({"kernel": jnp.zeros((3, 4))})
    np.testing.assert_array_equal(found["kernel"], 0.0)

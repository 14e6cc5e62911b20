"""Muon: each kernel's step is made orthogonal, by devices that share the kernels out.

Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks". The
rule and its state are those of `optax.contrib.muon`. There each device does all the
work; here each works on its part of the matrices, and the results are sent round.

Axes: G matrices of one shape, M rows, N columns, M at most N.
"""

from collections.abc import Callable
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

BETA = 0.95  # decay of the gradients' average
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def scale_by_muon() -> optax.GradientTransformation:
  """Momentum with Nesterov's look ahead, then `orthogonalised`.

  A kernel is its last two axes; those before them (heads, layers) count kernels.
  """
  theirs = optax.contrib.scale_by_muon(COEFFICIENTS, ITERATIONS, BETA)

  def update(updates: Any, state: Any, params: Any = None):
    del params
    count = optax.safe_increment(state.count)
    mean = optax.tree.update_moment(updates, state.mu, BETA, 1)
    ahead = jax.tree.map(
      lambda mean, grad: BETA * mean + (1 - BETA) * grad,
      optax.tree.bias_correction(mean, BETA, optax.safe_increment(count)),
      optax.tree.bias_correction(updates, BETA, count),
    )
    return orthogonalised(ahead), state._replace(count=count, mu=mean)

  return optax.GradientTransformation(theirs.init, update)


def scaled_by_shape(updates: Any) -> Any:
  """Each kernel times sqrt(max(1, outputs / inputs))."""
  return jax.tree.map(lambda x: x * max(1, x.shape[-1] / x.shape[-2]) ** 0.5, updates)


def orthogonalised(kernels: Any) -> Any:
  """A tree of kernels, each replaced by about the nearest orthogonal one.

  Those of one shape are worked on together, wherever in the tree they are.
  """
  leaves, treedef = jax.tree.flatten(kernels)
  groups = {}
  for index, leaf in enumerate(leaves):
    groups.setdefault(tuple(sorted(leaf.shape[-2:])), []).append(index)
  for indices in groups.values():
    parts = [_flat(leaves[index]) for index in indices]
    ends = list(itertools.accumulate(len(part) for part in parts))
    done = jnp.split(_shared_out(newton_schulz, jnp.concatenate(parts)), ends[:-1])
    for index, part in zip(indices, done, strict=True):
      leaves[index] = _unflat(part, leaves[index].shape)
  return treedef.unflatten(leaves)


def _flat(kernels: jax.Array) -> jax.Array:
  """[..., in, out] -> [G, M, N]."""
  matrices = kernels.reshape(-1, *kernels.shape[-2:])
  return matrices.mT if kernels.shape[-2] > kernels.shape[-1] else matrices


def _unflat(matrices_GMN: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `_flat`."""
  return (matrices_GMN.mT if shape[-2] > shape[-1] else matrices_GMN).reshape(shape)


def newton_schulz(matrix_MN: jax.Array) -> jax.Array:
  """U S' V^T for a matrix U S V^T, with all of S' within about 0.7 to 1.2.

  Iterations of a X + b (X X^T) X + c (X X^T)^2 X, each of which acts on the singular
  values alone: Jordan et al. (2024), "The Newton-Schulz iteration".
  """
  a, b, c = COEFFICIENTS
  x = matrix_MN / (jnp.linalg.norm(matrix_MN) + 1e-8)
  for _ in range(ITERATIONS):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x


def _shared_out(
  function: Callable[[jax.Array], jax.Array], matrices_GMN: jax.Array
) -> jax.Array:
  """The function of each matrix: [G, M, N] -> [G, M, N], a part of G on each device.

  The devices are those of the mesh that `jax.set_mesh` has set.
  """
  # On CPUs a product of two matrices is faster than one of many pairs.
  each = jax.lax.map if jax.default_backend() == "cpu" else lambda f, x: jax.vmap(f)(x)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return each(function, matrices_GMN)
  num_matrices = len(matrices_GMN)
  missing = -num_matrices % mesh.size
  padded = jnp.pad(matrices_GMN, ((0, missing), (0, 0), (0, 0)))
  over_all, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
  share = jax.shard_map(
    lambda part_GMN: each(function, part_GMN), in_specs=over_all, out_specs=over_all
  )
  # Matrices that are split are brought together first: the compiler knows no way from
  # parts of each matrix to whole ones for each device, and warns.
  padded = jax.lax.with_sharding_constraint(padded, whole)
  return jax.lax.with_sharding_constraint(share(padded), whole)[:num_matrices]

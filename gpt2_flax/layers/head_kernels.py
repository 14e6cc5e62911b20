"""The kernels of all heads, laid out as one matrix.

Axes: H heads, D embed_dim, K head_dim.
"""

from typing import Any

import jax


def swap_heads(params: Any) -> Any:
  """The heads' kernels [H, D, K] <-> [D, H, K], which is one matrix of all heads.

  XLA multiplies a token with all heads at once. For that it would rearrange the
  kernels at every token; swapped before, they stay as they are.
  """

  def swap(path: tuple, leaf: jax.Array) -> jax.Array:
    names = {getattr(key, "key", None) for key in path}
    return leaf.swapaxes(0, 1) if {"heads", "kernel"} <= names else leaf

  return jax.tree_util.tree_map_with_path(swap, params)

"""Parameters of a module: what `init` would give, and values drawn in their place.

To run `init` takes seconds to compile, and to trace it a tenth of one; so it is traced
once for each module and shape of its input.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

TOKEN = jax.ShapeDtypeStruct((1, 1), "int32")


def shapes_of(module: nn.Module, x: Any = TOKEN) -> Any:
  """Of what `init` would give for an input like x, with the names of axes.

  All who ask are given the same tree: it is not to be changed.
  """
  return _shapes_of(module, jax.ShapeDtypeStruct(x.shape, x.dtype))


@functools.cache
def _shapes_of(module: nn.Module, x: jax.ShapeDtypeStruct) -> Any:
  return jax.eval_shape(module.init, jax.random.key(0), x)


def random_params(
  module: nn.Module, x: Any = TOKEN, scale: float = 1.0, seed: int = 0
) -> Any:
  """Drawn wide, so that every part matters and no bias is zero; axes have no names."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(0, scale, leaf.shape).astype("f4"),
    nn.unbox(shapes_of(module, x)),
  )

"""Parameters of a module: what `init` would give, and values drawn in their place.

To run `init` takes seconds to compile, and to trace it a tenth of one; so it is traced
once for each module and shape of its input, and values are drawn by the shapes of one
model for all that have the same.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.transformer import GPT2

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
    nn.unbox(shapes_of(_plainest(module), x)),
  )


def wide_params(model: GPT2, scale: float, seed: int = 0) -> Any:
  """Kernels and embeddings drawn wide, biases and norms as `init` gives them: the next
  token depends on all before it."""

  def drawn(path: tuple, leaf: np.ndarray) -> np.ndarray:
    constant = {"bias": np.zeros_like, "scale": np.ones_like}.get(path[-1].key)
    return constant(leaf) if constant else leaf

  return jax.tree_util.tree_map_with_path(
    drawn, random_params(model, TOKEN, scale, seed)
  )


# What the parameters of a model depend on, besides whether it learns its positions.
SHAPED_BY = (
  *("vocab_size", "num_layers", "num_heads", "embed_dim", "mlp_dim"),
  *("tied_embeddings", "feed_forward", "scan_layers"),
)


def _plainest(module: nn.Module) -> nn.Module:
  """Of the models whose parameters have the same names and shapes, always the same."""
  if not isinstance(module, GPT2) or module != GPT2(module.config):
    return module  # it has parts of its own
  config = module.config
  fields = {name: getattr(config, name) for name in SHAPED_BY}
  if config.positional_encoding == "learned":
    fields |= dict(positional_encoding="learned", context_length=config.context_length)
  else:
    fields |= dict(positional_encoding="none", context_length=1)
  return GPT2(GPT2Config(**fields))

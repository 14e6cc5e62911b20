"""Parameters of a module: what `init` would give, and values drawn in their place.

To run `init` takes seconds to compile, and to trace it a tenth of one; so it is traced
once for each module and shape of its input. Of a GPT2 one layer is traced, and once for
all models that have the same parameters.
"""

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from gpt2_flax import GPT2

TOKEN = jax.ShapeDtypeStruct((1, 1), "int32")


def shapes_of(module: nn.Module, x: Any = TOKEN) -> Any:
  """Of what `init` would give for an input like x, with the names of axes.

  All who ask are given the same tree: it is not to be changed.
  """
  if type(module) is not GPT2 or module.config.scan_layers:
    return _shapes_of(module, jax.ShapeDtypeStruct(x.shape, x.dtype))
  config, learned = module.config, module.config.positional_encoding == "learned"
  one_layer = dataclasses.replace(
    config,
    num_layers=1,
    positional_encoding="learned" if learned else "none",
    context_length=config.context_length if learned else 1,
    **dict(causal=True, dropout_rate=0.0, dtype="float32", activation="relu"),
    **dict(layer_norm_epsilon=1e-5, scale_attention=True),
    scale_attention_by_layer=False,
    remat="none",
  )
  return _repeated(module.clone(config=one_layer), config.num_layers)


@functools.cache
def _repeated(one_layer: GPT2, num_layers: int) -> Any:
  """The shapes of so many layers, all alike."""
  shapes = _shapes_of(one_layer, TOKEN)
  others = dict(shapes["params"])
  block = others.pop("blocks_0")
  blocks = {f"blocks_{layer}": block for layer in range(num_layers)}
  return shapes | {"params": dict(sorted((others | blocks).items()))}


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


def wide_params(model: GPT2, scale: float, seed: int = 0) -> Any:
  """Kernels and embeddings drawn wide, biases and norms as `init` gives them: the next
  token depends on all before it."""

  def drawn(path: tuple, leaf: np.ndarray) -> np.ndarray:
    constant = {"bias": np.zeros_like, "scale": np.ones_like}.get(path[-1].key)
    return constant(leaf) if constant else leaf

  params = random_params(model, TOKEN, scale, seed)
  return jax.tree_util.tree_map_with_path(drawn, params)

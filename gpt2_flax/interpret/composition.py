"""How far heads are made to read what earlier heads write: from the weights alone.

A head moves what it reads by one matrix, value times output, and decides where to look
by another, query times key. Both are [D, D] of rank K, and are kept as their factors.

Axes: L layers, H heads, K head_dim, D embed_dim.
"""

import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.interpret.patching import RECEIVING
from gpt2_flax.layers.layer_stacking import unstack_layers


class HeadWeights(NamedTuple):
  """What heads read with and write with, as seen from the residual stream.

  The scale of the norm before is multiplied in. The norm takes the mean over D away,
  so these do too: what lies along it is neither read nor written. What depends on the
  text is left out, and so are biases: the norm's division.

      moves_DD = weights.value[layer, head] @ weights.output[layer, head]  # "OV"
      looks_DD = weights.query[layer, head] @ weights.key[layer, head].T  # "QK"

  A row vector times moves_DD is what is written; looks_DD has the query on its left.
  `jnp.linalg.svd` of either shows which directions a head reads, and what for.

  Attributes:
    query, key, value: [L, H, D, K].
    output: [L, H, K, D].
  """

  query: jax.Array
  key: jax.Array
  value: jax.Array
  output: jax.Array


def head_weights(model: Any, params: Any) -> HeadWeights:
  """The weights of all heads, with their norms.

  Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", on
  attention heads as independent and additive; and on handling layer normalization.

  Args:
    model: a GPT2, or what `edited` returns, whose edits do not count.
  """
  weights = unstack_layers(nn.unbox(params["params"]))
  config = model.config
  blocks = [weights[f"blocks_{layer}"] for layer in range(config.num_layers)]

  def reads(step: str) -> jax.Array:
    kernel_LHDK = jnp.stack([b["attention"]["heads"][step]["kernel"] for b in blocks])
    scale_LD = jnp.stack([b["attention_norm"]["scale"] for b in blocks])
    return _without_mean(kernel_LHDK * scale_LD[:, None, :, None], axis=-2)

  output = jnp.stack([b["attention"]["output"]["kernel"] for b in blocks])
  output_LHKD = output.reshape(
    config.num_layers, config.num_heads, config.head_dim, config.embed_dim
  )
  return HeadWeights(
    reads("query"), reads("key"), reads("value"), _without_mean(output_LHKD, axis=-1)
  )


@functools.partial(jax.jit, static_argnames=("model", "to"))
def composition_scores(model: Any, params: Any, to: str = "query") -> jax.Array:
  """How much of what a head writes a later head reads: float32 [L, H, L, H], 0 to 1.

  ||A B|| / (||A|| ||B||), Frobenius norms: A is what the earlier head moves, B what the
  later one looks with (query, key) or moves (value). 1 is two heads made of the same
  single direction. Matrices that know nothing of each other score about D ** -0.5.

  It does not show that the heads work together: weights say nothing of where either
  looks, nor of what is in the stream. Set `path_patching` beside it.

  Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", on
  two-layer attention-only transformers.

  Args:
    model: a GPT2, or what `edited` returns, whose edits do not count.
    to: through the later head's "query", "key" or "value".

  Returns:
    [earlier layer, its head, later layer, its head]; 0 where the one is not before the
    other, NaN where a head's weights are all 0.

  Raises:
    InputError: `to` is none of those; or query and key are turned by their positions,
      so that no one matrix says where a head looks.
  """
  if to not in RECEIVING:
    raise unknown_name("part of a receiver", to, RECEIVING)
  config = model.config
  if config.positional_encoding == "rotary" and to != "value":
    raise InputError(
      f"to is {to!r}: must be 'value' where model.positional_encoding is 'rotary'"
    )
  query, key, value, output = head_weights(model, params)
  write_LHDK = output.mT
  read_LHDK, rest_LHDK = {
    "query": (query, key),
    "key": (key, query),
    "value": (value, write_LHDK),
  }[to]
  # In A B = V O R S^T, orthonormal columns may be left away from V and S: K x K remain.
  value_LHKK, rest_LHKK = _triangular(value), _triangular(rest_LHDK)
  earlier_LH = _size(value_LHKK @ output)
  later_LH = _size(read_LHDK @ rest_LHKK.mT)

  def with_all(earlier: tuple[jax.Array, jax.Array]) -> jax.Array:
    moves_KD = earlier[0] @ earlier[1]
    return _size(jnp.einsum("KD,LHDI,LHJI->LHKJ", moves_KD, read_LHDK, rest_LHKK))

  heads = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (value_LHKK, output))
  both = jax.lax.map(with_all, heads).reshape(earlier_LH.shape + later_LH.shape)
  scores = both / (earlier_LH[:, :, None, None] * later_LH[None, None])
  layer = jnp.arange(config.num_layers)
  is_before = layer[:, None, None, None] < layer[None, None, :, None]
  return jnp.where(is_before, scores, 0.0)


def _without_mean(array: jax.Array, axis: int) -> jax.Array:
  return array - array.mean(axis, keepdims=True)


def _triangular(matrix: jax.Array) -> jax.Array:
  """R of Q R: [..., D, K] -> [..., K, K]."""
  return jnp.linalg.qr(matrix, mode="r")


def _size(matrix: jax.Array) -> jax.Array:
  """The Frobenius norm: [..., I, J] -> [...]."""
  return jnp.linalg.norm(matrix, axis=(-2, -1))

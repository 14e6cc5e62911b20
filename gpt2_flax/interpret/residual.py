"""The residual stream as what it is: a sum, to which each part of the model adds.

Axes: L layers, H heads, B batch, T position, K head_dim, D embed_dim.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError
from gpt2_flax.interpret.trace import Trace
from gpt2_flax.layers.layer_stacking import unstack_layers


class ResidualParts(NamedTuple):
  """What each part of the model adds to the residual stream; together, its end.

  Attributes:
    token_embeddings: [B, T, D], of the token that is read.
    positions: [B, T, D], of its place.
    heads: [L, H, B, T, D], through their share of the output projection.
    attention_bias: [L, B, T, D], the bias of that projection, which is no head's.
    mlp: [L, B, T, D], biases included; None in a model without feed-forward.
  """

  token_embeddings: jax.Array
  positions: jax.Array
  heads: jax.Array
  attention_bias: jax.Array
  mlp: jax.Array | None


def residual_parts(model: Any, params: Any, trace: Trace) -> ResidualParts:
  """The residual stream after the last block, taken apart.

  The parts of an earlier stream are those of the layers before it.

  It shows what is added, not what is read of it: a part may be long and lie where no
  later part looks, or be taken away again by another.

  Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", on
  the residual stream as a sum, and on heads as independent and additive.

  Args:
    trace: with token_embeddings, positions, head_output, and mlp_output where the model
      has one. Of a run whose residual stream and attention_output were not edited: what
      an edit adds is no part of the model. Edits of heads are fine.

  Raises:
    InputError: the trace lacks one of them.
  """
  needed = ("token_embeddings", "positions", "head_output")
  needed += ("mlp_output",) if model.config.feed_forward else ()
  require_taps(trace, *needed)
  weights = unstack_layers(nn.unbox(params["params"]))
  outputs = [
    weights[f"blocks_{layer}"]["attention"]["output"]
    for layer in range(model.config.num_layers)
  ]
  num_layers, num_heads, batch_size, length, head_dim = trace.head_output.shape
  kernel_LHKD = jnp.stack([output["kernel"] for output in outputs]).reshape(
    num_layers, num_heads, head_dim, -1
  )
  bias_LD = jnp.stack([output["bias"] for output in outputs])
  return ResidualParts(
    token_embeddings=trace.token_embeddings,
    positions=jnp.broadcast_to(trace.positions, trace.token_embeddings.shape),
    heads=jnp.einsum("LHBTK,LHKD->LHBTD", trace.head_output, kernel_LHKD),
    attention_bias=jnp.broadcast_to(
      bias_LD[:, None, None], (num_layers, batch_size, length, bias_LD.shape[-1])
    ),
    mlp=trace.mlp_output,
  )


def accumulated_residual(trace: Trace) -> jax.Array:
  """The residual stream as it grows: before the first block, and after each addition.

  Args:
    trace: with residual_before, residual_between and residual_after.

  Returns:
    [2 L + 1, B, T, D]: the embeddings, then after each layer's attention and after its
    feed-forward. In a model without feed-forward the two are the same.

  Raises:
    InputError: the trace lacks one of them.
  """
  require_taps(trace, "residual_before", "residual_between", "residual_after")
  between, after = trace.residual_between, trace.residual_after
  additions = jnp.stack([between, after], 1).reshape(-1, *after.shape[1:])
  return jnp.concatenate([trace.residual_before[:1], additions])


def require_taps(trace: Trace, *taps: str) -> None:
  """Raises an InputError where the trace has not kept one of them."""
  for tap in taps:
    if trace[tap] is None:
      raise InputError(f"the trace has no {tap!r}: taps must include {', '.join(taps)}")

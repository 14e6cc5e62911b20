"""Where the logits come from: layer by layer, and part by part.

Axes: L layers, H heads, B batch, T position, D embed_dim, V vocab_size.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.interpret.residual import require_taps, residual_parts
from gpt2_flax.interpret.trace import Trace
from gpt2_flax.layers.layer_stacking import unstack_layers


def logit_lens(model: Any, params: Any, trace: Trace) -> jax.Array:
  """What the model would say if it stopped after each layer.

  The final norm and the output embeddings, applied to the residual stream: before the
  first block, and after each. The last is the model's own output.

  It does not show that a layer "knows" a token: nothing was trained to be read here,
  and early layers may write in directions that later ones turn round. That a token is
  missing proves nothing (Belrose et al., 2023, "Eliciting Latent Predictions from
  Transformers with the Tuned Lens").

  Source: nostalgebraist (2020), "interpreting GPT: the logit lens".

  Args:
    trace: with residual_before and residual_after.

  Returns:
    float32 [L + 1, B, T, V].
  """
  require_taps(trace, "residual_before", "residual_after")
  stream = jnp.concatenate([trace.residual_before, trace.residual_after[-1:]])

  def read_out(x_BTD: jax.Array) -> jax.Array:
    return model.apply(
      params, x_BTD, method=lambda model, x_BTD: model.unembed(model.final_norm(x_BTD))
    )

  return jax.vmap(read_out)(stream)


class LogitParts(NamedTuple):
  """What each part of the model adds to the logits; together, the logits.

  Each ends on [B, T, V], or on [B, T] where it is about one token a position.

  Attributes:
    token_embeddings: of the token that is read.
    positions: of its position.
    heads: [L, H, ...], through their share of the output projection.
    attention_bias: [L, ...], the bias of that projection, which is no head's.
    mlp: [L, ...], biases included; None in a model without feed-forward.
    final_norm_bias: the same for all tokens that are read.
  """

  token_embeddings: jax.Array
  positions: jax.Array
  heads: jax.Array
  attention_bias: jax.Array
  mlp: jax.Array | None
  final_norm_bias: jax.Array


def logit_attribution(
  model: Any, params: Any, trace: Trace, targets_BT: jax.Array | None = None
) -> LogitParts:
  """Direct logit attribution: the logits as a sum over the parts of the model.

  The residual stream is a sum, and the output embeddings are linear; only the final
  norm is not. Its division, by the stream's own spread, is kept as it was in this run.

  It shows what a part says to the output directly, not what it does: a head that later
  heads read from may matter most and say nothing here, and with the division kept as it
  was, taking a part away changes the logits by something else.

  Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits",
  on the residual stream as a sum; the division is kept as in Wang et al. (2022),
  "Interpretability in the Wild".

  Args:
    trace: whole, of a run whose residual stream, attention_output and final_norm were
      not edited: what an edit adds is no part of the model. Edits of heads are fine.
    targets_BT: int, one token a position whose logit is explained; None for all
      tokens, in H * L times the memory of the logits. The parts of two tokens'
      difference are the differences of their parts.

  Returns:
    float32; they sum to the logits up to the rounding of the model's dtype.
  """
  require_taps(trace, "residual_after")
  parts = residual_parts(model, params, trace)
  weights = unstack_layers(nn.unbox(params["params"]))
  tied = model.config.tied_embeddings
  table_VD = weights["token_embedding" if tied else "output_embedding"]["embedding"]
  scale_D, norm_bias_D = weights["final_norm"]["scale"], weights["final_norm"]["bias"]
  # The norm subtracts the mean over D; subtracting it from the directions is the same.
  read_VD = table_VD * scale_D[None]
  read_VD -= read_VD.mean(-1, keepdims=True)
  variance_BT = trace.residual_after[-1].astype(jnp.float32).var(-1)
  share_BT = jax.lax.rsqrt(variance_BT + model.config.layer_norm_epsilon)

  def say(part: jax.Array) -> jax.Array:
    part = part.astype(jnp.float32) * jnp.expand_dims(
      share_BT, (*range(part.ndim - 3), part.ndim - 1)
    )
    if targets_BT is None:
      return jnp.einsum("...TD,VD->...TV", part, read_VD)
    return jnp.einsum("...BTD,BTD->...BT", part, read_VD[targets_BT])

  constant = table_VD @ norm_bias_D
  if targets_BT is None:
    shape = (*trace.residual_after.shape[1:3], len(constant))
    constant = jnp.broadcast_to(constant, shape)
  else:
    constant = constant[targets_BT]
  said = jax.tree.map(say, parts)._asdict()
  return LogitParts(**said, final_norm_bias=constant)

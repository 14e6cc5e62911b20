"""The loss: cross-entropy, with few logits in memory at a time.

[B, T, V] logits would be by far the largest array of a training step: 3.3 GB in float32
for 16 windows of GPT-2 small. So the positions are worked through in chunks, and while
a chunk's logits are there, they are turned into all that is wanted of them: the loss,
and its gradients in the hidden states and in the output embeddings. Nothing is computed
twice, and no logits are kept: "Liger Kernel" (Hsu et al., 2024), fused linear cross
entropy.

Axes: B batch, T position, D embed_dim, V vocab_size.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.layers.masks import apart
from gpt2_flax.transformer import GPT2

# As `Dataset.batch` gives it, on the host or on devices
Batch = Mapping[str, jax.Array | np.ndarray]

# (model, params, batch, rngs) -> the summed loss, float32 scalar, and the number of
# targets that count. With rngs, {"dropout": key}, it is for training; with None not.
Loss = Callable[
  [Any, Any, Batch, dict[str, jax.Array] | None], tuple[jax.Array, jax.Array]
]

Chunk = tuple[jax.Array, jax.Array]  # of hidden_BTD and targets_BT

# How many logits a device has at a time: 1 GiB in float32, some 5,000 positions of
# GPT-2's vocabulary. Matrix products of that size lose nothing to being cut.
LOGITS_AT_ONCE = 2**28
# Matrix units work in tiles, so rows are added to a large vocabulary until it is a
# multiple of ALIGNMENT; to a small one they would only be more work.
ALIGNMENT, ALIGNED_FROM = 128, 8192


def summed_loss(
  model: GPT2,
  params: Any,
  batch: Batch,
  rngs: dict[str, jax.Array] | None = None,
  num_devices: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats summed over the targets that count, and their number.

  Args:
    model: a GPT2, or what `interpret.edited` returns.
    batch: "inputs" and "targets", int [B, T]; a target of -1 does not count. Where it
      has "documents" too, none sees another: see `borders`.
    rngs: {"dropout": key} to train with dropout.
    num_devices: over how many the batch and the vocabulary are split; it decides the
      size of chunks, not the result.
  """
  hidden_BTD = model.apply(
    params, batch["inputs"], **borders(batch), rngs=rngs, method="hidden"
  )
  tied = model.config.tied_embeddings
  output = params["params"]["token_embedding" if tied else "output_embedding"]
  targets_BT = jnp.asarray(batch["targets"])
  total = summed_cross_entropy(
    hidden_BTD, nn.unbox(output)["embedding"], targets_BT, num_devices
  )
  return total, jnp.sum(targets_BT >= 0)


def borders(batch: Batch) -> dict[str, Any]:
  """The "positions" and "mask" that a model is called with for this batch.

  There are none where it has no "documents".
  """
  if "documents" not in batch:
    return {}
  positions_BT, mask_BTS = apart(jnp.asarray(batch["documents"]))
  return {"positions": positions_BT, "mask": mask_BTS}


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def summed_cross_entropy(
  hidden_BTD: jax.Array,
  embedding_VD: jax.Array,
  targets_BT: jax.Array,
  num_devices: int = 1,
) -> jax.Array:
  """-log softmax(hidden embedding^T) at the targets, summed: float32 scalar, in nats.

  Logits, softmax and sums are float32; what is multiplied has hidden's dtype.

  Args:
    hidden_BTD: after the final norm.
    embedding_VD: the output embeddings; their gradient is summed in float32.
    targets_BT: int; -1 does not count.
    num_devices: as in `summed_loss`.
  """
  table_VD = _aligned(embedding_VD, hidden_BTD.dtype)

  def add(total: jax.Array, chunk: Chunk) -> tuple[jax.Array, None]:
    loss, _ = _loss_and_slopes(*chunk, table_VD, len(embedding_VD))
    return total + loss, None

  zero = jnp.zeros_like(hidden_BTD, jnp.float32, shape=())
  chunks = _num_chunks(targets_BT, table_VD, num_devices)
  return _over_chunks(add, zero, hidden_BTD, targets_BT, chunks)[0]


@summed_cross_entropy.defjvp
def _with_tangent(
  num_devices: int,
  primals: tuple[jax.Array, jax.Array, jax.Array],
  tangents: tuple[jax.Array, jax.Array, Any],
) -> tuple[jax.Array, jax.Array]:
  """The loss, and how it changes along the tangents: linear in them, so that JAX turns
  the second part round into the gradient."""
  total, *gradients = _loss_and_gradients(*primals, num_devices)
  # without the targets', which are integers
  along_hidden, along_embedding = (
    jnp.sum(gradient * tangent, dtype=jnp.float32)
    for gradient, tangent in zip(gradients, tangents[:2], strict=True)
  )
  return total, along_hidden + along_embedding


def _loss_and_gradients(
  hidden_BTD: jax.Array,
  embedding_VD: jax.Array,
  targets_BT: jax.Array,
  num_devices: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The same loss, and its gradients in hidden_BTD and embedding_VD."""
  table_VD = _aligned(embedding_VD, hidden_BTD.dtype)

  def add(sums: tuple, chunk: Chunk) -> tuple[tuple, jax.Array]:
    total, table_grad_VD = sums
    loss, slopes_BTV = _loss_and_slopes(*chunk, table_VD, len(embedding_VD))
    slopes_BTV = slopes_BTV.astype(table_VD.dtype)
    table_grad_VD += jnp.einsum(
      "BTV,BTD->VD", slopes_BTV, chunk[0], preferred_element_type=jnp.float32
    )
    hidden_grad_BTD = jnp.einsum("BTV,VD->BTD", slopes_BTV, table_VD)
    return (total + loss, table_grad_VD), hidden_grad_BTD

  zeros = (
    jnp.zeros_like(hidden_BTD, jnp.float32, shape=()),
    jnp.zeros_like(table_VD, jnp.float32),
  )
  chunks = _num_chunks(targets_BT, table_VD, num_devices)
  (total, table_grad_VD), hidden_grad_BTD = _over_chunks(
    add, zeros, hidden_BTD, targets_BT, chunks
  )
  embedding_grad_VD = table_grad_VD[: len(embedding_VD)].astype(embedding_VD.dtype)
  return total, hidden_grad_BTD, embedding_grad_VD


def _loss_and_slopes(
  hidden_BTD: jax.Array, targets_BT: jax.Array, table_VD: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
  """The summed loss, and what it rises by with each logit: softmax minus one-hot."""
  logits_BTV = jnp.einsum(
    "BTD,VD->BTV", hidden_BTD, table_VD, preferred_element_type=jnp.float32
  )
  target_BT1 = jnp.maximum(targets_BT, 0)[..., None]
  at_target_BT1 = jnp.take_along_axis(logits_BTV, target_BT1, axis=-1)
  token_11V = jnp.arange(len(table_VD))[None, None]
  if len(table_VD) > vocab_size:  # rows added for alignment are no tokens
    logits_BTV = jnp.where(token_11V < vocab_size, logits_BTV, -jnp.inf)
  most_BT1 = logits_BTV.max(-1, keepdims=True)
  logits_BTV -= most_BT1
  log_sum_BT1 = jnp.log(jnp.exp(logits_BTV).sum(-1, keepdims=True))
  losses_BT1 = log_sum_BT1 - (at_target_BT1 - most_BT1)
  # exp is computed twice, so that the first result is summed at once and not kept.
  slopes_BTV = jnp.exp(logits_BTV - log_sum_BT1) - (token_11V == target_BT1)
  counts_BT1 = targets_BT[..., None] >= 0
  return (
    jnp.sum(losses_BT1, where=counts_BT1),
    jnp.where(counts_BT1, slopes_BTV, 0.0),
  )


def _aligned(embedding_VD: jax.Array, dtype: Any) -> jax.Array:
  """The embeddings in the dtype they are multiplied in, with rows added where that
  pays."""
  vocab_size = len(embedding_VD)
  extra = -vocab_size % ALIGNMENT if vocab_size >= ALIGNED_FROM else 0
  return jnp.pad(embedding_VD.astype(dtype), ((0, extra), (0, 0)))


def _num_chunks(targets_BT: jax.Array, table_VD: jax.Array, num_devices: int) -> int:
  """How many chunks T is cut into, of equal length or nearly so."""
  num_logits = targets_BT.size * len(table_VD)
  length = targets_BT.shape[1]
  least = -(-num_logits // (num_devices * LOGITS_AT_ONCE))
  columns = -(-length // min(least, length))
  return -(-length // columns)


def _over_chunks(
  add: Callable,
  init: Any,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  num_chunks: int,
) -> tuple[Any, Any]:
  """(sums, out) after `sums, out = add(sums, chunk)` for each chunk (hidden, targets).

  T is cut and B is whole, so that each device finds its rows of the batch in every
  chunk. The outs, [B, T, D] or None, are joined.
  """
  if num_chunks == 1:
    return add(init, (hidden_BTD, targets_BT))
  length = targets_BT.shape[1]
  columns = -(-length // num_chunks)

  def pad(x: jax.Array, fill: int) -> jax.Array:
    widths = [(0, 0), (0, num_chunks * columns - length)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=fill)

  padded = pad(hidden_BTD, 0), pad(targets_BT, -1)

  def chunk(i: jax.typing.ArrayLike) -> Any:
    cut = jax.lax.dynamic_slice_in_dim
    return tuple(cut(x, i * columns, columns, axis=1) for x in padded)

  def step(carry: tuple) -> tuple:
    i, sums, outs = carry
    sums, out = add(sums, chunk(i))
    if out is not None:
      outs = jax.lax.dynamic_update_slice_in_dim(outs, out, i * columns, axis=1)
    return i + 1, sums, outs

  # A while loop: the derivative of a scan would compute before the loop what all chunks
  # share, and keep it in arrays as large as a chunk's logits.
  out = jax.eval_shape(add, init, chunk(0))[1]
  outs = None if out is None else jnp.zeros_like(padded[0], out.dtype)
  _, sums, outs = jax.lax.while_loop(
    lambda carry: carry[0] < num_chunks, step, (0, init, outs)
  )
  return sums, None if outs is None else outs[:, :length]

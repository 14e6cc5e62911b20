"""What a head does: where it looks, how much it matters, which ones are alike.

Scores take attention weights as a `Trace` has them, [..., B, T, S], of whole sequences
without padding (T equals S). The first query is left out: it can see but itself. Where
a head looks is not what it does with what it finds, and a redundant head can score
high and matter little (Jain & Wallace, 2019, "Attention is not Explanation"): set a
score beside `head_ablation`.

Axes: L layers, H heads, B batch, T query position, S key position.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_flax.errors import InputError, unknown_name
from gpt2_flax.interpret.edits import ablate_heads, edited, scale_heads
from gpt2_flax.interpret.trace import trace
from gpt2_flax.training.loss import Batch, summed_loss

ABLATIONS = ("zero", "mean")


def previous_token_score(weights: jax.Array) -> jax.Array:
  """How much queries look at the token before them, 0 to 1: [..., B, T, S] -> [...].

  It does not show that the head knows positions: where the token before is also what
  the content asks for, a head that matches content scores too.

  Source: Voita et al. (2019), "Analyzing Multi-Head Self-Attention", section 5.1, on
  positional heads; in induction's first half, Olsson et al. (2022).
  """
  weights = _checked(weights)
  return jnp.diagonal(weights, -1, axis1=-2, axis2=-1).mean((-2, -1))


def first_token_score(weights: jax.Array) -> jax.Array:
  """How much queries look at the first token, 0 to 1: [..., B, T, S] -> [...].

  Mostly a head at rest, whose weights must sum to 1 though there is nothing to read.
  It does not show that: a first token that means something is looked at for that.

  Source: Vig & Belinkov (2019), "Analyzing the Structure of Attention in a Transformer
  Language Model"; Xiao et al. (2023), "Efficient Streaming Language Models with
  Attention Sinks", section 3.1.
  """
  weights = _checked(weights)
  return weights[..., 1:, 0].mean((-2, -1))


def attention_entropy(weights: jax.Array) -> jax.Array:
  """How widely queries look, in nats: [..., B, T, S] -> [...].

  0 is one key alone; query t (from 0) has at most ln(t + 1). A wide look does not show
  that the head averages: what it takes from most keys may be nothing.

  Source: Clark et al. (2019), "What Does BERT Look At?", section 3.3.
  """
  weights = _checked(weights)
  return jax.scipy.special.entr(weights).sum(-1)[..., 1:].mean((-2, -1))


def induction_score(weights: jax.Array, tokens_BT: jax.typing.ArrayLike) -> jax.Array:
  """How much queries look at what followed an earlier copy of their token, 0 to 1.

  Prefix matching: "... A B ... A" looks at B. The mean over the queries whose token was
  there before, of their weight on all tokens that came right after it.

  It shows half an induction head: whether the head then says B is `logit_attribution`'s
  matter. On text where tokens repeat a lot, looking anywhere scores well above 0; the
  clean measure is on random tokens, repeated.

  Source: Olsson et al. (2022), "In-context Learning and Induction Heads".

  Args:
    weights: [..., B, T, S].
    tokens_BT: int, what was read.

  Returns:
    [...]; NaN where no token repeats.
  """
  weights = _checked(weights)
  tokens_BT = jnp.asarray(tokens_BT)
  if weights.shape[-3:-1] != tokens_BT.shape:
    raise InputError(
      f"tokens have shape {tokens_BT.shape}: must be {weights.shape[-3:-1]}, the"
      " weights' B and T"
    )
  length = tokens_BT.shape[1]
  before_BS = jnp.roll(tokens_BT, 1, axis=1)  # before_BS[b, s] = tokens_BT[b, s - 1]
  slot = jnp.arange(length)
  seen_TS = (slot[None, :] >= 1) & (slot[None, :] <= slot[:, None])
  follows_BTS = (tokens_BT[:, :, None] == before_BS[:, None, :]) & seen_TS[None]
  attended = jnp.einsum("...BTS,BTS->...", weights, follows_BTS.astype(weights.dtype))
  return attended / follows_BTS.any(-1).sum()


def head_similarity(weights_LHBTS: jax.Array) -> jax.Array:
  """How alike any two heads look, 0 to 1: float32 [L, H, L, H].

  1 - JSD / ln 2, the Jensen-Shannon divergence of their weights being taken for each
  query and averaged: 1 for heads that always look alike, 0 for heads that never share
  a key.

  It does not show that they do the same: they may take different things from the same
  tokens, and write them in different directions.

  Source: Clark et al. (2019), "What Does BERT Look At?", section 6, where the distance
  is the sum of these divergences.
  """
  weights_LHBTS = _checked(weights_LHBTS)
  num_layers, num_heads = weights_LHBTS.shape[:2]
  heads_NBTS = weights_LHBTS[..., 1:, :].reshape(-1, *weights_LHBTS[0, 0, :, 1:].shape)

  def entropy(weights: jax.Array) -> jax.Array:
    return jax.scipy.special.entr(weights).sum(-1)

  def against_all(one_BTS: jax.Array) -> jax.Array:
    mixed_NBTS = (one_BTS[None] + heads_NBTS) / 2
    apart = (entropy(one_BTS)[None] + entropy(heads_NBTS)) / 2
    return (entropy(mixed_NBTS) - apart).mean((-2, -1))

  divergence_NN = jax.lax.map(against_all, heads_NBTS)
  return (1 - divergence_NN / jnp.log(2)).reshape(
    num_layers, num_heads, num_layers, num_heads
  )


@functools.partial(jax.jit, static_argnames=("model", "to", "heads_at_once"))
def head_ablation(
  model: Any,
  params: Any,
  batch: Batch,
  *,
  to: str = "zero",
  heads_at_once: int | None = None,
) -> jax.Array:
  """What the loss rises by when a head is taken away, each alone: float32 [L, H].

  It does not show what the head is for, and a small rise does not show that it does
  nothing: where two heads do the same, either can be left out. Zero is a value that
  later layers may never have seen; the mean takes away only what differs from token
  to token.

  Source: Michel et al. (2019), "Are Sixteen Heads Really Better than One?", section 3;
  to the mean as in Wang et al. (2022), "Interpretability in the Wild".

  Args:
    model: a GPT2, or what `edited` returns.
    batch: "inputs" and "targets", int [B, T]; a target of -1 does not count.
    to: what the head says instead: "zero", or its "mean" over the batch's positions.
    heads_at_once: fewer take less memory, which is that many times a forward pass's;
      None for all.

  Returns:
    Nats a token: the loss without the head minus the loss with it.
  """
  if to not in ABLATIONS:
    raise unknown_name("ablation", to, ABLATIONS)
  if heads_at_once is not None and heads_at_once < 1:
    raise InputError(f"heads_at_once is {heads_at_once}: must be at least 1")
  value = 0.0
  if to == "mean":
    _, run = trace(model, params, batch["inputs"], taps=["head_output"])
    value = run.head_output.mean((2, 3), keepdims=True)

  def loss(heads_LH: jax.Array) -> jax.Array:
    without = edited(model, params, [ablate_heads(heads_LH, value)])
    return _mean_loss(*without, batch)

  shape = (model.config.num_layers, model.config.num_heads)
  num_heads = shape[0] * shape[1]
  masks_NLH = jnp.eye(num_heads, dtype=bool).reshape(num_heads, *shape)
  at_once = min(heads_at_once or num_heads, num_heads)
  losses_N = jax.lax.map(loss, masks_NLH, batch_size=at_once)
  return losses_N.reshape(shape) - _mean_loss(model, params, batch)


@functools.partial(jax.jit, static_argnames="model")
def head_gradient(model: Any, params: Any, batch: Batch) -> jax.Array:
  """The slope of the loss in each head's scale, at 1: float32 [L, H], nats a token.

  To first order, taking a head away costs minus this: one backward pass in place of
  L * H forward ones. It does not show what lies beyond the slope: where the prediction
  is certain the slope is near 0, and taking the head away may still cost much.

  Source: Michel et al. (2019), section 4.1. They take the mean of its absolute value
  over examples; here it is signed and of the batch, to stand beside `head_ablation`.

  Args:
    batch: as in `head_ablation`.
  """

  def loss(scale_LH: jax.Array) -> jax.Array:
    return _mean_loss(*edited(model, params, [scale_heads(scale_LH)]), batch)

  ones_LH = jnp.ones((model.config.num_layers, model.config.num_heads))
  return jax.grad(loss)(ones_LH)


def _mean_loss(model: Any, params: Any, batch: Batch) -> jax.Array:
  total, count = summed_loss(model, params, batch)
  return total / count


def _checked(weights: jax.typing.ArrayLike) -> jax.Array:
  weights = jnp.asarray(weights)
  length, num_keys = weights.shape[-2:]
  if length != num_keys or length < 2:
    raise InputError(
      f"weights have T = {length} queries and S = {num_keys} keys: must be equal, and"
      " at least 2"
    )
  return weights

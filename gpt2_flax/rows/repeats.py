"""What a row holds already becomes less likely to come again, or impossible.

Axes: B batch, S slots, V vocab_size.
"""

import jax
import jax.numpy as jnp


def penalise_seen(
  logits_BV: jax.Array, seen_BV: jax.Array, penalty: float
) -> jax.Array:
  """Logits of seen tokens, divided by the penalty where positive, else multiplied.

  Keskar et al. (2019), "CTRL", section 4.1; for negative ones as transformers has it.
  """
  penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, penalised_BV, logits_BV)


def ban_repeated_ngrams(
  logits_BV: jax.Array, tokens_BS: jax.Array, slot: jax.typing.ArrayLike, size: int
) -> jax.Array:
  """-inf for each token that would end a run of `size` tokens which was there before.

  Paulus et al. (2018), "A Deep Reinforced Model for Abstractive Summarization",
  section 2.5, for runs of three.

  Args:
    tokens_BS: int, what is in each slot; -1 where no token is.
    slot: the first free slot, the same in all rows; where it is too early for a run,
      all is allowed.
    size: tokens in a run, at least 1.
  """
  num_slots = tokens_BS.shape[1]
  slots_S = jnp.arange(num_slots)
  # is_repeat_BS[b, s]: the size - 1 tokens before slot s are the last of all
  is_repeat_BS = (tokens_BS >= 0) & ((slots_S >= size - 1) & (slots_S < slot))[None]
  for distance in range(1, size):
    before_BS = jnp.roll(tokens_BS, distance, axis=1)
    last_B = jnp.take(tokens_BS, slot - distance, axis=1, mode="clip")
    is_repeat_BS &= before_BS == last_B[:, None]
  row_B1 = jnp.arange(len(tokens_BS))[:, None]
  banned_BV = jnp.zeros(logits_BV.shape, bool)
  banned_BV = banned_BV.at[row_B1, jnp.maximum(tokens_BS, 0)].max(is_repeat_BS)
  return jnp.where(banned_BV, -jnp.inf, logits_BV)

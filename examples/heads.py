"""Four heads that differ from GPT-2's in one step, each a subclass of a few lines.

    python train.py --import=examples.heads --config.model.attention=sink
    python sample.py --workdir=runs/toy --import=examples.heads

Axes: B batch, T query position, S key position, D embed_dim, K head_dim.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt2_flax.self_attention import HEADS, SelfAttention


class SinkHead(SelfAttention):
  """Every query may also look at nothing: a key with score 0 and value 0.

  "Attention Is Off By One" (Miller, 2023); a learned sink is in "Efficient Streaming
  Language Models with Attention Sinks" (Xiao et al., 2023), section 3.3.
  """

  def weights(self, scores_BTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    one_more = ((0, 0), (0, 0), (0, 1))
    scores_BTS = jnp.pad(scores_BTS, one_more)
    allowed_BTS = jnp.pad(allowed_BTS, one_more, constant_values=True)
    return super().weights(scores_BTS, allowed_BTS)[..., :-1]


class NormedHead(SelfAttention):
  """Queries and keys have the same length: QK norm.

  "Query-Key Normalization for Transformers" (Henry et al., 2020), with RMSNorm as in
  "Scaling Vision Transformers to 22 Billion Parameters" (Dehghani et al., 2023),
  section 2.
  """

  def setup(self):
    super().setup()
    self.query_norm, self.key_norm = nn.RMSNorm(), nn.RMSNorm()

  def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query_BTK, key_BTK, value_BTK = super().project(x_BTD)
    return self.query_norm(query_BTK), self.key_norm(key_BTK), value_BTK


class SlidingHead(SelfAttention):
  """A query sees the last `window` tokens only, itself included.

  "Longformer" (Beltagy et al., 2020), section 3.1.
  """

  window: int = 8

  def visible(self, slots_T: jax.Array, slots_S: jax.Array) -> jax.Array:
    near_TS = slots_T[:, None] - slots_S[None, :] < self.window
    return super().visible(slots_T, slots_S) & near_TS[None]


class LinearHead(SelfAttention):
  """Weights without a softmax: phi(q) phi(k), divided by their sum.

  "Transformers are RNNs" (Katharopoulos et al., 2020), section 3.2; here [T, S] weights
  are written down all the same, so that they can be looked at.
  """

  def scores(self, query_BTK: jax.Array, key_BSK: jax.Array) -> jax.Array:
    query_BTK, key_BSK = nn.elu(query_BTK) + 1, nn.elu(key_BSK) + 1
    return jnp.einsum("BTK,BSK->BTS", query_BTK, key_BSK).astype(jnp.float32)

  def weights(self, scores_BTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    kept_BTS = jnp.where(allowed_BTS, scores_BTS, 0)
    return kept_BTS / jnp.maximum(kept_BTS.sum(-1, keepdims=True), 1e-9)


HEADS.add("sink", SinkHead)
HEADS.add("normed", NormedHead)
HEADS.add("sliding", SlidingHead)
HEADS.add("linear", LinearHead)

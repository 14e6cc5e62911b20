"""Dropout that is on exactly when the caller brings randomness for it."""

from flax import linen as nn
import jax


class Dropout(nn.Module):
  """Zeroes a random share `rate` of its input and scales up the rest.

  `model.apply(params, tokens)` is the deterministic model. With
  `rngs={"dropout": key}` dropout is on. There is no mode to set or to forget.

  Source: Srivastava et al. (2014), "Dropout: A Simple Way to Prevent Neural
  Networks from Overfitting".
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Dropout(self.rate)(x, deterministic=not self.has_rng("dropout"))

"""LayerNorm, whose parameters carry the name of their axis."""

from typing import Any

from flax import linen as nn


def layer_norm(epsilon: float, dtype: Any = None) -> nn.LayerNorm:
  """Flax's `LayerNorm` (Ba et al., 2016): [..., D] -> [..., D].

  Args:
    epsilon: added to the variance.
    dtype: of the result; mean and variance are float32 always.
  """

  def partitioned(init: nn.initializers.Initializer):
    return nn.with_logical_partitioning(init, ("embed",))

  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 cancels on GPT-2's large activations
    scale_init=partitioned(nn.initializers.ones_init()),
    bias_init=partitioned(nn.initializers.zeros_init()),
  )

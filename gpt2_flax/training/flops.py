"""How much a step computes, and how much the devices could."""

import jax

from gpt2_flax.model_config import GPT2Config

# The makers' figures for dense matrix products in bfloat16, a second and device.
PEAK_FLOPS = {
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
}


def flops_per_token(config: GPT2Config) -> int:
  """Operations that training on one token of a full context takes.

  Two for each weight of a matrix product and token, two for each score and two for each
  value that is mixed; and twice as much again for the gradients. As is usual, attention
  counts in full, masked or not, and what is computed a second time to save memory does
  not count: "PaLM" (Chowdhery et al., 2022), appendix B.
  """
  dim, length = config.embed_dim, config.context_length
  mlp_dim = (config.mlp_dim or 4 * dim) if config.feed_forward else 0
  weights = config.num_layers * (4 * dim * dim + 2 * dim * mlp_dim)
  weights += config.vocab_size * dim  # the output layer; looking embeddings up is free
  attention = config.num_layers * 2 * length * dim
  return 3 * 2 * (weights + attention)


def peak_flops(config: GPT2Config) -> float | None:
  """What all devices can do in a second; None where PEAK_FLOPS does not say."""
  if config.dtype == "float32":  # its speed depends on the precision that jax uses
    return None
  kinds = [device.device_kind for device in jax.devices()]
  known = all(kind in PEAK_FLOPS for kind in kinds)
  return sum(PEAK_FLOPS[kind] for kind in kinds) if known else None

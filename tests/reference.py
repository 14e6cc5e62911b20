"""The model a second time, as plainly as it can be written: what ours must equal."""

import math

import jax
import numpy as np


def reference_logits(params, tokens_BT, config, mask_BHTS=None):
  """GPT-2 in float64 NumPy, from Radford et al. (2019) and Vaswani et al. (2017).

  Args:
    mask_BHTS: what each head may see of the tokens before; None for all of it.
  """
  params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)["params"]
  num_positions = tokens_BT.shape[1]

  def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    scaled = centred / np.sqrt(variance + config.layer_norm_epsilon)
    return scaled * p["scale"] + p["bias"]

  def dense(x, p):
    return x @ p["kernel"] + p["bias"]

  def activation(x):
    if config.activation == "relu":
      return np.maximum(x, 0)
    if config.activation == "gelu":
      return x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

  def turned(x):
    complex_x = x[..., 0::2] + 1j * x[..., 1::2]
    pair = np.arange(x.shape[-1] // 2)
    angles = np.arange(num_positions)[:, None] / 10_000 ** (2 * pair / x.shape[-1])
    complex_x = complex_x * np.exp(1j * angles)
    return np.stack([complex_x.real, complex_x.imag], -1).reshape(x.shape)

  def attention(x, p, layer):
    heads = []
    for head in range(config.num_heads):
      own = jax.tree.map(lambda leaf, head=head: leaf[head], p["heads"])
      query, key, value = (dense(x, own[name]) for name in ("query", "key", "value"))
      if config.positional_encoding == "rotary":
        query, key = turned(query), turned(key)
      scores = query @ key.swapaxes(1, 2)
      if config.scale_attention:
        scores /= math.sqrt(config.embed_dim // config.num_heads)
      if config.scale_attention_by_layer:
        scores /= layer + 1
      if config.positional_encoding == "alibi":
        slope = 2.0 ** (-8 * (head + 1) / config.num_heads)
        scores -= slope * (
          np.arange(num_positions)[:, None] - np.arange(num_positions)[None]
        )
      scores[:, ~np.tri(num_positions, dtype=bool)] = -np.inf
      if mask_BHTS is not None:
        scores[~mask_BHTS[:, head]] = -np.inf
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ value)
    return dense(np.concatenate(heads, -1), p["output"])

  embedding = params["token_embedding"]["embedding"]
  x = embedding[tokens_BT]
  if config.positional_encoding == "learned":
    x += params["positional_encoding"]["embedding"]["embedding"][:num_positions]
  elif config.positional_encoding == "sinusoidal":
    pair = np.arange(config.embed_dim // 2)
    angles = np.arange(num_positions)[:, None] / 10_000 ** (2 * pair / config.embed_dim)
    x *= math.sqrt(config.embed_dim)
    x[..., 0::2] += np.sin(angles)
    x[..., 1::2] += np.cos(angles)
  for layer in range(config.num_layers):
    p = params[f"blocks_{layer}"]
    x += attention(norm(x, p["attention_norm"]), p["attention"], layer)
    if not config.feed_forward:
      continue
    hidden = activation(
      dense(norm(x, p["feed_forward_norm"]), p["feed_forward"]["expand"])
    )
    x += dense(hidden, p["feed_forward"]["contract"])
  if not config.tied_embeddings:
    embedding = params["output_embedding"]["embedding"]
  return norm(x, params["final_norm"]) @ embedding.T

"""A forward pass in float64 NumPy whose steps can be kept and replaced."""

import math

import jax
import numpy as np

EPSILON = 1e-2  # of norms; large enough that no other would do


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  spread = np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
  return centred / spread * p["scale"] + p["bias"]


def dense(x, p):
  return x @ p["kernel"] + p["bias"]


def feed_forward(x, block):
  hidden = dense(norm(x, block["feed_forward_norm"]), block["feed_forward"]["expand"])
  hidden *= 0.5 * (
    1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))
  )
  return dense(hidden, block["feed_forward"]["contract"])


def exact(params):
  """The weights in float64."""
  return jax.tree.map(np.float64, params)["params"]


def forward(params, tokens, num_heads, replace=lambda name, layer, value: value):
  """Logits of a model with learned positions and tied embeddings, and its steps.

  Args:
    params: of `exact`.
    replace: what is to stand in the place of a step's value. Heads are in front.

  Returns:
    The logits, and {(site, layer): value}, after replacement.
  """
  steps = {}

  def step(name, layer, value):
    steps[name, layer] = replace(name, layer, value)
    return steps[name, layer]

  table = params["token_embedding"]["embedding"]
  x = table[tokens]
  x = x + params["positional_encoding"]["embedding"]["embedding"][: tokens.shape[1]]
  for layer in range(sum(name.startswith("blocks_") for name in params)):
    block = params[f"blocks_{layer}"]
    x = step("residual_before", layer, x)
    attention = block["attention"]
    own = [
      jax.tree.map(lambda leaf, head=head: leaf[head], attention["heads"])
      for head in range(num_heads)
    ]
    normed = norm(x, block["attention_norm"])
    query, key, value = (
      step(name, layer, np.stack([dense(normed, head[name]) for head in own]))
      for name in ("query", "key", "value")
    )
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    odds = np.exp(scores) * np.tri(tokens.shape[1])
    weights = odds / odds.sum(-1, keepdims=True)
    out = step("head_output", layer, weights @ value)
    x = x + dense(np.concatenate(out, -1), attention["output"])
    x = x + step("mlp_output", layer, feed_forward(x, block))
  return norm(x, params["final_norm"]) @ table.T, steps

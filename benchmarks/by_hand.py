"""The same GPT-2 without Flax: plain jax.numpy on a dictionary of arrays.

What a training step of this package is measured against (`benchmarks.training`): the
price of modules, of heads under vmap, and of names for axes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gpt2_flax import GPT2Config


def init(config: GPT2Config, key: jax.Array) -> dict[str, Any]:
  """Parameters; the blocks' in a list."""
  dim, mlp_dim = config.embed_dim, 4 * config.embed_dim
  keys = iter(jax.random.split(key, 2 + 6 * config.num_layers))

  def matrix(*shape: int) -> jax.Array:
    return 0.02 * jax.random.normal(next(keys), shape)

  def linear(num_in: int, num_out: int) -> dict[str, jax.Array]:
    return {"kernel": matrix(num_in, num_out), "bias": jnp.zeros(num_out)}

  def norm() -> dict[str, jax.Array]:
    return {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)}

  def block() -> dict[str, Any]:
    return {
      "norm_1": norm(),
      "query": linear(dim, dim),
      "key": linear(dim, dim),
      "value": linear(dim, dim),
      "output": linear(dim, dim),
      "norm_2": norm(),
      "expand": linear(dim, mlp_dim),
      "contract": linear(mlp_dim, dim),
    }

  return {
    "tokens": matrix(config.vocab_size, dim),
    "positions": matrix(config.context_length, dim),
    "blocks": [block() for _ in range(config.num_layers)],
    "norm": norm(),
  }


def _linear(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  return x @ params["kernel"] + params["bias"]


def _norm(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
  return x * params["scale"] + params["bias"]


def _attention(params: dict[str, Any], x_BTD: jax.Array, num_heads: int) -> jax.Array:
  batch, length, dim = x_BTD.shape

  def heads(name: str) -> jax.Array:
    return _linear(params[name], x_BTD).reshape(batch, length, num_heads, -1)

  scores = jnp.einsum("BTHK,BSHK->BHTS", heads("query"), heads("key"))
  scores = scores / (dim // num_heads) ** 0.5
  allowed = jnp.tril(jnp.ones((length, length), bool))
  weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf))
  mixed = jnp.einsum("BHTS,BSHK->BTHK", weights, heads("value"))
  return _linear(params["output"], mixed.reshape(batch, length, dim))


def loss(params: dict[str, Any], config: GPT2Config, batch: dict) -> jax.Array:
  """Mean cross-entropy in nats."""
  x = params["tokens"][batch["inputs"]] + params["positions"]
  for block in params["blocks"]:
    x = x + _attention(block, _norm(block["norm_1"], x), config.num_heads)
    hidden = jax.nn.gelu(_linear(block["expand"], _norm(block["norm_2"], x)))
    x = x + _linear(block["contract"], hidden)
  logits = _norm(params["norm"], x) @ params["tokens"].T
  log_probabilities = jax.nn.log_softmax(logits)
  return -jnp.mean(
    jnp.take_along_axis(log_probabilities, batch["targets"][..., None], axis=-1)
  )

"""One reading of one text, for a page that cannot compute: cut to what it has room for.

Axes: L layers, H heads, T position, S position looked at, K head_dim, D embed_dim,
F mlp_dim, V vocab_size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.interpret.logits import logit_lens
from gpt2_flax.interpret.page.arrays import encoded
from gpt2_flax.interpret.sites import TAPS
from gpt2_flax.interpret.trace import Trace, trace
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.transformer import GPT2

MAX_TOKENS = 64  # more would be smaller than a fingertip
MIN_TOKENS = 16  # what a big model's page keeps before it leaves out layers
MAX_VALUES = 3_000_000  # of all arrays together, some 16 MB in the file
MAX_FEATURES = 256  # of a token's vector
MAX_VOCABULARY = 256  # tokens whose logits are there one by one
NUM_LENS_TOKENS = 5
TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 31))


def stored_reading(
  model: GPT2, params: Any, tokens: Sequence[int], num_tokens: int, num_layers: int
) -> dict[str, Any]:
  """The trace of the first `num_tokens` tokens and what is measured of it, as JSON.

  Args:
    num_tokens, num_layers: as `caps` gives them.
  """
  shown = jnp.array([tokens[:num_tokens]], jnp.int32)
  logits, run = jax.jit(lambda params, tokens: trace(model, params, tokens))(
    params, shown
  )
  return {
    "num_layers": num_layers,
    "arrays": _arrays(run, num_layers),
    "norms": _norms(run),
    "lens": _lens(model, params, run, tokens),
    "next": _next_tokens(np.asarray(logits[0], np.float64)),
  }


def caps(config: GPT2Config, num_tokens: int) -> tuple[int, int, list[str]]:
  """How many tokens and layers the page has room for, and what to tell the reader."""
  dim = min(config.embed_dim, MAX_FEATURES)
  mlp_dim = min(config.mlp_dim or 4 * config.embed_dim, MAX_FEATURES)

  def values(tokens: int, layers: int) -> int:
    in_a_head = 4 * config.head_dim + 2 * tokens
    in_a_layer = config.num_heads * in_a_head + 5 * dim + mlp_dim
    return tokens * (layers * in_a_layer + 3 * dim)

  tokens = min(num_tokens, config.context_length, MAX_TOKENS)
  layers = config.num_layers
  while tokens > MIN_TOKENS and values(tokens, layers) > MAX_VALUES:
    tokens -= 1
  while layers > 1 and values(tokens, layers) > MAX_VALUES:
    layers -= 1
  notes = []
  if tokens < num_tokens:
    notes.append(
      f"The text has {num_tokens} tokens; the page shows the first {tokens}."
    )
  if layers < config.num_layers:
    notes.append(
      f"The model has {config.num_layers} layers; the page opens the first {layers}."
      " What it says after each layer is there for all."
    )
  if max(config.embed_dim, config.mlp_dim or 4 * config.embed_dim) > MAX_FEATURES:
    notes.append(f"Of longer vectors the first {MAX_FEATURES} features are shown.")
  return tokens, layers, notes


def _arrays(run: Trace, num_layers: int) -> dict[str, Any]:
  """The trace of the one text, without its batch axis, cut to size."""
  arrays = {}
  for name, axes in TAPS.items():
    value = getattr(run, name)
    if value is None:
      continue
    value = np.take(np.asarray(value, np.float32), 0, axes.index("B"))
    if axes[0] == "L":
      value = value[:num_layers]
    if axes[-1] in "DF":
      value = value[..., :MAX_FEATURES]
    arrays[name] = encoded(value)
  return arrays


def _norms(run: Trace) -> dict[str, Any]:
  """Lengths of whole vectors, [L][T]; the page may have only a part of each vector."""

  def norms(value: jax.Array | None) -> list | None:
    if value is None:
      return None
    return np.linalg.norm(np.asarray(value[:, 0], np.float64), axis=-1).tolist()

  names = ("residual_before", "attention_output", "residual_between")
  names += ("mlp_output", "residual_after")
  return {name: norms(getattr(run, name)) for name in names}


def _lens(model: Any, params: Any, run: Trace, tokens: Sequence[int]) -> dict[str, Any]:
  """The logit lens: the likeliest tokens [L + 1][T][5], and the one that came next."""
  read = jax.jit(lambda params, run: logit_lens(model, params, run))
  logits = np.asarray(read(params, run)[:, 0])
  probabilities = _softmax(logits.astype(np.float64))
  length = logits.shape[1]
  k = min(NUM_LENS_TOKENS, logits.shape[-1])
  ids = np.argsort(-probabilities, axis=-1, kind="stable")[..., :k]
  targets = np.array(tokens[1 : length + 1], np.int32)
  of_target = probabilities[:, np.arange(len(targets)), targets]
  return {
    "ids": ids.tolist(),
    "probabilities": np.take_along_axis(probabilities, ids, -1).tolist(),
    "of_next": of_target.tolist(),
  }


def _next_tokens(logits_TV: np.ndarray) -> dict[str, Any]:
  """The likeliest tokens' logits, and the log-sum of all others at each temperature.

  With it the page divides by the exact sum, for a big vocabulary too.
  """
  order = np.argsort(-logits_TV, axis=-1, kind="stable")
  ids, others = order[:, :MAX_VOCABULARY], order[:, MAX_VOCABULARY:]
  rest = np.take_along_axis(logits_TV, others, -1)
  log_sums = [
    np.logaddexp.reduce(rest / temperature, axis=-1) for temperature in TEMPERATURES
  ]
  return {
    "ids": ids.tolist(),
    "logits": encoded(np.take_along_axis(logits_TV, ids, -1)),
    "num_others": others.shape[1],
    "others": np.stack(log_sums, -1).tolist() if others.size else None,
  }


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)

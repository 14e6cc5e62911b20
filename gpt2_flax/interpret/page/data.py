"""What the page shows: a trace and measures of it, cut to what a browser can take.

Axes: L layers, H heads, T position, S position looked at, K head_dim, D embed_dim,
F mlp_dim, V vocab_size.
"""

import base64
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.dataset import as_batch
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.interpret import heads
from gpt2_flax.interpret.logits import logit_lens
from gpt2_flax.interpret.trace import Trace, trace
from gpt2_flax.terminal import one_line
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.training.loss import Batch
from gpt2_flax.transformer import GPT2, num_params

MAX_TOKENS = 64  # more would be smaller than a fingertip
MIN_TOKENS = 16  # what a big model's page keeps before it leaves out layers
MAX_VALUES = 3_000_000  # of all arrays together, some 16 MB in the file
MAX_FEATURES = 256  # of a token's vector
MAX_VOCABULARY = 256  # tokens whose logits are there one by one
NUM_LENS_TOKENS = 5
MAX_SCORED_TOKENS = 2048  # that head scores are measured on
TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 31))


def page_data(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  tokens: Sequence[int],
  *,
  title: str,
  dataset: Dataset | None = None,
) -> dict[str, Any]:
  """Everything on the page, as JSON values.

  Args:
    tokens: the text, at least one id; the page shows the first of them.
    title: the model's name for the reader.
    dataset: what the model was trained on. Its oracle is shown, and head scores are
      measured on its validation windows; without it, on the text itself.

  Raises:
    InputError: there are no tokens.
    RunError: the model's output is not finite.
  """
  config = model.config
  if not len(tokens):
    raise InputError("the prompt is empty: must have at least one token")
  num_tokens, num_layers, notes = _caps(config, len(tokens))
  shown = np.array(tokens[:num_tokens], np.int32)
  logits, run = jax.jit(lambda params, tokens: trace(model, params, tokens))(
    params, jnp.asarray(shown)[None]
  )
  logits_TV = np.asarray(logits[0], np.float64)
  lens = _lens(model, params, run, tokens)
  if not np.isfinite(logits_TV).all():
    raise RunError("the model's logits are not finite: there is nothing to explain")
  next_tokens = _next_tokens(logits_TV)
  oracle_TV = _oracle(dataset, shown)
  following = list(map(int, tokens[num_tokens : num_tokens + 1]))
  named = {*shown.tolist(), *following}
  named.update(np.ravel(lens["ids"]).tolist(), np.ravel(next_tokens["ids"]).tolist())
  return {
    "title": one_line(title),
    "model": {
      **dataclasses.asdict(config),
      "num_params": num_params(params),
      "head_dim": config.head_dim,
      "mlp_dim": config.mlp_dim or 4 * config.embed_dim,
    },
    "notes": notes,
    "tokens": shown.tolist(),
    "following": following,
    "names": {i: _name(tokenizer, i) for i in sorted(named)},
    "num_layers": num_layers,
    "divisors": [_divisor(config, layer) for layer in range(num_layers)],
    "arrays": _arrays(run, num_layers),
    "norms": _norms(run),
    "lens": lens,
    "next": next_tokens,
    "temperatures": TEMPERATURES,
    "oracle": None if oracle_TV is None else _array(oracle_TV),
    "heads": _head_scores(model, params, shown, dataset),
  }


def _caps(config: Any, num_tokens: int) -> tuple[int, int, list[str]]:
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


def _name(tokenizer: Tokenizer, token_id: int) -> str:
  """A token's text; the model's vocabulary may be larger than the tokenizer's."""
  if token_id >= tokenizer.vocab_size:
    return f"#{token_id}"
  return tokenizer.token(token_id)


def _divisor(config: Any, layer: int) -> float:
  """What a layer's dot products are divided by."""
  divisor = config.head_dim**0.5 if config.scale_attention else 1.0
  return divisor * (layer + 1 if config.scale_attention_by_layer else 1)


def _array(values: Any) -> dict[str, Any]:
  """An array as JSON values: little-endian float32 as base64, and its shape."""
  values = np.asarray(values, "<f4")
  data = base64.b64encode(values.tobytes()).decode("ascii")
  return {"shape": values.shape, "data": data}


def _arrays(run: Trace, num_layers: int) -> dict[str, Any]:
  """The trace of the one text, without its batch axis, cut to size."""
  arrays = {}
  for name, axes in (
    ("token_embeddings", "BTD"),
    ("positions", "BTD"),
    ("residual_before", "LBTD"),
    ("query", "LHBTK"),
    ("key", "LHBTK"),
    ("value", "LHBTK"),
    ("scores", "LHBTS"),
    ("weights", "LHBTS"),
    ("head_output", "LHBTK"),
    ("attention_output", "LBTD"),
    ("residual_between", "LBTD"),
    ("mlp_hidden", "LBTF"),
    ("mlp_output", "LBTD"),
    ("residual_after", "LBTD"),
    ("final_norm", "BTD"),
  ):
    value = getattr(run, name)
    if value is None:
      continue
    value = np.take(np.asarray(value, np.float32), 0, axes.index("B"))
    if axes[0] == "L":
      value = value[:num_layers]
    if axes[-1] in "DF":
      value = value[..., :MAX_FEATURES]
    arrays[name] = _array(value)
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
    "logits": _array(np.take_along_axis(logits_TV, ids, -1)),
    "num_others": others.shape[1],
    "others": np.stack(log_sums, -1).tolist() if others.size else None,
  }


def _oracle(dataset: Dataset | None, tokens: np.ndarray) -> np.ndarray | None:
  """float64 [T, V], or None where there is none for these tokens."""
  if dataset is None:
    return None
  try:
    return dataset.next_token_probabilities(tokens)
  except InputError:  # as for tokens that the process cannot begin with
    return None


def _head_scores(
  model: GPT2, params: Any, tokens: np.ndarray, dataset: Dataset | None
) -> dict[str, Any] | None:
  """Where each head looks and what it is worth, [L][H]; None where nothing follows."""
  if dataset is not None:
    num_windows = max(1, MAX_SCORED_TOKENS // dataset.context_length)
    windows = validation_windows(dataset, num_windows)
    measured_on = (
      f"{len(windows)} validation windows of {dataset.context_length} tokens"
    )
  else:
    windows, measured_on = tokens[None], f"this text's {len(tokens)} tokens"
  batch = as_batch(windows)
  if batch["inputs"].shape[1] < 2:
    return None
  scores = jax.jit(lambda params, batch: _scores(model, params, batch))(params, batch)
  at_once = max(1, 100_000_000 // (batch["inputs"].size * model.config.vocab_size))
  ablation = heads.head_ablation(model, params, batch, heads_at_once=at_once)
  scores = {name: np.asarray(v) for name, v in {**scores, "ablation": ablation}.items()}
  return {"measured_on": measured_on} | {
    name: [[float(v) if np.isfinite(v) else None for v in row] for row in value]
    for name, value in scores.items()
  }


def _scores(model: GPT2, params: Any, batch: Batch) -> dict[str, jax.Array]:
  _, run = trace(model, params, batch["inputs"], taps=["weights"])
  return {
    "previous": heads.previous_token_score(run.weights),
    "first": heads.first_token_score(run.weights),
    "induction": heads.induction_score(run.weights, batch["inputs"]),
    "entropy": heads.attention_entropy(run.weights),
  }


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)

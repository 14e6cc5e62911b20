"""What the page shows, as JSON values: the model itself, or one reading of one text.

Axes: L layers, H heads, T position, V vocab_size.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.datasets import Dataset
from gpt2_flax.datasets.dataset import as_batch
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.errors import InputError, RunError, unknown_name
from gpt2_flax.interpret import heads
from gpt2_flax.interpret.page.arrays import encoded
from gpt2_flax.interpret.page.live import History, live_steps, why_stored
from gpt2_flax.interpret.page.stored import (
  caps,
  MAX_TOKENS,
  stored_reading,
  TEMPERATURES,
)
from gpt2_flax.interpret.trace import trace
from gpt2_flax.terminal import one_line
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.training.loss import Batch, borders
from gpt2_flax.transformer import GPT2, num_params

PROCESSES = ("grammar", "induction", "markov")  # what web/languages.js computes
MAX_SCORED_TOKENS = 2048  # that head scores are measured on


def page_data(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  tokens: Sequence[int],
  *,
  title: str,
  dataset: Dataset | None = None,
  history: History | None = None,
) -> dict[str, Any]:
  """Everything on the page, as JSON values.

  A small model goes into the page itself, which then reads any text. Of another the
  page has the numbers of this text, and says why.

  Args:
    tokens: the text, at least one id; the page shows the first of them.
    title: the model's name for the reader.
    dataset: what the model was trained on. Its oracle is shown, and head scores are
      measured on its validation windows; without it, on the text itself.
    history: the run that made it, to be played back.

  Raises:
    InputError: there are no tokens, or the dataset's process is of an unknown kind.
    RunError: the model's output is not finite.
  """
  config = model.config
  if not len(tokens):
    raise InputError("the prompt is empty: must have at least one token")
  most_tokens = min(config.context_length, MAX_TOKENS)
  shown = np.array(tokens[:most_tokens], np.int32)
  logits_TV = jax.jit(model.apply)(params, jnp.asarray(shown)[None])[0]
  if not np.isfinite(np.asarray(logits_TV)).all():
    raise RunError("the model's logits are not finite: there is nothing to explain")
  common = {
    "title": one_line(title),
    "model": {
      **dataclasses.asdict(config),
      "num_params": num_params(params),
      "head_dim": config.head_dim,
      "mlp_dim": config.mlp_dim or 4 * config.embed_dim,
    },
    "most_tokens": most_tokens,
    "temperatures": TEMPERATURES,
  }
  why = why_stored(model, params)
  if why is None:
    return common | _live(model, params, tokenizer, tokens, shown, dataset, history)
  num_tokens, num_layers, notes = caps(config, len(tokens))
  shown = shown[:num_tokens]
  reading = stored_reading(model, params, tokens, num_tokens, num_layers)
  following = list(map(int, tokens[num_tokens : num_tokens + 1]))
  named = {*shown.tolist(), *following}
  for of in (reading["lens"], reading["next"]):
    named.update(np.ravel(of["ids"]).tolist())
  notes.insert(0, f"This page shows one text and cannot read another: {why}.")
  return common | {
    "notes": notes,
    "tokens": shown.tolist(),
    "following": following,
    "names": {i: _name(tokenizer, i) for i in sorted(named)},
    "reading": reading,
    "oracle": _oracle(dataset, shown),
    "heads": _head_scores(model, params, shown, dataset),
    **dict.fromkeys(("steps", "process", "tokenizer", "curve")),
  }


def _live(
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer,
  tokens: Sequence[int],
  shown: np.ndarray,
  dataset: Dataset | None,
  history: History | None,
) -> dict[str, Any]:
  """What the page has in the place of a reading: all that it takes to compute one."""

  def measure(params: Any) -> dict[str, Any] | None:
    return _head_scores(model, params, shown, dataset)

  steps, notes = live_steps(model, params, history, measure)
  if len(shown) < len(tokens):
    notes.insert(
      0,
      f"The text has {len(tokens)} tokens; the page shows the first {len(shown)}.",
    )
  process = dataset.process() if dataset else None
  if process and process["kind"] not in PROCESSES:
    raise unknown_name("kind of a process", process["kind"], PROCESSES)
  ids = range(model.config.vocab_size)
  curve = None
  if history and history.curve:
    steps_of_curve, losses = zip(*history.curve, strict=True)
    curve = {"steps": steps_of_curve, "loss": losses, "floor": history.floor}
  return {
    "notes": notes,
    "tokens": shown.tolist(),
    "following": list(map(int, tokens[len(shown) : len(shown) + 1])),
    "names": {i: _name(tokenizer, i) for i in ids},
    "tokenizer": {"kind": tokenizer.kind, "start_id": tokenizer.start_id},
    "steps": steps,
    "curve": curve,
    "process": jax.tree.map(
      lambda leaf: encoded(leaf, "f8") if isinstance(leaf, np.ndarray) else leaf,
      process,
    ),
    "oracle": None if process else _oracle(dataset, shown),
    **dict.fromkeys(("reading", "heads")),
  }


def _name(tokenizer: Tokenizer, token_id: int) -> str:
  """A token's text; the model's vocabulary may be larger than the tokenizer's."""
  if token_id >= tokenizer.vocab_size:
    return f"#{token_id}"
  return tokenizer.token(token_id)


def _oracle(dataset: Dataset | None, tokens: np.ndarray) -> dict[str, Any] | None:
  """The exact distributions, [T, V]; None where there are none for these tokens."""
  if dataset is None:
    return None
  try:
    exact_TV = dataset.next_token_probabilities(tokens)
  except InputError:  # as for tokens that the process cannot begin with
    return None
  return None if exact_TV is None else encoded(exact_TV)


def _head_scores(
  model: GPT2, params: Any, tokens: np.ndarray, dataset: Dataset | None
) -> dict[str, Any] | None:
  """Where each head looks and what it is worth, [L][H]; None where nothing follows."""
  if dataset is not None:
    num_windows = max(1, MAX_SCORED_TOKENS // dataset.context_length)
    windows = validation_windows(dataset, num_windows)
    batch = dataset.batch(windows)
    measured_on = (
      f"{len(windows)} validation windows of {dataset.context_length} tokens"
    )
  else:
    batch, measured_on = as_batch(tokens[None]), f"this text's {len(tokens)} tokens"
  if batch["inputs"].shape[1] < 2:
    return None
  scores = _scores(model, params, batch)
  at_once = max(1, 100_000_000 // (batch["inputs"].size * model.config.vocab_size))
  ablation = heads.head_ablation(model, params, batch, heads_at_once=at_once)
  scores = {name: np.asarray(v) for name, v in {**scores, "ablation": ablation}.items()}
  return {"measured_on": measured_on} | {
    name: [[float(v) if np.isfinite(v) else None for v in row] for row in value]
    for name, value in scores.items()
  }


@functools.partial(jax.jit, static_argnames="model")
def _scores(model: GPT2, params: Any, batch: Batch) -> dict[str, jax.Array]:
  _, run = trace(model, params, batch["inputs"], taps=["weights"], **borders(batch))
  return {
    "previous": heads.previous_token_score(run.weights),
    "first": heads.first_token_score(run.weights),
    "induction": heads.induction_score(run.weights, batch["inputs"]),
    "entropy": heads.attention_entropy(run.weights),
  }

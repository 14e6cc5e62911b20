"""The model itself, for a page that computes: its weights at the steps kept."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from gpt2_flax.errors import RunError
from gpt2_flax.interpret import sites
from gpt2_flax.interpret.page.arrays import encoded, rounded
from gpt2_flax.layers.layer_norm import layer_norm
from gpt2_flax.self_attention import FlashSelfAttention, HEADS, SelfAttention
from gpt2_flax.training.kept import saved_steps
from gpt2_flax.training.manifest import damage
from gpt2_flax.training.metrics import read_metrics
from gpt2_flax.training.source import load_run
from gpt2_flax.transformer import FeedForward, GPT2, num_params

MAX_BYTES = 6_000_000  # of all weights together, as text in the file
BYTES_OF = {"f4": 4 * 4 / 3, "i2": 2 * 4 / 3}  # a number, as base64


class History(NamedTuple):
  """A training run, for the page to play back.

  Attributes:
    steps: whose parameters can be had, ascending; the last is the model shown.
    params: those of a step.
    curve: (step, training loss) over the run, in nats a token.
    floor: what no model can beat; None where nobody knows.
  """

  steps: Sequence[int]
  params: Callable[[int], Any]
  curve: Sequence[tuple[int, float]]
  floor: float | None


def run_history(workdir: pathlib.Path, step: int | None = None) -> History:
  """That of a run's folder, up to a step; None for the newest that is not damaged."""
  found = saved_steps(workdir / "checkpoints")
  if step is None:
    step = next(s for s, path in reversed(found.items()) if damage(path) is None)
  records = read_metrics(workdir / "metrics.jsonl")
  return History(
    steps=[s for s in found if s <= step],
    params=lambda step: load_run(workdir, step)[1],
    curve=[
      (r["step"], r["train/loss"])
      for r in records
      if "train/loss" in r and r["step"] <= step
    ],
    floor=next((r["val/floor"] for r in records if "val/floor" in r), None),
  )


def why_stored(model: GPT2, params: Any) -> str | None:
  """Why the page cannot compute what this model does; None where it can."""
  own = "it has parts of its own, which the page cannot compute"
  if type(model) is not GPT2 or model.mlp is not FeedForward:
    return own
  head = model.head or HEADS[model.config.attention]
  if head not in (SelfAttention, FlashSelfAttention) or model.norm is not layer_norm:
    return own
  num_bytes = num_params(params) * BYTES_OF["f4"]
  if num_bytes > MAX_BYTES:
    size, most = num_bytes / 1e6, MAX_BYTES / 1e6
    return f"its weights would take {size:,.0f} MB, and a page has room for {most:.0f}"
  return None


def live_steps(
  model: GPT2,
  params: Any,
  history: History | None,
  measure: Callable[[Any], dict[str, Any] | None],
) -> tuple[list[dict[str, Any]], list[str]]:
  """The weights of each step that the page has room for, and what to tell the reader.

  The model shown is in float32; earlier steps are rounded to 16 bits.

  Args:
    measure: gives the head scores of some parameters.
  """
  notes = []
  if model.config.dtype != "float32":
    notes.append(f"The model computes in {model.config.dtype}; the page more exactly.")
  if history is None:
    return [_step(model, params, 0, encoded, measure)], notes
  *earlier, last = history.steps
  room = MAX_BYTES - num_params(params) * BYTES_OF["f4"]
  shown = _spread(earlier, int(room // (num_params(params) * BYTES_OF["i2"])))
  kept, damaged = [], []
  for step in shown:
    try:
      weights = history.params(step)
    except RunError:
      damaged.append(str(step))
      continue
    kept.append(_step(model, weights, step, rounded, measure))
  if len(shown) < len(earlier):
    notes.append(
      f"The run kept {len(earlier) + 1} steps; the page has room for {len(shown) + 1}."
    )
  if damaged:
    notes.append(f"Damaged, and left out: step {', '.join(damaged)}.")
  if kept:
    notes.append("Steps before the last are rounded to 16 bits a weight.")
  return [*kept, _step(model, params, last, encoded, measure)], notes


def _spread(steps: list[int], count: int) -> list[int]:
  """So many of the steps, evenly, the first one among them."""
  if count >= len(steps):
    return steps
  if count == 0:
    return []
  places = np.linspace(0, len(steps) - 1, count).round().astype(int)
  return [steps[place] for place in places]


def _step(
  model: GPT2,
  params: Any,
  step: int,
  encode: Callable[[Any], dict[str, Any]],
  measure: Callable[[Any], dict[str, Any] | None],
) -> dict[str, Any]:
  _, plain = sites.plain(model, params)
  weights = jax.tree.map(lambda leaf: encode(np.asarray(leaf)), plain["params"])
  return {"step": step, "weights": weights, "heads": measure(params)}

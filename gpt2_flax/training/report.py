"""What a run tells: each step's metrics go to the files and to the screen."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.training.bad_steps import BadSteps
from gpt2_flax.training.metrics import MetricsWriter
from gpt2_flax.training.progress import Progress
from gpt2_flax.training.throughput import Throughput

TAKEN = ("train/", "val/")  # how the names of a run's own metrics begin


class Report:
  """Reads each step's metrics while the next step runs, and passes them on."""

  def __init__(
    self,
    writer: MetricsWriter,
    progress: Progress,
    throughput: Throughput,
    bad_steps: BadSteps,
    log_every_steps: int,
  ):
    self._writer, self._progress = writer, progress
    self._throughput, self._bad_steps = throughput, bad_steps
    self._log_every_steps = log_every_steps
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._shown: dict[str, str] = {}  # in the bar

  def stepped(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
    """Takes a step's metrics, still on the device; reports the step before it.

    Args:
      waited: seconds that the step waited for its batch.
    """
    before, self._pending = self._pending, (step, metrics)
    self._throughput.stepped(waited)
    self._report(before)

  def flush(self) -> None:
    """Reports the last step too, which waits for it.

    Raises:
      RunError: it was one bad step too many.
    """
    before, self._pending = self._pending, None
    self._report(before)

  def _report(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
    if pending is None:
      return
    step, metrics = pending[0], jax.device_get(pending[1])
    values = {name: float(value) for name, value in metrics.items()}
    if bad := self._bad_steps.check(step, values):
      self._progress.line(bad)
    self._shown["loss"] = f"{values['train/loss']:.4f}"
    if bad or step % self._log_every_steps == 0:
      speed = self._throughput.measures()
      self._shown["tokens/s"] = f"{speed['tokens_per_second']:,.0f}"
      if "mfu" in speed:
        self._shown["MFU"] = f"{speed['mfu']:.1%}"
      self._writer.write(step, _finite(values) | speed)
      self._progress.log(step, self._shown)
      self._throughput.restart()
    self._progress.update(step, self._shown)

  def evaluated(
    self,
    step: int,
    losses: Mapping[str, float],
    measures: Mapping[str, float],
    sample: str | None,
  ) -> None:
    """Takes an evaluation's losses and the text that the model wrote.

    Args:
      measures: the caller's own, by name.
    """
    values = {**losses, **measures}
    text = f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items())
    if "val/gap" in losses:
      self._shown["gap"] = f"{losses['val/gap']:.4f}"
    self._shown |= {name: f"{value:.4g}" for name, value in measures.items()}
    record: dict[str, float | str] = {**_finite(values)}
    if sample is not None:
      record["val/sample"] = sample
      text += f"\n  writes: {sample}"
    self._writer.write(step, record)
    self._progress.line(text)
    self._throughput.restart()


def checked_measures(measures: Any) -> dict[str, float]:
  """What `on_eval` returned, as numbers.

  Raises:
    InputError: it is no mapping from names to numbers, or a name is taken.
  """
  if not isinstance(measures, Mapping):
    kind = type(measures).__name__
    raise InputError(f"on_eval returned {kind}: must be a dict of measures by name")
  checked = {}
  for name, value in measures.items():
    if not isinstance(name, str) or name.startswith(TAKEN) or name == "step":
      raise InputError(
        f"on_eval returned a measure {name!r}: must be a text that does not begin with"
        f" {' or '.join(TAKEN)}"
      )
    if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
      raise InputError(f"on_eval returned {name}: {value!r}: must be one number")
    checked[name] = float(value)
  return checked


def _finite(values: Mapping[str, float]) -> dict[str, float]:
  """Without the values that JSON does not have: nan and the infinities."""
  return {name: value for name, value in values.items() if math.isfinite(value)}

"""How many bad steps a run may leave out, and the line about each of them."""

from collections.abc import Mapping
import math

from gpt2_flax.errors import RunError


class DivergedError(RunError):
  """Too many steps were bad; more of the same would not help."""


class BadSteps:
  """Counts the steps whose loss or gradient was bad, which `train_step` left out.

  Attributes:
    num_seen: how many there were.
    last_saved: the step of the newest checkpoint, or None.
  """

  def __init__(self, num_allowed: int, num_seen: int, last_saved: int | None):
    self.num_seen, self.last_saved = num_seen, last_saved
    self._num_allowed = num_allowed

  def check(self, step: int, metrics: Mapping[str, float]) -> str | None:
    """A line about this step if it was left out, else None.

    Args:
      metrics: of this step, from `make_train_step`.

    Raises:
      DivergedError: it is one too many.
    """
    if metrics["train/skipped"] <= self.num_seen:
      return None
    self.num_seen += 1
    loss, grad_norm = metrics["train/loss"], metrics["train/grad_norm"]
    what = (
      f"the loss is {loss:.4g} and its gradient's norm {grad_norm:.4g} at step {step}"
    )
    if metrics["train/targets"] == 0:
      what += ", whose batch has no target that counts"
    elif math.isfinite(loss) and math.isfinite(grad_norm):
      what += f", after a mean loss of {metrics['train/loss_mean']:.4g}"
    if self.num_seen > self._num_allowed:
      saved = f"step {self.last_saved}" if self.last_saved else "none yet"
      raise DivergedError(
        f"{what}: stopped before they reach the parameters, as"
        f" train.max_skipped_steps is {self._num_allowed}; last good checkpoint:"
        f" {saved}"
      )
    return f"{what}: left out, {self.num_seen} of at most {self._num_allowed}"

"""What a person sees while it runs: a bar on a terminal, plain lines elsewhere."""

import sys

import jax
import tqdm

from gpt2_flax import terminal


class Progress:
  """A progress bar with the latest loss, gap and speed; lines that stay go above it."""

  def __init__(self, num_steps: int, start_step: int):
    self._terminal = sys.stderr.isatty() and jax.process_index() == 0
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=start_step,
      unit="step",
      dynamic_ncols=True,
      disable=not self._terminal,
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def update(self, step: int, shown: dict[str, str]) -> None:
    """Moves the bar to a step."""
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update(step - self._bar.n)

  def log(self, step: int, shown: dict[str, str]) -> None:
    """The same as a plain line, where there is no bar to show it."""
    if not self._terminal:
      pairs = "  ".join(f"{name} {value}" for name, value in shown.items())
      self.line(f"step {step}  {pairs}")

  def line(self, text: str) -> None:
    """A line that stays; a sample in it may be anything that the model writes."""
    text = terminal.lines(text)
    if self._terminal:
      self._bar.write(text, file=sys.stdout)
    else:
      print(text, flush=True)

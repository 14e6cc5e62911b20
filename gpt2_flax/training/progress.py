"""What a person sees while it runs: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Collection, Mapping
import sys
import time

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


class SweepProgress:
  """Of many runs: how many are done, and how long the others will take.

  Args:
    costs: of all members, by name, in any unit.
    done: names of those that have ended before.
    tell: takes the line about each that has ended.
  """

  def __init__(
    self,
    costs: Mapping[str, float],
    done: Collection[str],
    tell: Callable[[str], None],
  ):
    self._tell = tell
    self._num_members = len(costs)
    self._left = {name: cost for name, cost in costs.items() if name not in done}
    self._spent, self._began = 0.0, time.perf_counter()
    self._bar = tqdm.tqdm(
      total=self._num_members,
      initial=self._num_members - len(self._left),
      dynamic_ncols=True,
      miniters=0,  # it tells of the steps of members, too
      disable=not sys.stderr.isatty(),
      bar_format="{n_fmt} of {total_fmt} members |{bar}| {elapsed}{postfix}",
    )

  def __enter__(self) -> "SweepProgress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def of_member(self, name: str, num_steps: int, start_step: int) -> "_MemberProgress":
    """What a run reports to instead of a `Progress`."""
    of_step = self._left[name] / num_steps
    self._left[name] -= of_step * start_step
    return _MemberProgress(self, of_step, name, start_step)

  def spent(self, name: str, cost: float, loss: str) -> None:
    """A part of a member's cost has been spent."""
    self._spent += cost
    self._left[name] -= cost
    if not self._bar.disable:
      shown = f"{self._time_left()}, {name} {loss}"
      self._bar.set_postfix_str(shown, refresh=False)
      self._bar.update(0)

  def _time_left(self) -> str:
    if not self._spent:
      return "time left unknown"
    left = sum(self._left.values()) / self._spent
    seconds = (time.perf_counter() - self._began) * left
    for unit, size in (("h", 3600), ("min", 60)):
      if seconds >= 1.5 * size:
        return f"about {seconds / size:.1f} {unit} left"
    return f"about {seconds:.0f} s left"

  def ended(self, name: str, told: str) -> None:
    """A member has ended: a line about it, and how far the sweep is."""
    del self._left[name]  # one that diverged has more of it than none
    num_done = self._num_members - len(self._left)
    left = f", {self._time_left()}" if self._left else ""
    text = terminal.lines(
      f"{num_done} of {self._num_members} members{left}: {name}  {told}"
    )
    if self._bar.disable:
      self._tell(text)
    else:
      with self._bar.external_write_mode():
        self._tell(text)
      self._bar.update(1)


class _MemberProgress(Progress):
  """As `Progress`: its lines are in the member's own files, and not shown."""

  def __init__(self, sweep: SweepProgress, of_step: float, name: str, step: int):
    self._sweep, self._of_step, self._name, self._step = sweep, of_step, name, step

  def __enter__(self) -> "_MemberProgress":
    return self

  def __exit__(self, *_) -> None:
    pass

  def update(self, step: int, shown: dict[str, str]) -> None:
    self._sweep.spent(self._name, self._of_step * (step - self._step), shown["loss"])
    self._step = step

  def log(self, step: int, shown: dict[str, str]) -> None:
    pass

  def line(self, text: str) -> None:
    pass

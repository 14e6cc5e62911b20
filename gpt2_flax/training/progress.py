"""What a person sees while it runs: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Sequence
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
    members: the cost of each, in any unit, and whether it is done already.
    tell: takes the line about each that has ended.
  """

  def __init__(
    self, members: Sequence[tuple[float, bool]], tell: Callable[[str], None]
  ):
    self._tell = tell
    self._num_members = len(members)
    self._num_done = sum(done for _, done in members)
    self._left = sum(cost for cost, done in members if not done)
    self._spent, self._began = 0.0, time.perf_counter()
    self._bar = tqdm.tqdm(
      total=self._num_members,
      initial=self._num_done,
      unit="member",
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
      bar_format="{n_fmt} of {total_fmt} members |{bar}| {elapsed}{postfix}",
    )

  def __enter__(self) -> "SweepProgress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def of_member(
    self, cost: float, name: str, num_steps: int, start_step: int
  ) -> "_MemberProgress":
    """What a run reports to instead of a `Progress`."""
    return _MemberProgress(self, cost / num_steps, name, start_step)

  def spent(self, cost: float, shown: str) -> None:
    """A part of a member's cost has been spent."""
    self._spent += cost
    self._left -= cost
    if not self._bar.disable:
      self._bar.set_postfix_str(f"{self._time_left()}, {shown}", refresh=False)
      self._bar.update(0)

  def _time_left(self) -> str:
    if not self._spent:
      return "time left unknown"
    seconds = (time.perf_counter() - self._began) * max(0, self._left) / self._spent
    return (
      f"about {seconds:.0f} s left"
      if seconds < 90
      else (
        f"about {seconds / 60:.0f} min left"
        if seconds < 5400
        else f"about {seconds / 3600:.1f} h left"
      )
    )

  def ended(self, told: str) -> None:
    """A member has ended: a line about it, and how far the sweep is."""
    self._num_done += 1
    text = terminal.lines(
      f"{self._num_done} of {self._num_members} members, {self._time_left()}: {told}"
    )
    if self._bar.disable:
      self._tell(text)
    else:
      with self._bar.external_write_mode():
        self._tell(text)
      self._bar.update(1)


class _MemberProgress(Progress):
  """As `Progress`: its lines are in the member's own files, and not shown."""

  def __init__(self, sweep: SweepProgress, cost: float, name: str, start_step: int):
    self._sweep, self._cost, self._name, self._step = sweep, cost, name, start_step

  def __enter__(self) -> "_MemberProgress":
    return self

  def __exit__(self, *_) -> None:
    pass

  def update(self, step: int, shown: dict[str, str]) -> None:
    self._sweep.spent(self._cost * (step - self._step), f"{self._name} {shown['loss']}")
    self._step = step

  def log(self, step: int, shown: dict[str, str]) -> None:
    pass

  def line(self, text: str) -> None:
    pass

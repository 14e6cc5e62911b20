"""What the rows of the reliability table have in common: tries, counted.

A row is a claim and a function that tries it. The ordinary suite calls each with a few
tries (`test_rows.py`), the full campaign with as many as docs/reliability.md reports
(`python -m tests.reliability --full`).
"""

from collections.abc import Callable
import contextlib
import dataclasses
import pathlib
import random


class Tally:
  """What came of the tries of one row.

  Attributes:
    tried, held: how many tries there were, and in how many the claim held.
    failures: one line for each of the others.
    measured: what else the table shall say, such as the longest time something took.
  """

  def __init__(self):
    self.tried = self.held = 0
    self.failures: list[str] = []
    self.measured = ""

  @contextlib.contextmanager
  def attempt(self, what: str):
    """One try: it holds unless anything is raised in the block."""
    self.tried += 1
    try:
      yield
    except Exception as error:
      self.failures.append(f"{what}: {error!r}")
    else:
      self.held += 1

  def add(self, other: "Tally") -> None:
    """Counts its tries too."""
    self.tried += other.tried
    self.held += other.held
    self.failures += other.failures


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table.

  Attributes:
    number: in the table.
    claim: what is tried, and what shall come of it.
    run: (empty folder, random, full) -> Tally. All chance comes from `random`. It
      raises unittest.SkipTest where the machine does not let it be tried.
  """

  number: int
  claim: str
  run: Callable[[pathlib.Path, random.Random, bool], Tally]

"""Runs the campaign and prints its table.

python -m tests.reliability --full             every row, as docs/reliability.md
python -m tests.reliability --full --rows=3,5  some of them
python -m tests.reliability                    a few tries of each
"""

import contextlib
import datetime
import os
import pathlib
import random
import sys
import tempfile
import time
import unittest

from absl import app, flags, logging

from gpt2_flax.doors import command_line
from tests import forked
from tests.reliability.rows import ROWS

_FULL = flags.DEFINE_bool("full", False, "All tries; else a few of each row.")
_ROWS = flags.DEFINE_list("rows", None, "Numbers of rows; default all.")
_SEED = flags.DEFINE_integer("seed", 0, "Where all chance comes from.")


def main(argv: list[str]) -> None:
  """Row by row, as each is done; exit code 1 where a claim did not hold."""
  del argv
  logging.set_verbosity(logging.WARNING)
  wanted = _ROWS.value or [str(row.number) for row in ROWS]
  if unknown := sorted(set(wanted) - {str(row.number) for row in ROWS}):
    sys.exit(f"error: --rows={','.join(unknown)}: must be of 1 to {ROWS[-1].number}")
  cache = tempfile.TemporaryDirectory()  # of texts and compiled programs
  os.environ["XDG_CACHE_HOME"] = cache.name
  os.environ.setdefault("XLA_FLAGS", forked.COMPILE_SOON)
  command_line.keep_compiled_programs()
  started, failures = time.monotonic(), []
  print("| # | claim | held | measured | seconds |")
  print("|--:|---|--:|---|--:|", flush=True)
  for row in ROWS:
    if str(row.number) not in wanted:
      continue
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
      chance = random.Random(f"{_SEED.value} {row.number}")
      try:
        with contextlib.redirect_stdout(sys.stderr):  # what is printed on the way
          tally = row.run(pathlib.Path(folder), chance, _FULL.value)
      except unittest.SkipTest as reason:
        print(f"| {row.number} | {row.claim} | not tried | {reason} | |", flush=True)
        continue
    seconds = time.monotonic() - begun
    print(
      f"| {row.number} | {row.claim} | {tally.held:,} of {tally.tried:,} |"
      f" {tally.measured} | {seconds:,.0f} |",
      flush=True,
    )
    failures += [f"row {row.number}: {failure}" for failure in tally.failures]
  minutes = (time.monotonic() - started) / 60
  print(f"\nSeed {_SEED.value}, {minutes:.0f} minutes, {datetime.date.today()}.")
  if failures:
    sys.exit("\n".join(["", "did not hold:", *failures]))


if __name__ == "__main__":
  app.run(main)

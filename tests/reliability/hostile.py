"""Hostile files and prompts: refused in one line, or of no harm.

`hostile_worker` reads them; here is who watches it, from outside, since what hangs or
takes all memory cannot tell.
"""

from collections.abc import Iterator
import concurrent.futures
import json
import os
import pathlib
import random as random_module
import selectors
import shutil
import signal
import tempfile
import time

from tests import forked
from tests.reliability import injection
from tests.reliability.campaign import Tally

HUNG = 5.0  # seconds of a processor
STUCK = 60.0  # seconds, where other processes may hold the processors
WORKERS = 2


def harmless(folder: pathlib.Path, random: random_module.Random, full: bool) -> Tally:
  """Files and prompts, and tokens on the page."""
  tally, shown = files(folder, random, full), injection.page(folder, random, full)
  tally.tried, tally.held = tally.tried + shown.tried, tally.held + shown.held
  tally.failures += shown.failures
  tally.measured += f"; {shown.measured}"
  return tally


def files(folder: pathlib.Path, random: random_module.Random, full: bool) -> Tally:
  """100,000 files and prompts, of all kinds that this project reads."""
  count = 100_000 if full else 500
  workers = WORKERS if full else 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    seeds = [f"{random.random()} {number}" for number in range(workers)]
    reports = list(
      pool.map(
        lambda seed: _watch(folder / seed, seed, count // workers),
        seeds,
      )
    )
  tally = Tally()
  tally.tried = count
  tally.failures = [failure for report in reports for failure in report["failures"]]
  tally.held = count - len(tally.failures)
  tally.measured = (
    f"{sum(report['refused'] for report in reports):,} refused, with"
    f" {max(report['errors'] for report in reports)} different errors, the others"
    f" harmless; longest {max(report['longest'] for report in reports):.1f} s;"
    f" at most {max(report['megabytes'] for report in reports):,} MB more"
  )
  return tally


def _watch(folder: pathlib.Path, seed: str, count: int) -> dict:
  """Lets workers try `count` inputs: one after the other, each until it is done for."""
  report = dict(failures=[], refused=0, errors=0, longest=0.0, megabytes=0)
  tried = life = 0
  while tried < count:
    life += 1
    here, last, so_far = folder / str(life), "the start", {"refused": 0}
    here.mkdir(parents=True)
    log = here.parent / f"{life}.log"
    with log.open("wb") as errors:
      process = forked.start(
        *("-m", "tests.reliability.hostile_worker"),
        *(str(here), f"{seed} {life}", str(count - tried)),
        stderr=errors.fileno(),
      )
    try:
      for said in _lines(process):
        if "trying" in said:
          tried += 1
          last = said["trying"]
        elif "failure" in said:
          report["failures"].append(f"{last}: {said['failure']}")
        else:
          so_far = said
    except TimeoutError as error:
      kept = tempfile.mkdtemp(prefix="hostile-")
      shutil.copytree(here, kept, dirs_exist_ok=True)
      report["failures"].append(f"{last}: {error} (the newest of {kept})")
    finally:
      process.kill()
      process.communicate()
    report["refused"] += so_far.pop("refused")
    report |= {name: max(report[name], value) for name, value in so_far.items()}
    if tried < count and process.returncode != -signal.SIGKILL:
      said = log.read_text(errors="replace")[-500:]
      report["failures"].append(
        f"{last}: the process ended with {process.returncode}: {said}"
      )
      if last == "the start":
        break
  return report


def _lines(process: forked.Process) -> Iterator[dict]:
  """What a worker says, until it ends; it may not be silent for long."""
  selector = selectors.PollSelector()  # has no file of its own to close
  selector.register(process.stdout, selectors.EVENT_READ)
  os.set_blocking(process.stdout.fileno(), False)
  rest, since, used = b"", time.monotonic(), None  # the start takes what it takes
  while True:
    if selector.select(timeout=0.5):
      if not (block := os.read(process.stdout.fileno(), 1 << 16)):
        return
      *lines, rest = (rest + block).split(b"\n")
      yield from (said := [json.loads(line) for line in lines])
      if said:  # what it makes, it may take its time for; not what it tries
        since = time.monotonic()
        used = _processor_seconds(process) if "trying" in said[-1] else None
    elif used is not None and _processor_seconds(process) - used > HUNG:
      raise TimeoutError(f"more than {HUNG:.0f} s")
    elif time.monotonic() - since > STUCK * (5 if used is None else 1):
      raise TimeoutError("stuck")


def _processor_seconds(process: forked.Process) -> float:
  fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
  ticks = sum(map(int, fields.split()[11:13]))
  return ticks / os.sysconf("SC_CLK_TCK")

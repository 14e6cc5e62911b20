"""Breaks the code in one place at a time, and looks whether a test notices.

    python -m tests.mutants               all mutants; exit code 1 where one survives
    python -m tests.mutants training/step  those of the files with this in their name,
                                           or of the TOML files with it in theirs

The mutants are the entries of the TOML files in this folder. Each names a file of the
project, a text in it (`before`, which is there once), what takes its place (`after`),
and the tests that must then fail; by default those that mirror the file.
"""

import collections
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
WORKERS = len(os.sched_getaffinity(0))
PATIENCE_SECONDS = 600  # a mutant that makes a test wait for ever is noticed too


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One change that a test must notice; see the fields above."""

  file: str
  before: str
  after: str
  tests: tuple[str, ...] = ()

  @property
  def noticed_by(self) -> tuple[str, ...]:
    """The tests to run: files, or tests in them."""
    path = pathlib.PurePath(self.file.removeprefix("gpt2_flax/"))
    return self.tests or (str("tests" / path.with_name(f"test_{path.name}")),)


def read_mutants(part_of_name: str = "") -> list[Mutant]:
  """Those of the files with this in their name, or of the TOML files with it."""
  found = []
  for path in sorted(pathlib.Path(__file__).parent.glob("*.toml")):
    for entry in tomllib.loads(path.read_text("utf-8"))["mutant"]:
      mutant = Mutant(**{**entry, "tests": tuple(entry.get("tests", ()))})
      if part_of_name in mutant.file or part_of_name in path.name:
        found.append(mutant)
  return found


def try_mutant(mutant: Mutant, copy: pathlib.Path, environment: dict[str, str]) -> str:
  """What became of it in a copy of the project: "killed", "survived", or why not."""
  path = copy / mutant.file
  whole = path.read_text("utf-8")
  if (times := whole.count(mutant.before)) != 1:
    return f"stale: {mutant.before!r} is there {times} times"
  path.write_text(whole.replace(mutant.before, mutant.after), "utf-8")
  command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider"]
  try:
    ended = subprocess.run(
      [*command, *mutant.noticed_by],
      cwd=copy,
      env=environment,
      capture_output=True,
      text=True,
      timeout=PATIENCE_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return "killed"
  finally:
    path.write_text(whole, "utf-8")
  outcomes = {0: "survived", 1: "killed"}
  return outcomes.get(ended.returncode, f"not tried: {ended.stdout[-500:]}")


def main(part_of_name: str = "") -> int:
  """0 if all that was tried was killed."""
  mutants = read_mutants(part_of_name)
  outcomes = collections.defaultdict(collections.Counter)
  with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=ROOT, text=True).splitlines()
    names = [name for name in names if (ROOT / name).exists()]
    copies: queue.Queue[pathlib.Path] = queue.Queue()
    for number in range(WORKERS):
      copy = pathlib.Path(folder) / str(number)
      for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
      copies.put(copy)
    # what is compiled for one is there for the next
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / "compiled")}
    environment = os.environ | compiled | {"PYTHONDONTWRITEBYTECODE": "1"}

    def go(mutant: Mutant) -> tuple[str, float]:
      copy, begun = copies.get(), time.monotonic()
      outcome = try_mutant(mutant, copy, environment)
      copies.put(copy)
      return outcome, time.monotonic() - begun

    for mutant, (outcome, seconds) in zip(mutants, pool.map(go, mutants), strict=True):
      outcomes[mutant.file][outcome.partition(":")[0]] += 1
      print(f"{outcome}  {mutant.file}  {seconds:.0f} s  {mutant.after!r}", flush=True)
  print("\n| file | mutants | killed |\n|---|--:|--:|")
  for file, counts in sorted(outcomes.items()):
    print(f"| {file} | {counts.total()} | {counts['killed']} |")
  killed = sum(counts["killed"] for counts in outcomes.values())
  print(f"| all | {len(mutants)} | {killed} |")
  return int(killed < len(mutants))


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))

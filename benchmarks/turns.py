"""Contenders take turns: each in a process of its own, one at work at a time.

A contender's process gets ready (imports, compiles, warms up), then works when told
to and says how long it took. So all have the same machine in the same minutes, and none
another's threads, memory or settings.
"""

from collections.abc import Callable, Sequence
import json
import os
import resource
import statistics
import subprocess
import sys
from typing import Any


def serve(work: Callable[[], dict[str, Any]]) -> None:
  """A contender's side: does `work` once for each line that comes in."""
  print(json.dumps("ready"), flush=True)
  for _ in sys.stdin:
    print(json.dumps(work()), flush=True)


def peak_bytes() -> int:
  """What this process has had in main memory at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def take_turns(
  module: str, names: Sequence[str], rounds: int, env: dict[str, dict[str, str]]
) -> dict[str, list[dict[str, Any]]]:
  """What each contender answered, round by round.

  Args:
    module: run as `python -m MODULE --contender=NAME` with this process's own flags.
    env: by name, environment variables of that contender alone.
  """
  processes = {}
  try:
    for name in names:
      processes[name] = subprocess.Popen(
        [sys.executable, "-m", module, *sys.argv[1:], f"--contender={name}"],
        env=os.environ | env.get(name, {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
      _answer(name, processes[name])
    answers = {name: [] for name in names}
    for _ in range(rounds):
      for name, process in processes.items():
        process.stdin.write("go\n")
        process.stdin.flush()
        answers[name].append(_answer(name, process))
    return answers
  finally:
    for process in processes.values():
      process.stdin.close()
      process.wait()


def _answer(name: str, process: subprocess.Popen) -> Any:
  for line in process.stdout:  # what the libraries print comes in between
    try:
      return json.loads(line)
    except json.JSONDecodeError:
      print(line, end="", file=sys.stderr)
  raise SystemExit(f"{name} ended with exit code {process.wait()}")


def spread(values: Sequence[float], digits: int) -> str:
  """Median (least to most)."""
  low, high = min(values), max(values)
  middle = statistics.median(values)
  return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """In Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)

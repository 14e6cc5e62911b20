"""One process that reads hostile input, one after the other, and says what came of it.

python -m tests.reliability.hostile_worker FOLDER SEED COUNT

To stdout goes a line of JSON before each is made ({"refused": how many were, ...}) and
one before it is tried ({"trying": kind}), and one for each that was not refused as it
should be ({"failure": ...}). An audit hook sees all that Python is asked to do
meanwhile, warnings are noted, and a limit on memory is set.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random as random_module
import re
import resource
import sys
import time
import warnings

from absl import logging

from gpt2_flax.errors import InputError, RunError
from gpt2_flax.files import json as json_files
from tests.reliability import mutations
from tests.reliability.hostile_targets import pickles, targets

MOST_MEMORY = 4 << 30  # of address space, beyond what there was before
LONGEST_LINE = 2100
MOST_KEPT = 1 << 17  # bytes of an input that others are made from
TRACED = 16  # one in so many is run under the tracer, to see which lines it reaches

# What no file may make Python do. Reading files is all that loading does.
FORBIDDEN = re.compile(
  r"exec|code\.__new__|pickle\.find_class|ctypes\..*"
  r"|subprocess\..*|os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|kill)"
  r"|os\.(remove|rename|mkdir|rmdir|link|symlink|chmod|chown|truncate|utime|putenv)"
  r"|shutil\..*|tempfile\..*|urllib\..*|webbrowser\..*|pty\..*"
  r"|socket\.(connect|bind|sendto|sendmsg|getaddrinfo|gethostby.*)"
)


class Audit:
  """What Python did while it was on, apart from reading files; what it warned of."""

  def __init__(self):
    self.on, self.seen = False, []
    sys.addaudithook(self._hook)
    warnings.showwarning = self._warn

  def _warn(self, message: Warning, category: type, *_) -> None:
    self.seen.append(f"{category.__name__} {message}"[:200])

  def _hook(self, event: str, arguments: tuple) -> None:
    if not self.on:
      return
    if event == "open":
      _, mode, flags = arguments
      writes = set(mode or "") & set("wax+") or (flags or 0) & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT
      )
      if not writes:
        return
    elif not FORBIDDEN.fullmatch(event):
      return
    self.seen.append(f"{event} {arguments!r}"[:200])


def reached(use) -> set[tuple[str, int]]:
  """Runs `use`; the lines of this package that it came to."""
  lines = set()

  def trace(frame, event, _):
    if "gpt2_flax" not in frame.f_code.co_filename:
      return None
    lines.add((frame.f_code.co_filename, frame.f_lineno))
    return trace

  sys.settrace(trace)
  try:
    use()
  except (InputError, RunError):
    pass
  finally:
    sys.settrace(None)
  return lines


def kind_of_error(error: Exception) -> str:
  """Its words, without the names and numbers."""
  return re.sub(r"'[^']*'|\"[^\"]*\"|[\w./-]*[\d/][\w./-]*", "#", str(error))[:200]


def try_one(target, audit: Audit, say) -> Exception | None:
  """Uses what was written; the error that refused it. Anything else is said."""
  refusal, failure = None, None
  audit.seen.clear()
  audit.on = True
  try:
    target.use()
  except (InputError, RunError) as error:
    refusal = error
    line = str(error)
    if len(line) > LONGEST_LINE or not line.isprintable():
      failure = f"not one clear line: {line!r}"
  except BaseException as error:
    failure = f"{type(error).__name__}: {error}"
  finally:
    audit.on = False
  if audit.seen:
    failure = f"it made Python do {audit.seen}"
  if failure:
    content = target.path.read_bytes()
    kept = pathlib.Path(f"/tmp/hostile-{hashlib.sha1(content).hexdigest()[:8]}")
    kept.write_bytes(content)
    say(failure=f"{failure[:500]} ({target.path.name}, kept as {kept})")
  return refusal


def main(folder: pathlib.Path, seed: str, count: int) -> None:
  """Warms up with all that is valid, then tries `count` inputs."""
  out = os.fdopen(os.dup(1), "w", buffering=1)

  def say(**what):
    out.write(json.dumps(what) + "\n")

  logging.set_verbosity(logging.FATAL)
  random, audit = random_module.Random(seed), Audit()
  all_targets = targets(folder)
  code = pickles(folder)
  for _, target in all_targets.values():
    for content in (*target.corpus, b"{"):  # what is imported late is imported now
      target.mutate(content, random)
      target.write(content)
      with contextlib.suppress(Exception):
        target.use()
  size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  limit = size * resource.getpagesize() + MOST_MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  listing = sorted(path for path in folder.rglob("*"))

  errors, lines, refused, longest = set(), set(), 0, 0.0
  valid = {kind: list(target.corpus) for kind, (_, target) in all_targets.items()}
  kinds, shares = list(all_targets), [share for share, _ in all_targets.values()]

  def say_so_far() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    say(refused=refused, errors=len(errors), longest=longest, megabytes=peak // 1024)

  for number in range(count):
    say_so_far()
    [kind] = random.choices(kinds, shares)
    target = all_targets[kind][1]
    chance = random.random()
    if chance < 0.02:
      content = random.choice(code)
    elif chance < 0.0201:
      content = mutations.large_json(json_files.MOST_BYTES, random)
    else:
      known = random.choice(valid[kind] if chance < 0.5 else target.corpus)
      try:
        content = target.mutate(known, random)
      except RecursionError:  # what was known is too deep to be taken apart
        content = mutations.of_bytes(known, random)
    target.write(content)
    say(trying=kind)
    began = time.process_time()
    error = try_one(target, audit, say)
    longest = max(longest, time.process_time() - began)
    refused += error is not None
    new = error is not None and (kind, kind_of_error(error)) not in errors
    if new:
      errors.add((kind, kind_of_error(error)))
    small = len(content) < MOST_KEPT  # the tracer takes many times as long
    if number % TRACED == 0 and small and kind not in ("checkpoint", "prompt"):
      with contextlib.suppress(BaseException):  # has been told of above
        now = reached(target.use)
        new = new or not now <= lines
        lines |= now
    if new and small:
      target.corpus.append(content)  # it came to something new: to be changed further
  if (folder / "hacked").exists():
    say(failure="a pickle was run")
  if listing != sorted(path for path in folder.rglob("*")):
    say(failure="files came or went")
  say_so_far()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

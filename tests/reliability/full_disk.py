"""A disk that is full ends the run with one line; once there is room, it goes on."""

from collections.abc import Iterator
import contextlib
import pathlib
import random
import re
import subprocess
import unittest

from tests import forked
from tests.reliability.campaign import Tally
from tests.reliability.runs import (
  assert_whole,
  checkpoint_steps,
  complaints,
  digest,
  evaluations,
  reference,
  TINY,
  train,
  train_to_the_end,
)

LARGEST = 400  # KiB; the tiny run takes about 600
RUNS = 16
FULL = "No space left on device"


def full_disk(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 6: runs on disks that are too small, and whatever else is written."""
  with small_disk(folder, 64):  # or say that it cannot be tried, before the work
    pass
  tally, hit = Tally(), set()
  sizes = [chance.randrange(8, LARGEST) for _ in range(RUNS)] if full else [300]
  for size in sizes:
    with tally.attempt(f"a run on {size} KiB"), small_disk(folder, size) as disk:
      hit.add(_run(disk))
  if full:
    rows = "--config.checkpoint.every_steps=1000", "--config.train.log_every_steps=1"
    for size in range(16, 40, 4):
      with tally.attempt(f"metrics on {size} KiB"), small_disk(folder, size) as disk:
        hit.add(_run(disk, *rows))
    for size in (8, 64, 120):
      with tally.attempt(f"text cache on {size} KiB"), small_disk(folder, size) as disk:
        _text_cache(disk, folder / "text")
        hit.add("a text cache")
    for size in (8, 16):
      with tally.attempt(f"export on {size} KiB"), small_disk(folder, size) as disk:
        _door(disk, "export.py", f"--workdir={reference()}", f"--output={disk / 'out'}")
        assert (disk / "out" / "model.safetensors").exists()
        hit.add("an export")
    for size in (8, 64):
      with tally.attempt(f"page on {size} KiB"), small_disk(folder, size) as disk:
        page = disk / "page.html"
        page.write_text("old")
        _door(disk, "explain.py", f"--workdir={reference()}", f"--output={page}")
        assert page.read_text().rstrip().endswith("</html>")
        hit.add("a page")
  tally.measured = f"full while writing {', '.join(sorted(hit))}"
  return tally


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kibibytes: int) -> Iterator[pathlib.Path]:
  """A file system in memory.

  Raises:
    unittest.SkipTest: only root may mount one, or nobody.
  """
  disk = folder / "disk"
  disk.mkdir(exist_ok=True)
  mounted = _mount(disk, f"size={kibibytes}k")
  if mounted.returncode:
    raise unittest.SkipTest(f"no small disk can be mounted: {mounted.stderr.strip()}")
  try:
    yield disk
  finally:
    subprocess.run(["umount", disk], check=True)


def _mount(disk: pathlib.Path, options: str) -> subprocess.CompletedProcess:
  command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
  return subprocess.run(command, capture_output=True, text=True)


def _make_room(disk: pathlib.Path) -> None:
  made = _mount(disk, "remount,size=64m")
  assert made.returncode == 0, made


def _run(disk: pathlib.Path, *flags: str) -> str:
  """What of the workdir could not be written."""
  workdir = disk / "run"
  ended = train(*TINY, *flags, f"--workdir={workdir}")
  path = _assert_full(ended, disk)
  kept = checkpoint_steps(workdir) if (workdir / "checkpoints").exists() else []
  for step in kept:
    assert_whole(workdir / "checkpoints" / str(step))
  _make_room(disk)
  done = train_to_the_end(workdir)
  assert not kept or f"goes on from step {kept[-1]} of" in done.stdout, done
  assert digest(workdir) == digest(reference()), "gone on, it ends in another state"
  assert evaluations(workdir) == evaluations(reference())
  return path.relative_to(workdir).parts[0] if path != workdir else "the workdir"


def _assert_full(
  ended: subprocess.CompletedProcess, disk: pathlib.Path
) -> pathlib.Path:
  """Where, as its one line says."""
  assert ended.returncode == 1, ended
  assert len(complaints(ended)) == 1, ended
  (line,) = complaints(ended)
  said = re.fullmatch(rf"error: .*?([^ =]+) cannot be written: {FULL}", line)
  assert said, line
  path = pathlib.Path(said[1])
  assert path.is_relative_to(disk), line
  return path


def _door(disk: pathlib.Path, door: str, *flags: str) -> None:
  """Fails and leaves what was there; does its work once there is room."""
  before = {path: path.read_bytes() for path in disk.iterdir()}
  _assert_full(_call(door, *flags), disk)
  assert {path: path.read_bytes() for path in disk.iterdir()} == before
  _make_room(disk)
  done = _call(door, *flags)
  assert (done.returncode, done.stderr) == (0, ""), done


def _text_cache(disk: pathlib.Path, text: pathlib.Path) -> None:
  """200 KB of text, as characters: 400 KB of tokens."""
  text.write_text("It was the best of times, it was the worst of times.\n" * 4_000)
  flags = (
    *TINY,
    "--config=configs/text.py",
    f"--config.data.path={text}",
    "--config.train.num_steps=2",
    f"--workdir={text.parent / 'text_run'}",
  )
  environment = {"XDG_CACHE_HOME": str(disk)}
  _assert_full(train(*flags, **environment), disk)
  assert not any((disk / "gpt2_flax").glob("*")), "something was left"
  _make_room(disk)
  done = train(*flags, **environment)
  assert (done.returncode, complaints(done)) == (0, []), done


def _call(door: str, *flags: str) -> subprocess.CompletedProcess:
  return forked.finish(forked.start(door, *flags))

"""One of two processes dies or stalls: the other ends too, and says so."""

from concurrent.futures import ThreadPoolExecutor
import pathlib
import random
import signal
import time

from tests import forked
from tests.reliability import runs
from tests.reliability.campaign import Tally

SILENT_SECONDS, COMPILE_SECONDS = 5, 8
# train.py, less patient with the other process than with its own compilation
IMPATIENT = f"""
import runpy, sys, time
from gpt2_flax.training import step, watch

watch.SILENT_SECONDS, watch.BEAT_SECONDS = {SILENT_SECONDS}, 0.5
summed_loss, compile_seconds = step.summed_loss, [int(sys.argv.pop(1))]

def slow(*args):
  if compile_seconds:
    time.sleep(compile_seconds.pop())
  return summed_loss(*args)

step.summed_loss = slow
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
EVERY_STEP = "--config.train.log_every_steps=1"
QUICK = ((0, signal.SIGSTOP),)
FULL = [(i, kind) for i in (0, 1) for kind in (signal.SIGSTOP, signal.SIGKILL)] * 5


def stalled(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 11: each of two is killed and stopped, after it took long to compile."""
  tally, cases = Tally(), FULL if full else QUICK
  steps = [chance.randint(1, 60) for _ in cases]
  with ThreadPoolExecutor(2) as side_by_side:
    tries = [
      side_by_side.submit(_stall, folder / f"run{number}", step, *case)
      for number, (step, case) in enumerate(zip(steps, cases, strict=True))
    ]
  seconds = []
  for result, step, (which, number) in zip(tries, steps, cases, strict=True):
    with tally.attempt(f"{number.name} to process {which} after step {step}"):
      seconds.append(result.result())
  tally.measured = (
    f"{SILENT_SECONDS} s of silence are set: ended after at most"
    f" {max(seconds, default=0):.0f} s; compiled for {COMPILE_SECONDS} s without alarm"
  )
  return tally


def _stall(
  workdir: pathlib.Path, step: int, which: int, number: signal.Signals
) -> float:
  """Seconds from the signal to one process until the end of the other."""
  coordinator = f"--coordinator=localhost:{runs.free_port()}"
  both = [
    forked.start(
      *("-c", IMPATIENT, str(COMPILE_SECONDS if i == which else 0)),
      *(*runs.TINY, EVERY_STEP, f"--workdir={workdir}"),
      *(coordinator, "--num_processes=2", f"--process_id={i}"),
      **forked.on_devices(1),
    )
    for i in range(2)
  ]
  victim, other = both[which], both[1 - which]
  try:
    runs.wait_for(runs.logged(step), workdir, victim)
    victim.send_signal(number)
    begun = time.monotonic()
    ended = forked.finish(other)
    seconds = time.monotonic() - begun
  finally:
    for process in both:
      process.kill()
      process.communicate()
  assert ended.returncode == 1, ended
  line, *stacks = ended.stderr[ended.stderr.find("error: ") :].splitlines()
  assert line.startswith(f"error: process {which} does not answer: "), ended
  assert "loop.py" in "".join(stacks) or number == signal.SIGKILL, ended
  assert sum("(most recent call first):" in stack for stack in stacks) > 2, ended
  return seconds

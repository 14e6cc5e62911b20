"""How a door ends when it is interrupted, or nobody reads it any more."""

import pathlib
import signal
import subprocess
import sys

from absl.testing import parameterized
import chex

ROOT = pathlib.Path(__file__).parent.parent
DOOR = """
import time
from gpt2_flax import command_line

def main():
{main}

command_line.run(main)
"""
WRITING = """
  try:
    print("writing", flush=True)
    time.sleep(600)
  finally:
    print("cleaned up")
"""
DEAF = """
  try:
    print("writing", flush=True)
    time.sleep(600)
  except SystemExit:
    print("still here", flush=True)
    time.sleep(600)
"""
TALKING = """
  for _ in range(100_000):
    print("a line")
"""


def start(main: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", DOOR.format(main=main)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


class InterruptedTest(chex.TestCase):
  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_cleans_up_and_says_nothing(self, number):
    with start(WRITING) as door:
      self.assertEqual(door.stdout.readline(), "writing\n")
      door.send_signal(number)
      self.assertEqual(door.communicate(timeout=60), ("cleaned up\n", ""))
    self.assertEqual(door.returncode, 128 + number)

  def test_a_second_signal_does_not_wait_for_that(self):
    with start(DEAF) as door:
      for line in ("writing\n", "still here\n"):
        self.assertEqual(door.stdout.readline(), line)
        door.send_signal(signal.SIGINT)
      self.assertEqual(door.communicate(timeout=60), ("", ""))
    self.assertEqual(door.returncode, -signal.SIGINT)

  @parameterized.parameters(TALKING, TALKING.replace("100_000", "10"))
  def test_nobody_reads(self, main):
    with start(main) as door:
      door.stdout.close()
      self.assertEqual(door.stderr.read(), "")
    self.assertEqual(door.returncode, 128 + signal.SIGPIPE)

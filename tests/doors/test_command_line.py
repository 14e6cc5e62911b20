"""How a door ends when it is interrupted, or when its reader closes the pipe."""

import pathlib
import signal
import tempfile

from absl.testing import parameterized
import chex

from tests import forked

DOOR = """
import pathlib, sys, time
from gpt2_flax.files.atomic import replacing
from gpt2_flax.doors import command_line

folder = pathlib.Path(sys.argv.pop())

def main():
{main}

command_line.run(main)
"""
WRITING = """
  with replacing(folder / "file") as temporary:
    temporary.write_text("half")
    print("half written")
    print("writing", file=sys.stderr, flush=True)
    time.sleep(600)
"""
TALKING = """
  for _ in range(100_000):
    print("a line")
"""


def start(main: str, folder: str = ".") -> forked.Process:
  return forked.start("-c", DOOR.format(main=main), folder)


class InterruptedTest(chex.TestCase):
  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_nothing_half_written_stays_and_nothing_is_said(self, number):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    with start(WRITING, str(folder)) as door:
      self.assertEqual(door.stderr.readline(), "writing\n")
      self.assertLen(list(folder.iterdir()), 1)
      door.send_signal(number)
      self.assertEqual(door.communicate(timeout=60), ("half written\n", ""))
    self.assertEqual(door.returncode, 128 + number)
    self.assertEqual(list(folder.iterdir()), [])

  @parameterized.parameters(TALKING, TALKING.replace("100_000", "10"))
  def test_nobody_reads(self, main):
    with start(main) as door:
      door.stdout.close()
      self.assertEqual(door.stderr.read(), "")
    self.assertEqual(door.returncode, 128 + signal.SIGPIPE)

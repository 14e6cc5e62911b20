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


def start(main: str, folder: str = ".", stdout: int | None = None) -> forked.Process:
  return forked.start("-c", DOOR.format(main=main), folder, stdout=stdout)


KEEPING = """
import jax
from gpt2_flax.doors import command_line
command_line.keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""


class CompiledTest(chex.TestCase):
  @parameterized.parameters(
    ({}, "0.1"), ({"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}, "3.0")
  )
  def test_small_programs_are_kept_unless_the_environment_says_which(self, said, least):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    said = said | {"JAX_COMPILATION_CACHE_DIR": folder}
    done = forked.finish(forked.start("-c", KEEPING, **said))
    self.assertEqual(done.stdout.split(), [folder, least], done.stderr)


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
    with forked.unread() as stdout, start(main, stdout=stdout) as door:
      self.assertEqual(door.stderr.read(), "")
    self.assertEqual(door.returncode, 128 + signal.SIGPIPE)

"""`sample.py --interactive`, from a pipe and at a terminal of its own."""

import os
import pathlib
import pty
import re
import select
import signal
import tempfile
import time

from absl.testing import parameterized
import chex
import jax

from gpt2_flax import pretrained, terminal
from gpt2_flax.generation import Sampling
from gpt2_flax.writing.conversation import Conversation
from tests import forked
from tests.writing.small_model import LETTERS, model_and_params

AT_A_TERMINAL = """
import os, runpy, sys
os.setsid()
terminal = os.open({name!r}, os.O_RDWR)  # now the one that controls this process
for stream in (0, 1):
  os.dup2(terminal, stream)
sys.argv = ["sample.py", *{flags!r}]
runpy.run_path("sample.py", run_name="__main__")
"""


class InteractiveTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model, cls.params = model_and_params(context_length=64)
    pretrained.save(cls.folder / "model", cls.model, cls.params, LETTERS)
    cls.flags = (
      f"--pretrained={cls.folder / 'model'}",
      "--interactive",
      "--temperature=0",
    )

  def conversation(self):
    return Conversation(
      self.model,
      self.params,
      LETTERS,
      key=jax.random.key(0),
      sampling=Sampling(temperature=0),
    )

  def test_lines_from_a_pipe(self):
    flags = ("--prompt=abc", "--num_tokens=7")
    done = forked.finish(forked.start("sample.py", *self.flags, *flags), "de\n\nf")
    self.assertEqual((done.returncode, done.stderr), (0, ""))
    talk = self.conversation()
    talk.say("abc")
    expected = "abc\n"
    for line in ("de", "", "f"):
      talk.say(line)
      expected += "".join(talk.write(7)) + "\n"
    self.assertEqual(done.stdout, expected)

  def test_a_line_that_cannot_be_said_is_named_and_not_the_end(self):
    args = ("sample.py", *self.flags, "--num_tokens=3")
    done = forked.finish(forked.start(*args), "\nab\n")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(
      done.stderr, "error: the prompt is empty: must have at least one token\n"
    )
    talk = self.conversation()
    talk.say("ab")
    self.assertEqual(done.stdout, "".join(talk.write(3)) + "\n")

  def test_at_a_terminal(self):
    """A line is edited; Ctrl-C ends a turn and clears a line; Ctrl-D ends with 0."""
    ours, theirs = pty.openpty()
    self.addCleanup(os.close, ours)
    flags = (*self.flags, "--num_tokens=50000")
    code = AT_A_TERMINAL.format(name=os.ttyname(theirs), flags=flags)
    process = forked.start("-c", code)
    self.addCleanup(process.kill)
    self.shown = b""

    def wait_for(pattern):
      """What is shown from here on up to it."""
      until = time.monotonic() + forked.PATIENCE_SECONDS
      while not (found := re.search(pattern, self.shown)):
        ready, _, _ = select.select([ours], [], [], 1)
        self.shown += os.read(ours, 10_000) if ready else b""
        if process.poll() is not None or time.monotonic() > until:
          process.kill()
          self.fail((self.shown, process.communicate()))
      before, self.shown = self.shown[: found.start()], self.shown[found.end() :]
      return before

    def interrupt_the_line():
      """Ctrl-C, which readline would miss on its way to wait for a key."""
      process.wait_until("S")
      os.write(ours, b"\x03")

    prompt = rb"(^|\r\n|\x1b\[\?2004[hl]\r?)> $"
    wait_for(prompt)
    os.write(ours, b"abx\x7fc\n")  # the x is taken back
    talk = self.conversation()
    talk.say("abc")
    first = next(talk.write(16))
    shown = terminal.lines(first).replace("\n", "\r\n")
    wait_for(re.escape(shown.encode()))
    os.write(ours, b"\x03")
    self.assertLess(len(wait_for(prompt)), 49_000)  # not all of them
    os.write(ours, b"forget this")
    wait_for(b"forget this")
    interrupt_the_line()
    wait_for(prompt)
    os.write(ours, b"\x1b[A")  # the line before, which Ctrl-C did not make one
    wait_for(b"abc")
    interrupt_the_line()
    wait_for(prompt)
    os.write(ours, b"\x04")
    os.close(theirs)
    self.assertEqual(process.wait(forked.PATIENCE_SECONDS), 0)
    process.communicate()

  @parameterized.parameters(
    ("--prompts=x", "--prompts: not with --interactive"),
    ("--num_beams=2", "--num_beams: not with --interactive"),
    ("--overflow=stop", "--overflow: not with --interactive"),
    ("--prompt_file=-", "--prompt_file=-: not with --interactive, which reads"),
  )
  def test_refuses(self, flag, message):
    bad = forked.finish(forked.start("sample.py", *self.flags, flag))
    self.assertEqual((bad.returncode, bad.stdout), (2, ""))
    self.assertStartsWith(bad.stderr, f"error: {message}")
    self.assertEqual(bad.stderr.count("\n"), 1)

  def test_a_line_that_is_not_utf8_is_no_end_either(self):
    process = forked.start("sample.py", *self.flags, "--num_tokens=2")
    os.write(process.stdin.fileno(), b"a\xffb\n")
    done = forked.finish(process, "ab\n")
    self.assertEqual(done.returncode, 0)
    self.assertEqual(done.stderr, "error: the line is not UTF-8\n")
    self.assertEqual(done.stdout.count("\n"), 1)

  def test_sigterm_ends_it(self):
    process = forked.start("sample.py", *self.flags, "--prompt=abc")
    self.assertEqual(process.stdout.readline(), "abc\n")
    process.send_signal(signal.SIGTERM)
    self.assertEqual(forked.finish(process).returncode, 128 + signal.SIGTERM)

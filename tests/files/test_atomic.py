"""What is replaced is replaced whole; what fails leaves all as it was."""

import errno
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax import InputError
from gpt2_flax.errors import RunError
from gpt2_flax.files.atomic import replacing, write_text


class AtomicFilesTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / "file"

  def content(self) -> dict[str, str]:
    return {path.name: path.read_text() for path in self.folder.iterdir()}

  def test_a_file_is_replaced_and_nothing_left_beside_it(self):
    write_text(self.path, "old")
    write_text(self.path, "new")
    self.assertEqual(self.content(), {"file": "new"})

  def test_a_folder_appears_with_all_that_is_in_it(self):
    with replacing(self.folder / "new" / "folder") as temporary:
      temporary.mkdir()
      (temporary / "a").write_text("A")
      self.assertEqual(os.listdir(self.folder / "new"), [temporary.name])
    self.assertEqual(os.listdir(self.folder / "new"), ["folder"])
    self.assertEqual((self.folder / "new" / "folder" / "a").read_text(), "A")

  def test_all_of_it_is_on_the_disk_before_it_gets_its_name(self):
    events = []

    def fsync(descriptor: int) -> None:
      events.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def replace(self: pathlib.Path, target: pathlib.Path) -> None:
      events.append("renamed")
      os.replace(self, target)

    with (
      mock.patch.object(os, "fsync", fsync),
      mock.patch.object(pathlib.Path, "replace", replace),
      replacing(self.path) as temporary,
    ):
      (temporary / "inner").mkdir(parents=True)
      (temporary / "inner" / "a").write_text("A")
    at = events.index("renamed")
    names = {pathlib.Path(path).name for path in events[:at]}
    self.assertEqual(names, {temporary.name, "inner", "a"})
    self.assertEqual(events[at + 1 :], [str(self.folder)])

  @parameterized.parameters(
    (OSError(errno.ENOSPC, "No space"), RunError, "file cannot be written: No space$"),
    (OSError(errno.EIO, "Broken"), RunError, "file cannot be written: Broken$"),
    (OSError(errno.EACCES, "Denied"), InputError, "file cannot be written: Denied$"),
    (
      RuntimeError("I/O error: whatever (os error 28)"),  # as Rust has it
      RunError,
      "file cannot be written: No space left on device$",
    ),
    (
      ValueError("UNAVAILABLE: whatever [os_error_code='28' x=1]"),  # as tensorstore
      RunError,
      "file cannot be written: No space left on device$",
    ),
    (KeyError("ours"), KeyError, "ours"),
  )
  def test_what_fails_leaves_all_as_it_was(self, error, raised, message):
    write_text(self.path, "old")
    with self.assertRaisesRegex(raised, message), replacing(self.path) as temporary:
      temporary.write_text("half")
      raise error
    self.assertEqual(self.content(), {"file": "old"})

  def test_a_folder_that_cannot_be_made(self):
    self.path.write_text("a file")
    with self.assertRaisesRegex(InputError, "inner cannot be written: "):
      write_text(self.path / "inner", "text")
    self.assertEqual(self.content(), {"file": "a file"})

  def test_only_what_was_abandoned_is_removed(self):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
      dead.wait()
    here = platform.node()
    file, folder, going_on, elsewhere, other = (
      self.folder / name
      for name in (
        f".a.{here}.{dead.pid}.tmp",
        f".b.{here}.{dead.pid}.tmp",
        f".c.{here}.{os.getppid()}.tmp",
        f".d.else-{here}.{dead.pid}.tmp",
        f".e.{here}.x.tmp",
      )
    )
    for path in (file, going_on, elsewhere, other):
      path.touch()
    (folder / "inner").mkdir(parents=True)
    write_text(self.path, "text")
    left = {self.path, going_on, elsewhere, other}
    self.assertEqual(set(self.folder.iterdir()), left)

"""One reader of text: UTF-8 as it is there, and errors that name file and byte."""

import codecs
import io
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax.errors import InputError
from gpt2_flax.files import text

TEXT = "né\r\nb\rc\n\n\u2028№ 😀\ufeff\x00 end\r\n"


class ReadTextTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "x.txt"

  def read(self, content: bytes, where: str, block_bytes: int = 1 << 20) -> str:
    stdin = io.TextIOWrapper(io.BytesIO(content), encoding="ascii")
    self.path.write_bytes(content)
    with (
      mock.patch.object(text, "BLOCK_BYTES", block_bytes),
      mock.patch.object(sys, "stdin", stdin),
    ):
      return text.read_text("-" if where == "stdin" else self.path, "--flag")

  @parameterized.product(
    where=("file", "stdin"), mark=(b"", codecs.BOM_UTF8), block_bytes=(1, 5, 1 << 20)
  )
  def test_is_what_was_written_without_the_mark(self, where, mark, block_bytes):
    self.assertEqual(self.read(mark + TEXT.encode(), where, block_bytes), TEXT)

  @parameterized.product(where=("file", "stdin"), block_bytes=(1, 5, 1 << 20))
  def test_a_wrong_byte_is_named(self, where, block_bytes):
    name = "stdin" if where == "stdin" else self.path
    for content, says in (
      (b"caf\xe9 noir", "byte 3 is 0xe9"),
      (b"\xff\xfea\x00", "byte 0 is 0xff"),
      (codecs.BOM_UTF8 + b"0123456789\x80", "byte 13 is 0x80"),
      ("ab😀".encode()[:-1], "byte 2 is 0xf0"),  # cut short at the end
    ):
      with self.assertRaises(InputError) as caught:
        self.read(content, where, block_bytes)
      self.assertEqual(str(caught.exception), f"--flag: {name} is not UTF-8: {says}")

  def test_no_file(self):
    for path, reason in (
      (self.path, "No such file or directory"),
      (self.path.parent, "Is a directory"),
    ):
      with self.assertRaises(InputError) as caught:
        text.read_text(path, "--flag")
      self.assertEqual(
        str(caught.exception), f"--flag: {path} cannot be read: {reason}"
      )

  def test_blocks_are_of_the_size_that_is_read(self):
    self.path.write_bytes(b"abcdefg")
    with mock.patch.object(text, "BLOCK_BYTES", 3):
      self.assertEqual(
        list(text.text_blocks(self.path, "--flag")), ["abc", "def", "g", ""]
      )

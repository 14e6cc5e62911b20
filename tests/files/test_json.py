"""JSON that others wrote, up to a size and a depth."""

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex

from gpt2_flax.errors import InputError
from gpt2_flax.files import json as json_files
from gpt2_flax.files import text


class ReadJsonTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "x.json"

  def assert_refused(self, says: str):
    with self.assertRaisesRegex(InputError, says) as caught:
      json_files.read_json(self.path)
    self.assertStartsWith(str(caught.exception), str(self.path))

  def test_values(self):
    self.path.write_text('{"a": [1, {"b": "\\ud83d\\ude42"}]}')
    self.assertEqual(json_files.read_json(self.path), {"a": [1, {"b": "🙂"}]})

  @parameterized.parameters(
    ('{"a": "\\ud83d"}', "is not JSON: .*surrogates not allowed"),
    ('{"\\udc00": 1}', "is not JSON: .*surrogates not allowed"),
    ('{"a":' + "[" * 100 + "]" * 100 + "}", "is not JSON: nested more than 64 deep"),
    ('{"a":' * 10_000, "is not JSON"),
    ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ('{"a" 1}', "is not JSON: Expecting ':' delimiter at column 6$"),
    ('{\n"a" 1}', "is not JSON: Expecting ':' delimiter at line 2, column 5$"),
    ("[]", "is not a JSON object"),
  )
  def test_refused(self, text, says):
    self.path.write_text(text)
    self.assert_refused(says)

  def test_too_large(self):
    self.path.write_text('{"a": 1}')
    with mock.patch.object(json_files, "MOST_BYTES", 7):
      self.assert_refused("is too large: must have at most 7 bytes")
    with mock.patch.object(json_files, "MOST_BYTES", 8):
      self.assertEqual(json_files.read_json(self.path), {"a": 1})

  def test_too_many_parts(self):
    self.path.write_text('{"a": [[], {}]}')
    with mock.patch.object(json_files, "MOST_PARTS", 3):
      self.assert_refused("must have at most 3 lists and objects")
    with mock.patch.object(json_files, "MOST_PARTS", 4):
      self.assertEqual(json_files.read_json(self.path), {"a": [[], {}]})

  def test_no_file(self):
    self.assert_refused("is missing")
    os.mkfifo(self.path)  # opened, it would wait for who writes to it
    self.assert_refused("it is not a file")


class ReadJsonLinesTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "x.jsonl"

  def read(self, content: str) -> list:
    self.path.write_bytes(content.encode())
    return list(json_files.read_json_lines(self.path, "--flag"))

  @parameterized.parameters(1, 7, 1 << 20)
  def test_each_line_an_object(self, block_bytes):
    lines = ['\ufeff{"a": "\u2028\x85№"}\r', "", ' {"b": {"c": []}} ', " \t\r", "{}"]
    objects = {1: {"a": "\u2028\x85№"}, 3: {"b": {"c": []}}, 5: {}}
    expected = [(f"--flag: {self.path}, line {n}", o) for n, o in objects.items()]
    with mock.patch.object(text, "BLOCK_BYTES", block_bytes):
      self.assertEqual(self.read("\n".join(lines)), expected)
      self.assertEqual(self.read("\n".join([*lines, "", ""])), expected)

  @parameterized.parameters(
    ("[1]", "line 2 is not a JSON object"),
    ('{"a": 1} {"b": 2}', "line 2 is not JSON: Extra data at column 10$"),
    ('{"a": ', "line 2 is not JSON: Expecting value"),
    ('{"a": "\\ud83d"}', "line 2 is not JSON: .*surrogates not allowed"),
    ('{"a":' + "[" * 100 + "]" * 100 + "}", "line 2 is not JSON: nested more than 64"),
  )
  def test_refused(self, line, says):
    with self.assertRaisesRegex(InputError, rf"^--flag: .*x\.jsonl, {says}"):
      self.read('{"a": 1}\n' + line + '\n{"a": 2}')

  def test_too_long(self):
    line = '{"a": 1}'
    with (
      mock.patch.object(json_files, "MOST_BYTES", len(line) - 1),
      self.assertRaisesRegex(InputError, "line 2 is too long: must have at most"),
    ):
      self.read("\n" + line)
    with mock.patch.object(json_files, "MOST_BYTES", len(line)):
      self.assertLen(self.read(line), 1)

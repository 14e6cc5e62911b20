"""Every character of the files is used, in its split, and errors name their cause."""

import hashlib
import http.server
import os
import pathlib
import tempfile
import threading
from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.dataset import floor
from gpt2_flax.datasets.text import TextConfig
from gpt2_flax.errors import InputError

TEXT = "Où est le cœur ?\r\nIci : 😀\n\r\ttab\r" * 7 + "fin"
SPLITS = ("train", "validation")


class FolderTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, content, name="text.txt"):
    path = self.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def windows_of(dataset, split):
  return np.stack([dataset.window(split, i) for i in range(dataset.num_windows(split))])


def ids(text, tokenizer):
  """The tokens, written without the tokenizers."""
  if tokenizer == "byte":
    return list(text.encode())
  alphabet = sorted(set(TEXT))
  return [alphabet.index(character) for character in text]


class SplitTest(FolderTest):
  @parameterized.product(
    tokenizer=("char", "byte"), context_length=(1, 6, 7), fraction=(0.1, 0.35)
  )
  def test_splits_share_the_text_between_them(
    self, tokenizer, context_length, fraction
  ):
    config = TextConfig(self.write(TEXT), tokenizer, fraction)
    dataset = config.make(context_length)
    tokens = ids(TEXT, tokenizer)
    num_validation = round(fraction * len(tokens))
    train, validation = tokens[:-num_validation], tokens[-num_validation:]

    windows = windows_of(dataset, "train")
    self.assertEqual(windows.dtype, np.int32)
    expected = [
      train[i : i + context_length + 1] for i in range(len(train) - context_length)
    ]
    chex.assert_trees_all_equal(windows, np.array(expected, np.int32))

    windows = windows_of(dataset, "validation")
    self.assertEqual(windows.dtype, np.int32)
    chex.assert_shape(windows, (None, context_length + 1))
    targets = windows[:, 1:].ravel()
    num_targets = num_validation - 1
    self.assertEqual(targets[:num_targets].tolist(), validation[1:])  # each once
    self.assertEqual(set(targets[num_targets:]) | {-1}, {-1})
    self.assertLess(len(targets) - num_targets, context_length)
    inputs = windows[:, :-1].ravel()
    self.assertEqual(inputs[:num_targets].tolist(), validation[:-1])

  def test_shortest_text_gives_one_training_window(self):
    dataset = TextConfig(self.write("abcdefgh"), validation_fraction=0.25).make(5)
    chex.assert_trees_all_equal(
      windows_of(dataset, "train"), np.arange(6, dtype=np.int32)[None]
    )
    chex.assert_trees_all_equal(
      windows_of(dataset, "validation"),
      np.array([[6, 7, -1, -1, -1, -1]], np.int32),
    )

  @parameterized.parameters("char", "byte")
  def test_decodes_to_the_very_text(self, tokenizer):
    dataset = TextConfig(self.write(TEXT), tokenizer, 0.5).make(4)
    train, validation = (windows_of(dataset, split) for split in SPLITS)
    tokens = [*train[:, 0], *train[-1, 1:], validation[0, 0], *validation[:, 1:].flat]
    tokens = [int(token) for token in tokens if token >= 0]
    self.assertEqual(dataset.tokenizer.decode(tokens), TEXT)

  def test_has_no_oracle(self):
    dataset = TextConfig(self.write(TEXT)).make(4)
    windows = windows_of(dataset, "validation")
    self.assertIsNone(dataset.next_token_probabilities(windows[0]))
    self.assertIsNone(floor(dataset, windows))


class FilesTest(FolderTest):
  def read(self, pattern):
    dataset = TextConfig(pattern, validation_fraction=0.5).make(1)
    train, validation = (windows_of(dataset, split) for split in SPLITS)
    tokens = [*train[:, 0], train[-1, 1], validation[0, 0], *validation[:, 1]]
    return dataset.tokenizer.decode(tokens)

  def test_many_files_follow_in_name_order(self):
    for name in ("b.txt", "c/a.txt", "a.txt", "other.md"):
      self.write(f"[{name}]", name)
    self.assertEqual(self.read(f"{self.folder}/*.txt"), "[a.txt][b.txt]")
    self.assertEqual(self.read(f"{self.folder}/**/*.txt"), "[a.txt][b.txt][c/a.txt]")

  def test_line_ends_stay_as_they_are(self):
    self.assertEqual(self.read(self.write("a\r\nb\nc\rd")), "a\r\nb\nc\rd")


class DownloadTest(FolderTest):
  """From a server on this machine, into a cache of its own."""

  def setUp(self):
    super().setUp()
    test, self.num_requests = self, 0

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        test.num_requests += 1
        self.send_response(200 if self.path == "/text.txt" else 404)
        self.send_header("Content-Length", str(len(TEXT.encode())))
        self.end_headers()
        self.wfile.write(TEXT.encode())

      def log_message(self, *_):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.addCleanup(server.server_close)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.shutdown)
    self.url = f"http://127.0.0.1:{server.server_port}"
    self.enterContext(mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder)))

  def downloaded(self):
    folder = self.folder / "gpt2_flax" / "downloads"
    return list(folder.iterdir()) if folder.exists() else []

  def test_a_url_is_read_once(self):
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    for _ in range(2):
      dataset = TextConfig(f"{self.url}/text.txt", sha256=sha256).make(4)
      self.assertEqual(dataset.tokenizer.characters, "".join(sorted(set(TEXT))))
    self.assertEqual(self.num_requests, 1)
    self.assertEqual([p.read_bytes() for p in self.downloaded()], [TEXT.encode()])

  def test_other_content_is_refused_and_not_kept(self):
    config = TextConfig(f"{self.url}/text.txt", sha256="0" * 64)
    with self.assertRaisesRegex(InputError, "cannot be downloaded: .*SHA256 hash"):
      config.make(4)
    self.assertEqual(self.downloaded(), [])

  def test_a_missing_page(self):
    config = TextConfig(f"{self.url}/no.txt", sha256="0" * 64)
    with self.assertRaisesRegex(InputError, "data.path: .*no.txt cannot be .*404"):
      config.make(4)
    self.assertEqual(self.downloaded(), [])

  def test_no_checksum_no_download(self):
    with self.assertRaisesRegex(InputError, "data.sha256 is '': must be the SHA-256"):
      TextConfig(f"{self.url}/text.txt").make(4)
    self.assertEqual(self.num_requests, 0)


class ErrorsTest(FolderTest):
  def assert_refused(self, path, *parts, context_length=4):
    with self.assertRaises(InputError) as caught:
      TextConfig(path).make(context_length)
    for part in ("data.path", *parts):
      self.assertIn(part, str(caught.exception))

  def test_empty_path(self):
    self.assert_refused("", "is empty")

  def test_missing_file(self):
    path = str(self.folder / "missing.txt")
    self.assert_refused(path, repr(path), "no such file")
    self.assert_refused(f"{self.folder}/*.md", "*.md", "no such file")
    self.assert_refused(str(self.folder), "no such file")  # a folder is not a file
    self.assert_refused("x" * 300, "no such file")  # nor could be one

  def test_empty_file(self):
    self.write(TEXT)
    path = self.write("", "void.txt")
    self.assert_refused(path, path, "is empty")
    self.assert_refused(f"{self.folder}/*.txt", path, "is empty")

  def test_not_utf_8(self):
    self.write(TEXT)
    path = self.write(b"caf\xe9 noir", "z.txt")
    self.assert_refused(f"{self.folder}/*.txt", path, "not UTF-8", "byte 3", "0xe9")

  def test_too_short(self):
    path = self.write("a" * 20)  # 18 for training, 2 for validation
    TextConfig(path).make(17)
    self.assert_refused(path, repr(path), "20 tokens", "19", context_length=18)
    self.assert_refused(self.write("a" * 14), "14 tokens")  # 1 for validation

  @parameterized.parameters(
    ({"tokenizer": "chars"}, "data.tokenizer 'chars': did you mean 'char'"),
    ({"validation_fraction": 0.0}, "data.validation_fraction is 0.0"),
    ({"validation_fraction": 1.0}, "data.validation_fraction is 1.0"),
  )
  def test_other_fields(self, fields, message):
    with self.assertRaisesRegex(InputError, message):
      TextConfig(self.write("any text"), **fields).make(3)

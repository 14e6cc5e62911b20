"""Any text: UTF-8 files, cut into characters, bytes or byte pairs.

Nobody knows the process that writes people's text, so there is no floor here.
"""

import dataclasses
import glob
import os
import pathlib
import re
import sys
from typing import ClassVar

from gpt2_flax.datasets import token_cache
from gpt2_flax.datasets.arrays import (
  require_fraction,
  require_pack,
  split,
  TokenWindows,
)
from gpt2_flax.errors import InputError
from gpt2_flax.files.cache import cache_folder


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which text, and how it is cut.

  Attributes:
    path: a file, a folder (all .txt files in it), a glob such as "books/**/*.txt", or
      an http(s) URL; files are read in name order, a URL is downloaded once. Each file
      is a document: see `token_cache.tokenize`.
    tokenizer: "char" (those that occur), "byte", "bpe" (trained on this text),
      "init_from" (that of the weights the run starts from), or a tokenizer.json or the
      folder of one.
    validation_fraction: the share at the end that is kept for validation.
    bpe_vocab_size: how many tokens "bpe" is trained to have.
    sha256: of the content at a URL; other content is refused.
    pack: how documents share a window: see `arrays.TokenWindows`.
  """

  name: ClassVar = "text"
  path: str = ""
  tokenizer: str = "char"
  validation_fraction: float = 0.1
  bpe_vocab_size: int = 1024
  sha256: str = ""
  pack: str = "joined"

  def __post_init__(self):
    require_fraction(self.validation_fraction)
    require_pack(self.pack)
    require_bpe_vocab_size(self.bpe_vocab_size)

  def make(self, context_length: int) -> TokenWindows:
    tokens, tokenizer = token_cache.tokenize(
      find_files(self.path, self.sha256), self.tokenizer, self.bpe_vocab_size
    )
    train, validation = split(tokens, self.validation_fraction)
    return TokenWindows(
      train, validation, tokenizer, context_length, self.path, self.pack
    )


def require_bpe_vocab_size(size: int) -> None:
  """Raises an InputError where byte pairs cannot have, or be trained to, so many."""
  if not 257 <= size <= 1 << 20:
    raise InputError(
      f"data.bpe_vocab_size is {size}: must be 257 (256 bytes and the end of text) to"
      " 1048576"
    )


def find_files(
  path: str, sha256: str | None = "", ending: str = ".txt", name: str = "data.path"
) -> list[pathlib.Path]:
  """The files that `path` names, in name order.

  Args:
    sha256: of the file at a URL; None where it must be none.
    ending: of those of a folder.
    name: what the path is given as, for errors.
  """
  if path.startswith(("http://", "https://")) and sha256 is not None:
    return [_download(path, sha256)]
  if not path:
    raise InputError(f"{name} is empty: must name a UTF-8 file, a folder or a glob")
  if os.path.isfile(path):  # even if its name looks like a pattern
    return [pathlib.Path(path)]
  pattern = f"{path}/**/*{ending}" if os.path.isdir(path) else path
  names = sorted(glob.glob(pattern, recursive=True))
  files = [pathlib.Path(found) for found in names if pathlib.Path(found).is_file()]
  if not files:
    raise InputError(f"{name} is {path!r}: no such file")
  return files


def _download(url: str, sha256: str) -> pathlib.Path:
  """The file at a URL, from the cache if it is there whole."""
  if not re.fullmatch("[0-9a-f]{64}", sha256):
    raise InputError(
      f"data.sha256 is {sha256!r}: must be the SHA-256 of the file at {url}, in 64"
      " hexadecimal digits"
    )
  import pooch  # slow to import, and local files do not need it

  pooch.get_logger().setLevel("WARNING")
  downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
  try:
    path = pooch.retrieve(
      url, f"sha256:{sha256}", path=cache_folder() / "downloads", downloader=downloader
    )
    return pathlib.Path(path)
  except (OSError, ValueError) as error:  # requests' errors are OSErrors
    raise InputError(f"data.path: {url} cannot be downloaded: {error}") from error

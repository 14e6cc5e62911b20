"""Files written for keeps: a name has its old content or its new one, never a part."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil

from gpt2_flax.errors import cannot_write, os_error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a name beside `path`; what is made under it then takes the place of `path`.

  It may be a file, or a folder where `path` is none, or an empty one. If anything is
  raised, `path` stays as it was, and nothing is left beside it.

  Raises:
    InputError: it cannot be written there.
    RunError: the disk is full.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    put_in_place(temporary, path)
  except Exception as error:
    if (reason := os_error(error)) is None:
      raise
    raise cannot_write(path, reason) from error
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        temporary.unlink()


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file's content, UTF-8; raises as `replacing` does."""
  with replacing(path) as temporary:
    temporary.write_text(text, "utf-8")


def put_in_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a file or folder once all that is in it is on the disk."""
  _sync(temporary)
  temporary.replace(path)
  _sync_one(path.parent)


def _sync(path: pathlib.Path) -> None:
  if path.is_dir():
    for inner in path.iterdir():
      _sync(inner)
  _sync_one(path)


def _sync_one(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)

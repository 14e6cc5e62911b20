"""Files written for keeps: a name has its old content or its new one, never a part."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import platform
import shutil

from gpt2_flax.errors import cannot_write, os_error

_unfinished: set[pathlib.Path] = set()  # what this process is making


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary name beside `path`; what is made under it then replaces `path`.

  It may be a file; or a folder, where `path` does not exist or is an empty folder. If
  anything is raised, `path` stays as it was, and nothing is left beside it.

  Raises:
    InputError: it cannot be written there.
    RunError: the disk is full.
  """
  # with the process in its name, so that no two processes write the same one
  temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
  _unfinished.add(temporary)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    yield temporary
    sync_and_rename(temporary, path)
  except Exception as error:
    if (reason := os_error(error)) is None:
      raise
    raise cannot_write(path, reason) from error
  finally:
    _remove(temporary)
    _unfinished.discard(temporary)


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file's content, UTF-8; raises as `replacing` does."""
  with replacing(path) as temporary:
    temporary.write_text(text, "utf-8")


def remove_unfinished() -> None:
  """Removes what `replacing` has not finished, for an end without an exception."""
  for temporary in list(_unfinished):
    _remove(temporary)


def sync_and_rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a file or folder once all that is in it is on the disk."""
  _sync(temporary)
  temporary.replace(path)
  _sync_one(path.parent)


def _remove_abandoned(folder: pathlib.Path) -> None:
  """Removes what processes of this machine were making when they were killed."""
  for left in folder.glob(f".*.{platform.node()}.*.tmp"):
    try:
      os.kill(int(left.suffixes[-2][1:]), 0)  # asks whether there is such a process
    except ProcessLookupError:
      _remove(left)
    except (PermissionError, ValueError):
      continue  # it lives and is another user's; or the name is not one of ours


def _remove(path: pathlib.Path) -> None:
  if os.path.isdir(path):  # pathlib raises where a name is too long
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()


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

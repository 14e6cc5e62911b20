"""The checksums beside a checkpoint's files, and whether the files still have them."""

import hashlib
import pathlib

MANIFEST = "SHA256SUMS"


def manifest(folder: pathlib.Path) -> bytes:
  """What `sha256sum` prints for all files in a folder except the manifest."""
  lines = []
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name != MANIFEST:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      lines.append(f"{digest}  {name}\n")
  return "".join(lines).encode()


def damage(folder: pathlib.Path) -> str | None:
  """What in a checkpoint is not as it was saved; None if it is whole."""
  try:
    saved, found = (folder / MANIFEST).read_bytes(), manifest(folder)
  except OSError as error:
    return f"{error.filename}: {error.strerror}"
  if found == saved:
    return None
  differing = {*saved.split(b"\n")} ^ {*found.split(b"\n")}
  names = [line.partition(b"  ")[2].decode(errors="replace") for line in differing]
  return f"{min(names) or MANIFEST} is not as {MANIFEST} has it"

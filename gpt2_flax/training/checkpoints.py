"""Checkpoints: written in the background, whole or not at all, checked when read."""

from collections.abc import Iterator
import contextlib
import hashlib
import pathlib
import sys
from typing import Any
import warnings

from absl import logging
import jax
import orbax.checkpoint as ocp

from gpt2_flax.errors import InputError, os_error, RunError
from gpt2_flax.files.atomic import put_in_place
from gpt2_flax.training import processes
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.step import TrainState

MANIFEST = "SHA256SUMS"


class _SealedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A folder that orbax fills; a checkpoint gets its name once it has a manifest.

  In place of orbax's own last words (that the commit was a success, and when), which
  would come too late for the manifest.
  """

  async def finalize(self) -> None:
    if self._checkpoint_metadata_store:  # writes its file in a thread of its own
      self._checkpoint_metadata_store.wait_until_finished()
    temporary, final = pathlib.Path(self.get()), pathlib.Path(self.get_final())
    if final.name.isdecimal():  # the whole, not one of its items
      (temporary / MANIFEST).write_bytes(_manifest(temporary))
      put_in_place(temporary, final)
    else:
      temporary.replace(final)


def _manifest(folder: pathlib.Path) -> bytes:
  """What `sha256sum` says of every file in a folder, but of the manifest itself."""
  lines = []
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name != MANIFEST:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      lines.append(f"{digest}  {name}\n")
  return "".join(lines).encode()


def _damage(folder: pathlib.Path) -> str | None:
  """What in a checkpoint is not as it was saved; None if it is whole."""
  try:
    saved, found = (folder / MANIFEST).read_bytes(), _manifest(folder)
  except OSError as error:
    return f"{error.filename}: {error.strerror}"
  if found == saved:
    return None
  differing = {*saved.split(b"\n")} ^ {*found.split(b"\n")}
  names = [line.partition(b"  ")[2].decode(errors="replace") for line in differing]
  return f"{min(names) or MANIFEST} is not as {MANIFEST} has it"


def _leaves(state: TrainState) -> dict[str, str]:
  """The dtype and shape of every array, by its name; `state` may be abstract."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{leaf.dtype}{list(leaf.shape)}"
    )
    for path, leaf in jax.tree.leaves_with_path(state)
  }


def _say_it_once() -> None:
  """Of what fails only what is raised is said, not what others say of it too.

  orbax logs what it then raises, with its stack. And what else was being written or
  read, array by array, fails as well or is not begun: Python says so of each, or
  tensorstore if the event loop is closed by then.
  """
  array = "(async_serialize_from_host|Store._get_array_metadatas|_read_array_index)"
  never = f"coroutine '{array}.* was never awaited"
  warnings.filterwarnings("ignore", never, RuntimeWarning)
  logging.get_absl_logger().addFilter(_is_not_orbax)
  logging.logging.getLogger("asyncio").addFilter(_is_no_write)
  if sys.unraisablehook is sys.__unraisablehook__:  # else somebody knows better
    sys.unraisablehook = _tell_unraisable


def _is_not_orbax(record: logging.logging.LogRecord) -> bool:
  return not record.pathname.startswith(str(pathlib.Path(ocp.__file__).parent))


def _is_no_write(record: logging.logging.LogRecord) -> bool:
  message = record.getMessage()
  return "never retrieved" not in message or "Error writing" not in message


def _tell_unraisable(unraisable: Any) -> None:
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


class Checkpoints:
  """The checkpoints of one run, newest last.

  Each holds the `TrainState` (params, optimizer state, step, rng) with its layers
  unstacked, the position in the data, the config, and a manifest: the SHA-256 of each
  of its files, which the file format alone would let change unnoticed.
  """

  def __init__(
    self, folder: pathlib.Path, config: CheckpointConfig, read_only: bool = False
  ):
    policies = ocp.checkpoint_managers
    self._folder, self._read_only = folder, read_only
    self._saving: int | None = None  # the step whose save may not be done yet
    _say_it_once()
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
        preservation_policy=policies.LatestN(config.keep),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        lightweight_initialize=True,  # no word of a checkpoint is believed unchecked
        temporary_path_class=_SealedFolder,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    with self._failing_as_one_line():
      self._manager.close()

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, data_position: dict, config: dict) -> None:
    """Starts to write a checkpoint; it counts once it is whole.

    Raises:
      RunError: this save cannot begin, or the one before it has failed.
    """
    self.wait()
    about = {"data_position": data_position, "config": config, "leaves": _leaves(state)}
    self._saving = int(jax.device_get(state.step))
    with self._failing_as_one_line():
      self._manager.save(
        self._saving,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        ),
      )

  def wait(self) -> None:
    """Until all that was saved is whole on disk.

    Raises:
      RunError: the last save has failed.
    """
    with self._failing_as_one_line():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _failing_as_one_line(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # whatever orbax, and what it writes with, may raise
      known = os_error(error)
      reason = known.strerror if known else (str(error) or repr(error)).splitlines()[0]
      raise RunError(
        f"checkpoint {self._folder / str(self._saving)} cannot be written: {reason}"
      ) from error

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest usable state and its data position; None where there is none yet.

    A checkpoint whose files are not what was saved is set aside as `STEP.damaged` with
    a warning, and the one before it is used.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      InputError: it holds another state than `abstract`; names the first array.
      RunError: there are checkpoints, all of them damaged; or its files are what its
        manifest says, and yet no checkpoint.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      folder = self._folder / str(step)
      # One process looks, all hear of it, before orbax makes them wait for one another
      damage = _damage(folder) if jax.process_index() == 0 else None
      if processes.everywhere(damage is None):
        try:
          return self._read(step, abstract)
        except InputError:
          raise
        except Exception as error:  # its manifest was made to fit, or another version
          reason = (str(error).strip() or repr(error)).splitlines()[0]
          raise RunError(f"checkpoint {folder} cannot be read: {reason}") from error
      if damage:
        logging.warning(
          "checkpoint %s is damaged, going on from the one before it (%s)",
          folder,
          damage,
        )
      if not self._read_only:
        self._set_aside(step)
    if steps or any(self._folder.glob("*.damaged*")):
      raise RunError(
        f"all checkpoints in {self._folder} are damaged: to start over, choose another"
        " --workdir"
      )
    return None

  def _set_aside(self, step: int) -> None:
    with processes.all_or_none():
      if jax.process_index() == 0:
        aside = self._folder / f"{step}.damaged"
        while aside.exists():  # an earlier one of the same step
          aside = aside.with_name(aside.name + "_")
        (self._folder / str(step)).rename(aside)
    self._manager.reload()

  def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
    items = ocp.args.Composite(about=ocp.args.JsonRestore())
    about = self._manager.restore(step, args=items)["about"]
    # orbax would cast to make it fit, and refuses other shapes at length
    saved, wanted = about["leaves"], _leaves(abstract)
    for name in (*wanted, *saved):
      if saved.get(name) != wanted.get(name):
        raise InputError(
          f"checkpoint {self._folder / str(step)} is of another model or optimizer:"
          f" {name} is {saved.get(name, 'not there')}, by the config it must be"
          f" {wanted.get(name, 'not there')}"
        )
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    state = self._manager.restore(step, args=items)["state"]
    return state, about["data_position"]

"""Checkpoints: written in the background, whole or not at all, checked when read."""

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from gpt2_flax.errors import InputError, os_error, RunError
from gpt2_flax.files.atomic import sync_and_rename
from gpt2_flax.training import processes
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.manifest import damage, MANIFEST, manifest
from gpt2_flax.training.quiet_orbax import quiet_orbax
from gpt2_flax.training.step import TrainState

HISTORY = (
  "history"  # the folder, inside that of the checkpoints, for what is kept for good
)
FROZEN = "frozen"  # and the one for what no step changes


class _SealedFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """A folder that orbax fills; a checkpoint gets its name once it has a manifest.

  This replaces orbax's last step, which notes that the commit was a success, and when:
  that file would be written too late for the manifest.
  """

  async def finalize(self) -> None:
    if self._checkpoint_metadata_store:  # writes its file in a thread of its own
      self._checkpoint_metadata_store.wait_until_finished()
    temporary, final = pathlib.Path(self.get()), pathlib.Path(self.get_final())
    if final.name.isdecimal():  # the whole checkpoint, not one of its items
      (temporary / MANIFEST).write_bytes(manifest(temporary))
      sync_and_rename(temporary, final)
    else:
      temporary.replace(final)


def array_names(state: Any) -> dict[str, str]:
  """The dtype and shape of every array, by its name; `state` may be abstract."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{leaf.dtype}{list(leaf.shape)}"
    )
    for path, leaf in jax.tree.leaves_with_path(state)
  }


def _that_changes(state: TrainState) -> dict[str, Any]:
  """What of a state a checkpoint has: all but what is frozen."""
  return {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
    if field.name != "frozen"
  }


def _manager(folder: pathlib.Path, preservation: Any) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    folder.absolute(),
    options=ocp.CheckpointManagerOptions(
      # the loop decides
      save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
      preservation_policy=preservation,
      cleanup_tmp_directories=True,
      lightweight_initialize=True,  # reads nothing of a checkpoint before it is checked
      temporary_path_class=_SealedFolder,
    ),
  )


def _as_args(state: Any, about: dict) -> ocp.args.Composite:
  return ocp.args.Composite(
    state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
  )


def check_arrays(folder: pathlib.Path, saved: dict, wanted: dict) -> None:
  """Raises an InputError unless a checkpoint has the arrays that are wanted."""
  for name in (*wanted, *saved):
    if saved.get(name) != wanted.get(name):
      raise InputError(
        f"checkpoint {folder} is of another model or optimizer: {name} is"
        f" {saved.get(name, 'not there')}, by the config it must be"
        f" {wanted.get(name, 'not there')}"
      )


def warn_of(folder: pathlib.Path, damaged: str) -> None:
  """Says that a checkpoint is left out, and why."""
  logging.warning(
    "checkpoint %s is damaged, going on from the one before it (%s)", folder, damaged
  )


class Checkpoints:
  """The checkpoints of one run, newest last.

  Each holds the `TrainState` (params, optimizer state, step, rng) with its layers
  unstacked, the position in the data, the config, and a manifest: the SHA-256 of each
  of its files, which the file format alone would let change unnoticed. What is frozen
  is the same at all steps, and saved once beside them.
  """

  def __init__(self, folder: pathlib.Path, config: CheckpointConfig):
    policies = ocp.checkpoint_managers
    self._folder = folder
    self._saving: int | str | None = None  # the step whose save may not be done yet
    quiet_orbax()
    self._manager = _manager(folder, policies.LatestN(config.keep))
    self._history: ocp.CheckpointManager | None = None
    if config.keep_steps:
      self._history = _manager(folder / HISTORY, policies.LatestN(None))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    with self._failing_as_one_line():
      for manager in self._managers():
        manager.close()

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, data_position: dict, config: dict) -> None:
    """Starts to write a checkpoint; it counts once it is whole.

    Raises:
      RunError: this save cannot begin, or the one before it has failed.
    """
    self.wait()
    about = {
      "data_position": data_position,
      "config": config,
      "leaves": array_names(state.replace(frozen=None)),
    }
    self._saving = int(jax.device_get(state.step))
    with self._failing_as_one_line():
      self._manager.save(self._saving, args=_as_args(_that_changes(state), about))

  def wait(self) -> None:
    """Waits until all that was saved is whole on disk.

    Raises:
      RunError: the last save has failed.
    """
    with self._failing_as_one_line():
      for manager in self._managers():
        manager.wait_until_finished()

  def _managers(self) -> list[ocp.CheckpointManager]:
    return [m for m in (self._manager, self._history) if m is not None]

  def keep(self, step: int, params: Any, config: dict) -> None:
    """Starts to write params that stay for good.

    Raises:
      RunError: this save cannot begin, or the one before it has failed.
    """
    if self._history is None or step in self._history.all_steps():
      return  # it is there from before an interruption, with the same bits
    self.wait()
    self._saving = step
    state = {"params": params}
    about = {"config": config, "leaves": array_names(state)}
    with self._failing_as_one_line():
      self._history.save(step, args=_as_args(state, about))

  def save_frozen(self, frozen: Any, config: dict) -> None:
    """Writes what no step changes, once a run; it is whole when this returns.

    Raises:
      RunError: it cannot be written.
    """
    folder, self._saving = self._folder / FROZEN, FROZEN
    with processes.all_or_none():
      if jax.process_index() == 0:  # from before a kill, perhaps of other weights
        shutil.rmtree(folder, ignore_errors=True)
    state = {"params": frozen}
    about = {"config": config, "leaves": array_names(state)}
    with (
      self._failing_as_one_line(),
      _manager(folder, ocp.checkpoint_managers.LatestN(None)) as manager,
    ):
      manager.save(0, args=_as_args(state, about))

  @contextlib.contextmanager
  def _failing_as_one_line(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # whatever orbax or tensorstore may raise
      known = os_error(error)
      reason = known.strerror if known else (str(error) or repr(error)).splitlines()[0]
      raise RunError(
        f"checkpoint {self._folder / str(self._saving)} cannot be written: {reason}"
      ) from error

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest usable state and its data position; None where there is none yet.

    What is frozen is not in it: see `kept.read_frozen`.

    A checkpoint whose files are not what was saved is set aside as `STEP.damaged` with
    a warning, and the one before it is used.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      InputError: it holds another state than `abstract`; names the first array.
      RunError: all checkpoints are damaged; or the files of one agree with its manifest
        and still cannot be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      folder = self._folder / str(step)
      # One process checks and tells all, before orbax makes them wait for each other
      damaged = damage(folder) if jax.process_index() == 0 else None
      if processes.everywhere(damaged is None):
        try:
          return self._read(step, abstract)
        except InputError:
          raise
        except Exception as error:  # a forged manifest, or another version of orbax
          reason = (str(error).strip() or repr(error)).splitlines()[0]
          raise RunError(f"checkpoint {folder} cannot be read: {reason}") from error
      if damaged:
        warn_of(folder, damaged)
      self._set_aside(step)
    if steps or any(self._folder.glob("*.damaged*")):
      raise RunError(
        f"all checkpoints in {self._folder} are damaged: to start over, choose another"
        " --workdir"
      )
    return None

  def drop_after(self, step: int) -> None:
    """Removes the checkpoints of later steps; each is there whole or not at all."""
    for later in self._manager.all_steps():
      if later > step:
        folder = self._folder / str(later)
        # a name that orbax clears away, if a kill leaves it
        dropped = folder.with_name(folder.name + ocp.path.atomicity.TMP_DIR_SUFFIX)
        shutil.rmtree(folder.rename(dropped), ignore_errors=True)
    self._manager.reload()

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
    wanted = array_names(abstract.replace(frozen=None))
    # orbax would cast other dtypes in silence, and refuse other shapes in many lines
    check_arrays(self._folder / str(step), about["leaves"], wanted)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(_that_changes(abstract)))
    state = self._manager.restore(step, args=items)["state"]
    return TrainState(**state), about["data_position"]

"""Which steps of a run are kept, and the parameters of one of them."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from gpt2_flax.errors import InputError, RunError
from gpt2_flax.files.json import read_json
from gpt2_flax.training.checkpoints import (
  array_names,
  check_arrays,
  FROZEN,
  HISTORY,
  warn_of,
)
from gpt2_flax.training.manifest import damage
from gpt2_flax.training.quiet_orbax import quiet_orbax


def saved_steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
  """The folder of each step that is kept, oldest first; nothing in them is read.

  Args:
    folder: of the checkpoints.
  """
  found = {
    int(path.name): path
    for kept in (folder / HISTORY, folder)
    if kept.is_dir()
    for path in kept.iterdir()
    if path.name.isdecimal() and path.is_dir()
  }
  return dict(sorted(found.items()))


def read_params(
  folder: pathlib.Path, abstract_params: Any, step: int | None = None
) -> Any:
  """The parameters of a step alone. Changes nothing, so that the run may go on.

  Args:
    folder: of the checkpoints.
    abstract_params: shapes, dtypes and shardings.
    step: None for the newest that is not damaged.

  Raises:
    InputError: the step is not kept, or has other arrays; or nothing is kept yet.
    RunError: the step is damaged, or all are.
  """
  found = saved_steps(folder)
  if not found and not any(folder.glob("*.damaged*")):
    raise InputError(f"{folder.parent} has no checkpoint yet")
  if step is not None and step not in found:
    raise InputError(
      f"step is {step}: {folder.parent} has {', '.join(map(str, found))}"
    )
  for path in reversed(found.values()) if step is None else [found[step]]:
    damaged = damage(path)
    if damaged is None:
      return _read_params(path, abstract_params)
    if step is not None:
      raise RunError(f"checkpoint {path} is damaged ({damaged})")
    warn_of(path, damaged)
  raise RunError(f"all checkpoints in {folder} are damaged")


def read_frozen(folder: pathlib.Path, abstract_frozen: Any) -> Any:
  """What no step of a run changes, as `Checkpoints.save_frozen` wrote it.

  Args:
    folder: of the checkpoints.

  Raises:
    InputError: it is not there, or holds other arrays.
    RunError: it is damaged.
  """
  return read_params(folder / FROZEN, abstract_frozen, step=0)


def _read_params(folder: pathlib.Path, abstract_params: Any) -> Any:
  quiet_orbax()
  state = {"params": abstract_params}
  try:
    saved = read_json(folder / "about" / "metadata")["leaves"]
    of_params = {k: v for k, v in saved.items() if k.startswith("params/")}
    check_arrays(folder, of_params, array_names(state))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      restored = reader.restore(
        (folder / "state").absolute(),
        args=ocp.args.PyTreeRestore(
          item=state,
          restore_args=ocp.checkpoint_utils.construct_restore_args(state),
          partial_restore=True,  # without the optimizer's state
        ),
      )
  except InputError:
    raise
  except Exception as error:  # a forged manifest, or another version of orbax
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    raise RunError(f"checkpoint {folder} cannot be read: {reason}") from error
  return restored["params"]

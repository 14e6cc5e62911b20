"""Checkpoints: written in the background, whole or not at all, checked when read."""

import hashlib
import json
import pathlib

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gpt2_flax.errors import RunError
from gpt2_flax.training import processes
from gpt2_flax.training.config import CheckpointConfig
from gpt2_flax.training.step import TrainState


@jax.jit
def _fingerprints(state: TrainState) -> list[jax.Array]:
  """A uint32 for each leaf that any single changed element changes.

  The sum of the elements' bits, each times an odd number of its own, modulo 2^32.
  Integer sums do not depend on their order, so the devices that hold a leaf may
  compute it together, and another number of devices gets the same.
  """

  def fingerprint(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).ravel()
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * (odd * jnp.uint32(2654435761)), dtype=jnp.uint32)

  return [fingerprint(leaf) for leaf in jax.tree.leaves(state)]


def _leaf_names(state: TrainState) -> list[str]:
  paths = jax.tree_util.tree_flatten_with_path(state)[0]
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _sealed(content: dict) -> dict:
  """JSON values together with their own SHA-256."""
  text = json.dumps(content, sort_keys=True)
  return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


class Checkpoints:
  """The checkpoints of one run, newest last.

  Each holds the `TrainState` (params, optimizer state, step, rng) with its layers
  unstacked, the position in the data, the config, and a fingerprint of every array: the
  file format alone would let a flipped bit through.
  """

  def __init__(
    self, folder: pathlib.Path, config: CheckpointConfig, read_only: bool = False
  ):
    policies = ocp.checkpoint_managers
    self._folder, self._read_only = folder, read_only
    self._manager = ocp.CheckpointManager(
      folder.absolute(),
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(1),  # the loop decides
        preservation_policy=policies.LatestN(config.keep),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def latest_step(self) -> int | None:
    """The step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, data_position: dict, config: dict) -> None:
    """Starts to write a checkpoint; it counts once it is whole.

    Raises:
      Whatever made the save before this one fail.
    """
    fingerprints = jax.device_get(_fingerprints(state))
    about = {
      "data_position": data_position,
      "config": config,
      "fingerprints": [int(fingerprint) for fingerprint in fingerprints],
    }
    self._manager.save(
      int(jax.device_get(state.step)),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        about=ocp.args.JsonSave(_sealed(about)),
      ),
    )

  def wait(self) -> None:
    """Until all that was saved is whole on disk."""
    self._manager.wait_until_finished()

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest usable state and its data position; None where there is none yet.

    A checkpoint that cannot be read, or whose content is not what was saved, is
    set aside as `STEP.damaged` with a warning, and the one before it is used.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      RunError: there are checkpoints, all of them damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        restored = self._read(step, abstract)
      except Exception as error:  # whatever a damaged file makes the reader raise
        logging.warning(
          "checkpoint %s is damaged, going on from the one before it (%s)",
          self._folder / str(step),
          (str(error).strip() or repr(error)).splitlines()[0],
        )
        if not self._read_only:
          with processes.all_or_none():
            if jax.process_index() == 0:
              (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
          self._manager.reload()
        continue
      return restored
    if steps:
      raise RunError(
        f"all {len(steps)} checkpoints in {self._folder} are damaged: to start"
        " over, choose another --workdir"
      )
    return None

  def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
    with processes.all_or_none():
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore()
        ),
      )
    state, about = restored.state, dict(restored.about)
    seal = about.pop("sha256")
    if _sealed(about)["sha256"] != seal:
      raise ValueError("about/metadata is not what was saved")
    fingerprints = jax.device_get(_fingerprints(state))
    names = _leaf_names(state)
    for name, found, saved in zip(
      names, fingerprints, about["fingerprints"], strict=True
    ):
      if int(found) != saved:
        raise ValueError(f"{name} is not what was saved")
    return state, about["data_position"]

"""Devices as a mesh, and which logical axis of an array is split over which part."""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np

from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.config import MeshConfig, TrainConfig

# How the model is laid out over devices, said here only: each named axis, of parameters
# and of activations, is split over these parts of the mesh.
LOGICAL_AXIS_RULES = (
  ("batch", ("data", "fsdp")),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("head_dim", None),
  ("position", None),
  ("layers", None),
)


def make_mesh(config: MeshConfig, train: TrainConfig) -> Mesh:
  """A ("data", "fsdp", "tensor") mesh over all devices."""
  num_devices = jax.device_count()
  data = config.data
  if data == -1:
    data = max(1, num_devices // (config.fsdp * config.tensor))
  if data * config.fsdp * config.tensor != num_devices:
    raise InputError(
      f"mesh is data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}: the"
      f" product must be the number of devices, which is {num_devices}"
    )
  rows = train.batch_size // train.accumulation_steps
  if rows % (data * config.fsdp):
    raise InputError(
      f"train.batch_size is {train.batch_size}: train.batch_size /"
      f" train.accumulation_steps = {rows} must be divisible by the"
      f" {data * config.fsdp} devices that share a batch"
    )
  return _mesh((data, config.fsdp, config.tensor), jax.devices())


def one_device_mesh() -> Mesh:
  """A mesh with the same axes over a single device of this process."""
  return _mesh((1, 1, 1), jax.local_devices()[:1])


def _mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> Mesh:
  return jax.make_mesh(
    shape,
    ("data", "fsdp", "tensor"),
    # Auto leaves the layout of all other arrays to the compiler; flax's logical
    # constraints need it.
    axis_types=(AxisType.Auto,) * 3,
    devices=devices,
  )


@contextlib.contextmanager
def spread_over(mesh: Mesh) -> Iterator[None]:
  """While entered, compiled programs split activations as LOGICAL_AXIS_RULES say.

  Without it the compiler decides, and under fsdp it gathers batches instead of weights.
  Not for `init`: the shardings of its arrays come from `with_shardings`.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
    yield


def require_fit(model: GPT2Config, mesh: Mesh) -> None:
  """Raises InputError unless each device gets an equal share of heads and features."""
  for name, size, axis in (
    ("num_heads", model.num_heads, "tensor"),
    ("mlp_dim", model.mlp_dim or 4 * model.embed_dim, "tensor"),
    ("embed_dim", model.embed_dim, "fsdp"),
  ):
    if size % mesh.shape[axis]:
      raise InputError(
        f"model.{name} is {size}: must be divisible by mesh.{axis}, which is"
        f" {mesh.shape[axis]}"
      )


def with_shardings(named: Any, mesh: Mesh) -> Any:
  """A tree of abstract arrays with axis names -> the same with shardings, unnamed.

  Arrays without names (step counters, keys) are copied to every device. A vocabulary
  that `tensor` does not divide, as GPT-2's 50,257 tokens, is copied along `tensor`; its
  logits are split all the same.
  """

  def of_node(node: Any) -> Any:
    names = node.names if isinstance(node, nn.LogicallyPartitioned) else ()
    axes = nn.logical_to_mesh_axes(names, LOGICAL_AXIS_RULES) or ()

    def of_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
      shared = [
        None if name == "vocab" and size % mesh.shape[axis] else axis
        for name, size, axis in zip(names, leaf.shape, axes, strict=names != ())
      ]
      sharding = NamedSharding(mesh, PartitionSpec(*shared))
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of_leaf, nn.meta.unbox(node))

  def is_named(node: Any) -> bool:
    return isinstance(node, nn.LogicallyPartitioned)

  return jax.tree.map(of_node, named, is_leaf=is_named)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch, split over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def held_rows(sharding: Sharding, batch_size: int) -> np.ndarray:
  """The rows of each batch that are on devices of this process: int [R], ascending.

  All of them where there is one process; another process may hold some of them too.
  """
  held = np.zeros(batch_size, bool)
  for rows in sharding.addressable_devices_indices_map((batch_size,)).values():
    held[rows] = True
  return np.flatnonzero(held)


def put_batch(rows: Batch, sharding: Sharding, batch_size: int) -> dict[str, jax.Array]:
  """A batch on the devices, of which each process gives its `held_rows`."""
  if sharding.is_fully_addressable:
    return jax.device_put(rows, sharding)

  def put(leaf: np.ndarray) -> jax.Array:
    whole = np.zeros((batch_size, *leaf.shape[1:]), leaf.dtype)
    whole[held_rows(sharding, batch_size)] = leaf
    return put_parts(whole, sharding)

  return jax.tree.map(put, rows)


def put_parts(whole: np.ndarray, sharding: Sharding) -> jax.Array:
  """An array of which each process puts the parts that its own devices hold.

  The rest of `whole` is not used, and may differ from process to process.
  """
  with jax.transfer_guard_host_to_device("allow"):  # jax does not call this explicit
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

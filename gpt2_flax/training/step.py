"""One training step and one evaluation step: pure functions of state and batch."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax import struct
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from gpt2_flax.training.loss import Batch, Loss, summed_loss
from gpt2_flax.training.mesh import require_fit, with_shardings
from gpt2_flax.training.tuning import EVERYTHING, Tuning
from gpt2_flax.transformer import abstract_params, GPT2, init_params

LOSS_MEAN_STEPS = 50  # about how many steps the running mean of the loss covers


class TrainState(struct.PyTreeNode):
  """All that changes from step to step.

  Attributes:
    step: int32 scalar, how many batches have been seen.
    skipped: int32 scalar, how many of them were bad, and left the rest as it was.
    loss_mean: float32 scalar, running mean of the loss of the others; inf before any.
    params: what learns: all that `model.init` gives, without the axis names; or a part
      of it, or adapters, as `tuning` says.
    opt_state: of the optimizer.
    rng: the key that each step's dropout is derived from; it never changes.
    frozen: what the model has besides; no step changes it. None where all learns.
  """

  step: jax.Array
  skipped: jax.Array
  loss_mean: jax.Array
  params: Any
  opt_state: Any
  rng: jax.Array
  frozen: Any = None


def _init(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  tuning: Tuning,
  key: jax.Array,
  params: Any = None,
) -> TrainState:
  """A fresh state; drawn params still carry their logical axis names."""
  params_key, dropout_key = jax.random.split(key)
  if params is None:
    params = init_params(model, params_key)
  learns, frozen = tuning.split(params, params_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    loss_mean=jnp.full((), jnp.inf, jnp.float32),
    params=learns,
    opt_state=optimizer.init(learns),
    rng=dropout_key,
    frozen=frozen,
  )


def shardings(abstract: TrainState) -> TrainState:
  """The sharding of each leaf alone."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def abstract_state(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  tuning: Tuning = EVERYTHING,
) -> TrainState:
  """Shape, dtype and sharding of each leaf of the state, with nothing computed.

  Raises:
    InputError: the mesh cannot share the model equally.
  """
  require_fit(model.config, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  init = functools.partial(_init, model, optimizer, tuning)
  return with_shardings(jax.eval_shape(init, key, abstract_params(model)), mesh)


def init_state(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  abstract: TrainState,
  tuning: Tuning = EVERYTHING,
  params: Any = None,
) -> TrainState:
  """A fresh state, made in place on the devices that `abstract` says.

  It is compiled once for all keys.

  Args:
    params: the whole model's, to start from; their memory is reused. None for random
      ones.
  """
  leaves, structure = jax.tree.flatten(shardings(abstract))
  program: Any = _init_program  # a module is hashable, whatever its type says
  return program(model, optimizer, tuning, tuple(leaves), structure)(key, params)


@functools.lru_cache(maxsize=8)
def _init_program(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  tuning: Tuning,
  leaves: tuple[NamedSharding, ...],
  structure: Any,
) -> Callable[[jax.Array, Any], TrainState]:
  return jax.jit(
    lambda key, params: nn.meta.unbox(_init(model, optimizer, tuning, key, params)),
    donate_argnums=1,
    out_shardings=jax.tree.unflatten(structure, leaves),
  )


Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule | None,
  abstract: TrainState,
  accumulation_steps: int = 1,
  max_loss_jump: float = 0.0,
  loss: Loss = summed_loss,
  tuning: Tuning = EVERYTHING,
) -> TrainStep:
  """`pure_train_step`, jitted for a state that is laid out as `abstract` says.

  The old state's memory is reused.
  """
  sharding = abstract.step.sharding
  assert isinstance(sharding, NamedSharding)
  assert isinstance(sharding.mesh, Mesh)
  train_step = pure_train_step(
    model,
    optimizer,
    schedule,
    sharding.mesh,
    accumulation_steps,
    max_loss_jump,
    loss,
    tuning,
  )
  return jax.jit(
    train_step, donate_argnums=0, out_shardings=(shardings(abstract), None)
  )


def pure_train_step(
  model: GPT2,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule | None,
  mesh: Mesh,
  accumulation_steps: int = 1,
  max_loss_jump: float = 0.0,
  loss: Loss = summed_loss,
  tuning: Tuning = EVERYTHING,
) -> TrainStep:
  """(state, batch) -> (state, metrics), to be transformed and compiled.

  The loss is the mean over all targets of the batch that count; `loss` gives their sum
  and their number. With accumulation, gradients of the sum are added up and divided
  once, so that pieces with fewer targets do not weigh more.

  A bad batch leaves params and optimizer state as they were: one whose loss or gradient
  is not finite (with no target that counts the loss is 0 / 0), or whose loss is more
  than max_loss_jump nats above its running mean, where that is not 0. It counts in
  `step` and in `skipped`. How many bad batches there may be, the caller decides.
  """
  # Each device computes by itself if it has a whole copy of the model and no step draws
  # randomness, which would depend on the number of devices.
  by_itself = mesh.shape["data"] == mesh.size and not model.config.dropout_rate
  if loss is summed_loss:  # ours can be told how many devices share a program
    num_devices = 1 if by_itself else mesh.size
    loss = functools.partial(summed_loss, num_devices=num_devices)

  @functools.partial(jax.jit, inline=True)  # so that its shapes are known at no cost
  def gradients(params: Any, frozen: Any, batch: Batch, rng: jax.Array):
    def of_whole(params: Any):
      return loss(model, tuning.join(params, frozen), batch, {"dropout": rng})

    (total, count), grads = jax.value_and_grad(of_whole, has_aux=True)(params)
    return total, count, grads

  def accumulated(params: Any, frozen: Any, batch: Batch, rng: jax.Array):
    if accumulation_steps == 1:
      return gradients(params, frozen, batch, rng)
    pieces = jax.tree.map(
      # Piece i takes every accumulation_steps-th row, so that each device finds
      # its rows of every piece among its rows of the batch.
      lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1),
      batch,
    )
    keys = jax.random.split(rng, accumulation_steps)

    def add(sums: Any, piece: Any):
      return jax.tree.map(jnp.add, sums, gradients(params, frozen, *piece)), None

    one = jax.tree.map(lambda x: x[0], pieces)
    zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(gradients, params, frozen, one, rng)
    )
    return jax.lax.scan(add, zeros, (pieces, keys))[0]

  def summed(params: Any, frozen: Any, batch: Batch, rng: jax.Array):
    """Each device's own rows first, then one sum over devices of everything at once.

    Left to itself, the compiler adds up each array on its own, for each piece.
    """
    # each device its own copy
    params, frozen = jax.lax.pcast((params, frozen), "data", to="varying")
    with nn.logical_axis_rules(()):  # nothing in here is split
      flat, unravel = ravel_pytree(accumulated(params, frozen, batch, rng))
    return unravel(jax.lax.psum(flat, "data"))

  if mesh.size > 1 and by_itself:
    add_up = jax.shard_map(
      summed,
      mesh=mesh,
      in_specs=(
        PartitionSpec(),
        PartitionSpec(),
        PartitionSpec("data"),
        PartitionSpec(),
      ),
      out_specs=PartitionSpec(),
    )
  else:
    add_up = accumulated

  def train_step(state: TrainState, batch: Batch):
    frozen, state = state.frozen, state.replace(frozen=None)
    rng = jax.random.fold_in(state.rng, state.step)
    total, count, grads = add_up(state.params, frozen, batch, rng)
    grads = jax.tree.map(lambda g: g / count, grads)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    loss_now, mean = total / count, state.loss_mean
    after = state.replace(
      loss_mean=jnp.where(
        jnp.isinf(mean), loss_now, mean + (loss_now - mean) / LOSS_MEAN_STEPS
      ),
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    good = jnp.isfinite(loss_now) & jnp.isfinite(grad_norm)
    if max_loss_jump:
      good &= loss_now <= mean + max_loss_jump
    after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
    after = after.replace(step=state.step + 1, skipped=state.skipped + ~good)
    metrics = {
      "train/loss": loss_now,
      "train/loss_mean": after.loss_mean,
      "train/targets": count,
      "train/grad_norm": grad_norm,
      "train/skipped": after.skipped,
    }
    if schedule is not None:  # an optimizer of the caller's may have none
      # the optimizer has its own count, of the steps that it took
      metrics["train/learning_rate"] = schedule(state.step - state.skipped)
    return after.replace(frozen=frozen), metrics

  return train_step


def make_eval_step(
  model: GPT2, loss: Loss = summed_loss
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
  """(params, batch) -> (summed loss, number of targets), jitted, without dropout."""
  return jax.jit(lambda params, batch: loss(model, params, batch, None))

"""The training loop: read it first, it names everything else."""

from collections.abc import Callable
import contextlib
import dataclasses
import os

import jax
import optax

from gpt2_flax.datasets import Dataset
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.registry import origin
from gpt2_flax.training.config import ExperimentConfig
from gpt2_flax.training.evaluation import Evaluator
from gpt2_flax.training.loss import Loss, summed_loss
from gpt2_flax.training.mesh import (
  batch_sharding,
  make_mesh,
  put_batch,
  spread_over,
)
from gpt2_flax.training.metrics import Write
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.profile import Profile
from gpt2_flax.training.progress import Progress
from gpt2_flax.training.run import OnEval, Result, Run
from gpt2_flax.training.signals import StopSignals
from gpt2_flax.training.source import load_params
from gpt2_flax.training.step import (
  abstract_state,
  init_state,
  make_train_step,
  shardings,
)
from gpt2_flax.training.tuning import make_tuning, scale_by_layer
from gpt2_flax.transformer import GPT2


def train(
  config: ExperimentConfig,
  dataset: Dataset,
  workdir: str | os.PathLike,
  *,
  model: Callable[[GPT2Config], GPT2] = GPT2,
  loss: Loss = summed_loss,
  optimizer: optax.GradientTransformation | None = None,
  on_eval: OnEval | None = None,
  write: Write | None = None,
  progress: Callable[..., Progress] = Progress,
) -> Result:
  """Trains from where the workdir stands to train.num_steps.

  What is yours is an argument: see docs/own_parts.md. A run that goes on must get the
  same model, loss and optimizer again.

  Args:
    model: makes the model of its config: a subclass of GPT2, or GPT2 with parts of
      yours.
    loss: what is trained on, a pure function; by default the cross-entropy.
    optimizer: any of optax; None for the one that config.optimizer describes.
    on_eval: called at each evaluation, in every process. Its measures go to
      metrics.jsonl, TensorBoard and the progress bar. The model's layers are unstacked.
      The next step reuses the memory of the params: copy what you want to keep.
    write: called with each step that has metrics, and its metrics, in process 0. Steps
      after the last checkpoint come again when an interrupted run goes on.
    progress: makes what a person sees meanwhile, of num_steps and start_step.

  Raises:
    InputError: the config does not fit the model, the devices or the workdir; or a
      measure of on_eval has a name that is taken.
    DivergedError: too many steps are bad.
    RunError: all checkpoints are damaged, or the disk is full.
  """
  # --- What does not change ------------------------------------------------------
  config = with_own(config, model, loss, optimizer)
  mesh = make_mesh(config.mesh, config.train)
  sharding = batch_sharding(mesh)
  network = model(config.model)
  num_steps = config.train.num_steps
  schedule = None
  if optimizer is None:
    schedule = learning_rate_schedule(config.optimizer, num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
  plain = model(config.model.plain)  # initialised and saved so: layers unstacked
  tuning = make_tuning(config.finetune, plain, config.model.scan_layers)
  if config.finetune.layer_decay != 1:
    by_layer = scale_by_layer(config.finetune.layer_decay, config.model.num_layers)
    optimizer = optax.chain(optimizer, by_layer)
  plain_abstract = abstract_state(plain, optimizer, mesh, tuning)
  abstract = plain_abstract
  if not tuning.held_apart:
    abstract = abstract_state(network, optimizer, mesh, tuning)
  train_step = make_train_step(
    network,
    optimizer,
    schedule,
    abstract,
    config.train.accumulation_steps,
    config.train.max_loss_jump,
    loss,
    tuning,
  )
  evaluator = Evaluator(network, dataset, config, sharding, loss)
  run = Run(
    config,
    dataset,
    workdir,
    plain,
    evaluator,
    sharding,
    tuning=tuning,
    on_eval=on_eval,
    write=write,
    progress=progress,
  )

  with contextlib.ExitStack() as stack:
    # --- Where to begin ----------------------------------------------------------
    stop = stack.enter_context(StopSignals())
    stack.enter_context(run)
    state = restored = run.restore(plain_abstract)
    if state is None:
      key = jax.random.key(config.train.seed)
      params = None
      if config.init_from:
        whole = abstract_state(plain, optax.identity(), mesh).params
        params = load_params(config.init_from, whole)
      state = init_state(plain, optimizer, key, plain_abstract, tuning, params)
    if config.model.scan_layers:
      state = jax.jit(tuning.stacked, out_shardings=shardings(abstract))(state)
    devices = f"{mesh.size} device(s) of {jax.process_count()} process(es)"
    step = run.begin(state, restored is None, devices)
    profile = stack.enter_context(Profile(config.profile, start_step=step))

    # --- The loop ----------------------------------------------------------------
    stack.enter_context(spread_over(mesh))
    # Arrays move between host and device only where the code says so.
    stack.enter_context(jax.transfer_guard("disallow"))
    while step < num_steps and not stop.agreed():
      rows, waited = run.next_batch()
      profile.before(step + 1)
      batch = put_batch(rows, sharding, config.train.batch_size)
      state, metrics = train_step(state, batch)
      step += 1
      profile.after(step, metrics)
      run.stepped(step, metrics, waited)
      run.tend(step, state)

    # --- The end -----------------------------------------------------------------
    return run.finish(step, state, stop)


def with_own(
  config: ExperimentConfig,
  model: Callable[[GPT2Config], GPT2] = GPT2,
  loss: Loss = summed_loss,
  optimizer: optax.GradientTransformation | None = None,
) -> ExperimentConfig:
  """The config, with a note of what the caller gave."""
  own = dict(config.own)
  if model is not GPT2:
    own["model"] = origin(model)
  if loss is not summed_loss:
    own["loss"] = origin(loss)
  if optimizer is not None:
    own["optimizer"] = "train:optimizer"  # made of functions of optax, without a name
  return dataclasses.replace(config, own=own)

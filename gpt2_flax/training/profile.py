"""A look at where the time of a few steps goes."""

import pathlib
from typing import Any

import jax

from gpt2_flax.errors import cannot_write

FIRST, LAST = 10, 15  # counted from where the run begins: compiling is over by then


class Profile:
  """Traces steps FIRST to LAST into a folder that TensorBoard and Perfetto open."""

  def __init__(self, folder: str, start_step: int):
    traces = folder and jax.process_index() == 0  # of several processes only the first
    self._folder = pathlib.Path(folder) if traces else None
    self._start_step, self._tracing = start_step, False
    if self._folder:
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
      except OSError as error:
        raise cannot_write(f"config.profile={folder}", error) from error

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()

  def before(self, step: int) -> None:
    """To be called when a step is about to start."""
    if self._folder and step - self._start_step == FIRST:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._tracing = True

  def after(self, step: int, done: Any) -> None:
    """To be called when a step is dispatched; `done` is a part of its result."""
    if self._tracing and step - self._start_step == LAST:
      jax.block_until_ready(done)
      self.__exit__()

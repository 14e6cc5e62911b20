"""Strict everywhere: a silent broadcast or a warning is a failure."""

import ctypes
import gc
import os
import pathlib
import tempfile

import jax

from gpt2_flax.doors.command_line import collect_seldom, keep_compiled_programs
from tests import forked

os.environ.setdefault("XLA_FLAGS", forked.COMPILE_SOON)
os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # whatever a mesh asks for
jax.config.update("jax_numpy_rank_promotion", "raise")

# One cache of texts for this session, its workers and the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ["XDG_CACHE_HOME"] = _CACHE.name
# Few programs come twice in a session: to keep them takes longer than it saves. With
# JAX_COMPILATION_CACHE_DIR they are kept for the next one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  jax.config.update("jax_enable_compilation_cache", False)
keep_compiled_programs()
collect_seldom()


def pytest_collection_modifyitems(items):
  """The longest first: at the end no worker shall wait for another."""
  items.sort(key=lambda item: item.path.stem not in ("test_sharding", "test_processes"))


MOST_MEMORY = 2 << 30  # of a worker, in bytes


def pytest_runtest_teardown(item, nextitem):
  """Programs of other files are let go: a worker would come to hold thousands."""
  if nextitem is not None and nextitem.path != item.path and _memory() > MOST_MEMORY:
    jax.clear_caches()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system


def pytest_unconfigure():
  """Pytest is about to look for garbage five times: once is enough."""
  gc.collect()
  gc.freeze()


def _memory() -> int:
  """Of this process, in bytes; 0 where it cannot be told so."""
  pages = pathlib.Path("/proc/self/statm")
  if not pages.exists():
    return 0
  return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

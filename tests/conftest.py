"""Strict everywhere: a silent broadcast or a warning is a failure."""

import os
import pathlib
import tempfile

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# One cache of texts and compiled programs for this session, its workers and the
# processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ["XDG_CACHE_HOME"] = _CACHE.name
_COMPILED = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "gpt2_flax" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(_COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_collection_modifyitems(items):
  """The longest first: at the end no worker shall wait for another."""
  items.sort(key=lambda item: item.path.stem not in ("test_sharding", "test_processes"))

"""Strict everywhere: a silent broadcast or a warning is a failure."""

import os
import tempfile

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Caches of this session's texts, for processes that tests start too.
_CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHE.name

"""Strict everywhere: a silent broadcast or a warning is a failure."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

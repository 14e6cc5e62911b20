"""Where things are kept that can be made again: token ids, compiled programs."""

import os
import pathlib


def cache_folder() -> pathlib.Path:
  """$XDG_CACHE_HOME/gpt2_flax, by default ~/.cache/gpt2_flax."""
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home) / "gpt2_flax"

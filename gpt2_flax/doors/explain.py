"""Shows a model at work on a text, step by step, as one HTML page.

    python explain.py --workdir=runs/toy --prompt="the cats that the dog sees"
    python explain.py --pretrained=openai-community/gpt2 --prompt="Once upon a time"

Open the file in a browser: it needs no server and no network. A small model runs in it:
type a text, cut a head, and play back the steps that its run kept
(--config.checkpoint.keep_steps of train.py).
"""

import os
import pathlib

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError
from gpt2_flax.files import atomic

command_line.define_model_flags()
_PROMPT = flags.DEFINE_string(
  "prompt", None, "The text; default a validation sequence of the run's data."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The file; default explain.html, in the workdir if there is one."
)


def main() -> int:
  """Loads the model, writes the page."""
  from gpt2_flax.interpret.page import page_data, render_page, run_history
  from gpt2_flax.training import source

  workdir = flags.FLAGS.workdir
  output = pathlib.Path(_OUTPUT.value or pathlib.Path(workdir or ".") / "explain.html")
  if _OUTPUT.value and not os.path.isdir(output.parent):
    raise InputError(f"--output={output}: there is no folder {output.parent}")
  model, params, tokenizer = command_line.load_model()
  dataset = source.load_dataset(pathlib.Path(workdir)) if workdir else None
  if _PROMPT.value is not None:
    tokens = tokenizer.start(_PROMPT.value)
  elif dataset is not None:
    window = dataset.window("validation", 0)[: model.config.context_length]
    tokens = window[window >= 0].tolist()  # the end of a text may come first
  else:
    raise InputError("--prompt has no value, and there is no validation data to show")
  title = pathlib.Path(workdir).resolve().name if workdir else flags.FLAGS.pretrained
  data = page_data(
    model,
    params,
    tokenizer,
    tokens,
    title=title,
    dataset=dataset,
    history=run_history(pathlib.Path(workdir), flags.FLAGS.step) if workdir else None,
  )
  page = render_page(data, model.config)
  atomic.write_text(output, page)
  for note in data["notes"]:
    print(note)
  print(f"wrote {output}, {len(page.encode()) / 1e6:.1f} MB")
  return 0

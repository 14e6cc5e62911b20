"""Writes text with a trained model, or with published GPT-2 weights.

    python sample.py --workdir=runs/toy --prompt="the cat"
    python sample.py --pretrained=openai-community/gpt2 --prompt="Once upon" --top_k=40
    echo "To be" | python sample.py --workdir=runs/text --prompt_file=-

The text goes to stdout as it is made, the speed to stderr. Same seed, same text. On a
terminal, control characters are shown as escapes; files and pipes get them as they are.
"""

import sys
import time

from absl import flags

from gpt2_flax import terminal
from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError
from gpt2_flax.files.text import read_text

command_line.define_model_flags()
_PROMPT = flags.DEFINE_string(
  "prompt", "", "How the text begins. Where tokens are words, ? lists them."
)
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "The same; - for stdin.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "How many texts.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 100, "Tokens to append, at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most probable tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the most probable, up to this sum.")
_MIN_P = flags.DEFINE_float("min_p", 0.0, "Only tokens this close to the top one.")
_REPETITION_PENALTY = flags.DEFINE_float(
  "repetition_penalty", 1.0, "Above 1: less of what is there already."
)
_STOP = flags.DEFINE_string("stop", None, "A token that ends a text, such as '.'.")
_OVERFLOW = flags.DEFINE_string(
  "overflow", "slide", "When the context is full: stop, or slide the window."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the randomness.")


def _prompt() -> str:
  if _PROMPT_FILE.value is None:
    return _PROMPT.value
  if _PROMPT.value:
    raise InputError("--prompt and --prompt_file: give one of them")
  return read_text(_PROMPT_FILE.value, "--prompt_file")


def _write(text: str, end: str = "\n") -> None:
  text = terminal.lines(text) if sys.stdout.isatty() else text
  print(text, end=end, flush=True)


def main() -> int:
  """Loads the model, writes the texts."""
  import jax

  from gpt2_flax import generation

  sampling = generation.Sampling(
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
    min_p=_MIN_P.value,
    repetition_penalty=_REPETITION_PENALTY.value,
  )
  if _NUM_SAMPLES.value < 1:
    raise InputError(f"--num_samples={_NUM_SAMPLES.value}: must be at least 1")
  text = _prompt()
  model, params, tokenizer = command_line.load_model()
  stop_ids = tokenizer.encode(_STOP.value) if _STOP.value else []
  if len(stop_ids) > 1:
    raise InputError(f"--stop={_STOP.value}: must be one token, is {len(stop_ids)}")
  prompt = tokenizer.start(text)
  rows = [list(prompt) for _ in range(_NUM_SAMPLES.value)]
  printed = 0
  began = time.perf_counter()
  for new in generation.stream(
    model,
    params,
    rows,
    num_tokens=_NUM_TOKENS.value,
    key=jax.random.key(_SEED.value),
    sampling=sampling,
    stop_ids=stop_ids,
    overflow=_OVERFLOW.value,
  ):
    for row, tokens in zip(rows, new, strict=True):
      row.extend(tokens)
    if len(rows) == 1:
      # a character is held back until all its bytes are there
      whole = tokenizer.decode(rows[0]).rstrip("\ufffd")
      _write(whole[printed:], end="")
      printed = len(whole)
  seconds = time.perf_counter() - began
  if len(rows) == 1:
    _write(tokenizer.decode(rows[0])[printed:])
  else:
    _write("\n---\n".join(tokenizer.decode(row) for row in rows))
  num_made = sum(len(row) - len(prompt) for row in rows)
  print(
    f"{num_made} tokens in {seconds:.2f} s, compiling included:"
    f" {num_made / seconds:,.0f} tokens/s",
    file=sys.stderr,
  )
  return 0

"""Writes text with a trained model, or with published GPT-2 weights.

    python sample.py --workdir=runs/toy --prompt="the cat"
    python sample.py --pretrained=openai-community/gpt2 --prompt="Once upon" --top_k=40
    echo "To be" | python sample.py --workdir=runs/text --prompt_file=-
    python sample.py --workdir=runs/text --prompts=prompts.jsonl --stop=.
    python sample.py --workdir=runs/text --interactive

The text goes to stdout as it is made, the speed to stderr; of --prompts, a JSON line
each. Same seed, same text. On a terminal, control characters are shown as escapes;
files and pipes get them as they are.
"""

import json
import sys
import time
from typing import Any

from absl import flags

from gpt2_flax import terminal
from gpt2_flax.doors import command_line
from gpt2_flax.doors.prompts import read_prompts
from gpt2_flax.errors import InputError
from gpt2_flax.files.text import read_text

command_line.define_model_flags()
_PROMPT = flags.DEFINE_string(
  "prompt", "", "How the text begins. Where tokens are words, ? lists them."
)
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "The same; - for stdin.")
_PROMPTS = flags.DEFINE_string(
  "prompts",
  None,
  'Many: a file with one in each line, or JSON lines with "prompt" (.jsonl); - for'
  " stdin. Gives JSON lines with the completion and why it ended.",
)
_INTERACTIVE = flags.DEFINE_bool(
  "interactive",
  False,
  "You and the model write in turn: it goes on after each of your lines. Ctrl-C stops"
  " it, Ctrl-D ends.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Texts of --prompts at once.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "How many texts, of a prompt.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 100, "Tokens to append, at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only the k most probable tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Only the most probable, up to this sum.")
_MIN_P = flags.DEFINE_float("min_p", 0.0, "Only tokens this close to the top one.")
_REPETITION_PENALTY = flags.DEFINE_float(
  "repetition_penalty", 1.0, "Above 1: less of what is there already."
)
_NO_REPEAT_NGRAM_SIZE = flags.DEFINE_integer(
  "no_repeat_ngram_size", 0, "No run of so many tokens comes twice; 0: any may."
)
_NUM_BEAMS = flags.DEFINE_integer(
  "num_beams", 1, "Above 1: the best texts that so many beams find; nothing is drawn."
)
_LENGTH_PENALTY = flags.DEFINE_float(
  "length_penalty", 1.0, "Of beams: 0 ranks by the sum of log-probabilities, 1 by mean."
)
_STOP = flags.DEFINE_multi_string(
  "stop", [], "A text ends before this, such as '.'. May be given several times."
)
_OVERFLOW = flags.DEFINE_string(
  "overflow",
  None,
  "When the context is full: stop, or slide the window. Default: slide; with --prompts"
  " and beams, stop.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the randomness.")
Loaded = tuple[Any, Any, Any]  # a model, its params, its tokenizer
_OF_DRAWING = (_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED)


def main() -> int:
  """Loads the model, writes the texts."""
  _check_flags()
  prompt = _PROMPT.value
  if _PROMPT_FILE.value is not None:
    prompt = read_text(_PROMPT_FILE.value, "--prompt_file")
  settings = _settings()
  loaded = command_line.load_model()
  if _INTERACTIVE.value:
    _converse(loaded, prompt, settings)
    return 0
  began = time.perf_counter()
  if _PROMPTS.value is not None:
    num_made = _answer_file(loaded, _PROMPTS.value, settings)
  elif _NUM_SAMPLES.value == 1 and _NUM_BEAMS.value == 1:
    num_made = _stream(loaded, prompt, settings)
  else:
    num_made = _write_several(loaded, prompt, settings)
  seconds = time.perf_counter() - began
  print(
    f"{num_made} tokens in {seconds:.2f} s, compiling included:"
    f" {num_made / seconds:,.0f} tokens/s",
    file=sys.stderr,
  )
  return 0


def _check_flags() -> None:
  for flag in (_NUM_SAMPLES, _BATCH_SIZE, _NUM_BEAMS):
    if flag.value < 1:
      raise InputError(f"--{flag.name}={flag.value}: must be at least 1")
  given = [f"--{flag.name}" for flag in (_PROMPT, _PROMPT_FILE, _PROMPTS) if flag.value]
  if len(given) > 1:
    raise InputError(f"{' and '.join(given)}: give one of them")
  if _INTERACTIVE.value:
    for flag in (_PROMPTS, _NUM_SAMPLES, _NUM_BEAMS, _OVERFLOW):
      if flag.present:
        raise InputError(f"--{flag.name}: not with --interactive")
    if _PROMPT_FILE.value == "-":
      raise InputError("--prompt_file=-: not with --interactive, which reads stdin")
  if _NUM_BEAMS.value == 1:
    if _LENGTH_PENALTY.present:
      raise InputError("--length_penalty: only beams have one; give --num_beams")
    return
  for flag in _OF_DRAWING:
    if flag.present:
      raise InputError(f"--{flag.name}: with --num_beams nothing is drawn")
  if _OVERFLOW.value == "slide":
    raise InputError("--overflow=slide: must be stop with --num_beams")
  if _NUM_SAMPLES.value > _NUM_BEAMS.value:
    raise InputError(
      f"--num_samples={_NUM_SAMPLES.value}: must be at most --num_beams, which is"
      f" {_NUM_BEAMS.value}"
    )


def _settings() -> dict[str, Any]:
  """What the flags say of writing, for `writing.texts`."""
  import jax

  from gpt2_flax import generation

  settings: dict[str, Any] = dict(num_tokens=_NUM_TOKENS.value, stop=_STOP.value)
  if _NUM_BEAMS.value > 1:
    return settings | dict(
      num_beams=_NUM_BEAMS.value,
      length_penalty=_LENGTH_PENALTY.value,
      repetition_penalty=_REPETITION_PENALTY.value,
      no_repeat_ngram_size=_NO_REPEAT_NGRAM_SIZE.value,
    )
  sampling = generation.Sampling(
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
    min_p=_MIN_P.value,
    repetition_penalty=_REPETITION_PENALTY.value,
    no_repeat_ngram_size=_NO_REPEAT_NGRAM_SIZE.value,
  )
  overflow = _OVERFLOW.value or ("slide" if _PROMPTS.value is None else "stop")
  key = jax.random.key(_SEED.value)
  return settings | dict(sampling=sampling, overflow=overflow, key=key)


def _stream(loaded: Loaded, prompt: str, settings: dict[str, Any]) -> int:
  """Shows one text as it is made; how many tokens that were."""
  from gpt2_flax.writing.texts import stream_texts

  num_made = 0
  for number, [piece] in enumerate(stream_texts(*loaded, [prompt], **settings)):
    shown = _prompt_shown(loaded, prompt) if number == 0 else ""
    _show(shown + piece.text, end="")
    num_made += piece.num_tokens
  _show("")
  return num_made


def _converse(loaded: Loaded, prompt: str, settings: dict[str, Any]) -> None:
  """Lines from stdin and the model's answers, after the prompt."""
  from gpt2_flax.doors.interactive import converse
  from gpt2_flax.writing.conversation import Conversation

  num_tokens = settings.pop("num_tokens")
  del settings["overflow"]  # it slides
  conversation = Conversation(*loaded, **settings)
  if prompt:
    conversation.say(prompt)
    _show(prompt)
  converse(conversation, num_tokens)


def _write_several(loaded: Loaded, prompt: str, settings: dict[str, Any]) -> int:
  """Shows some texts when all are made; how many tokens they have."""
  [completions] = _complete(loaded, [prompt], settings)
  shown = _prompt_shown(loaded, prompt)
  _show("\n---\n".join(shown + completion.text for completion in completions))
  return sum(completion.num_tokens for completion in completions)


def _answer_file(loaded: Loaded, path: str, settings: dict[str, Any]) -> int:
  """A JSON line for each text, in the order of the prompts."""
  import jax

  model, _, tokenizer = loaded
  slides = settings.get("overflow") == "slide"
  most = None if slides else model.config.context_length - 1
  prompts = read_prompts(path, tokenizer, most)
  num_made = 0
  for begin in range(0, len(prompts), _BATCH_SIZE.value):
    batch = prompts[begin : begin + _BATCH_SIZE.value]
    of_batch = dict(settings)
    if "key" in settings:
      of_batch["key"] = jax.random.fold_in(settings["key"], begin)
    texts = [prompt.fields["prompt"] for prompt in batch]
    for prompt, completions in zip(
      batch, _complete(loaded, texts, of_batch), strict=True
    ):
      for completion in completions:
        num_made += completion.num_tokens
        answer = prompt.fields | {
          "completion": completion.text,
          "finish_reason": completion.finish_reason,
        }
        _show(json.dumps(answer, ensure_ascii=False))
  return num_made


def _complete(
  loaded: Loaded, prompts: list[str], settings: dict[str, Any]
) -> list[list[Any]]:
  """--num_samples completions of each prompt."""
  from gpt2_flax.writing.texts import complete, complete_by_beams

  number = _NUM_SAMPLES.value
  if "num_beams" in settings:
    found = complete_by_beams(*loaded, prompts, **settings)
    return [completions[:number] for completions in found]
  rows = [prompt for prompt in prompts for _ in range(number)]
  made = complete(*loaded, rows, **settings)
  return [made[at : at + number] for at in range(0, len(made), number)]


def _prompt_shown(loaded: Loaded, prompt: str) -> str:
  """The prompt as its tokens say it."""
  tokenizer = loaded[2]
  return tokenizer.decode(tokenizer.start(prompt))


def _show(text: str, end: str = "\n") -> None:
  text = terminal.lines(text) if sys.stdout.isatty() else text
  print(text, end=end, flush=True)

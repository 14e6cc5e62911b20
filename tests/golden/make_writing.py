"""How transformers writes with the small GPT-2s of make.py, for tests without PyTorch.

    pip install torch transformers
    python tests/golden/make_writing.py       adds writing.safetensors to each folder

  prompts          [B, 4]
  stop             [2], the tokens that end a text
  beams.NAME       [B, N, 8], the texts of N beams, best first, -1 after their end
  scores.NAME      [B, N], what they are ranked by
  repeats          [B, 8], greedy, with BANS
  drawn            [B, 8], drawn with WARPERS and BANS
  log_probs        [B, 8, V], of each token there; -inf where it was out of the question

The prompts are such that a change of the weights by a ten-thousandth changes no token,
and that beams end at several lengths.
"""

import pathlib

from make import HERE, open_model, SHAPES
from safetensors.torch import save_file
import torch
import transformers

NEW, BEAMS = 8, 3
BANS = dict(repetition_penalty=1.3, no_repeat_ngram_size=2)
WARPERS = dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02)
SEARCHES = {
  "plain": {},
  "by_sum": dict(length_penalty=0.0),
  "longer": dict(length_penalty=2.0),
  "shorter": dict(length_penalty=-1.0),
  "bans": BANS,
}


def generate(model, prompts, stop, **settings):
  """What transformers makes of it, with nothing but these settings."""
  settings = dict(num_beams=1, do_sample=False, eos_token_id=stop) | settings
  return model.generate(
    prompts,
    attention_mask=torch.ones_like(prompts),
    max_new_tokens=NEW,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_scores=True,
    **settings,
  )


def new_tokens(found, prompts, stop):
  """int [rows, NEW]: -1 after the first stop token."""
  new = found.sequences[:, prompts.shape[1] :]
  new = torch.nn.functional.pad(new, (0, NEW - new.shape[1]), value=-1)
  stops = torch.isin(new, torch.tensor(stop or [-2])).int()
  return new.masked_fill(stops.cumsum(1) - stops > 0, -1).int()


def write_with(model, prompts, stop):
  """All that the file holds, but for prompts and stop."""
  rows, found = len(prompts), {}
  for name, settings in SEARCHES.items():
    beams = generate(
      model, prompts, stop, num_beams=BEAMS, num_return_sequences=BEAMS, **settings
    )
    found[f"beams.{name}"] = new_tokens(beams, prompts, stop).view(rows, BEAMS, NEW)
    found[f"scores.{name}"] = beams.sequences_scores.view(rows, BEAMS)
  repeats = generate(model, prompts, None, **BANS)
  found["repeats"] = new_tokens(repeats, prompts, None)
  torch.manual_seed(0)
  drawn = generate(model, prompts, None, do_sample=True, **WARPERS, **BANS)
  found["drawn"] = new_tokens(drawn, prompts, None)
  found["log_probs"] = torch.stack(drawn.scores, 1).log_softmax(-1)
  return found


def signature(found):
  """What must not hang on a rounding."""
  finite = found["log_probs"].isfinite()
  return {k: v for k, v in found.items() if not v.is_floating_point()} | {"f": finite}


def is_firm(folder, found, prompts, stop):
  for seed in range(3):
    model = open_model(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
    other = signature(write_with(model, prompts, stop))
    if any(not torch.equal(v, other[k]) for k, v in signature(found).items()):
      return False
  return True


def write(folder: pathlib.Path) -> None:
  model = open_model(folder)
  for seed in range(1000):
    torch.manual_seed(seed)
    prompts = torch.randint(model.config.vocab_size, (2, 4))
    stop = torch.randperm(model.config.vocab_size)[:2].tolist()
    found = write_with(model, prompts, stop)
    lengths = {int(n) for n in (found["beams.plain"] >= 0).sum(-1).flatten()}
    different = not torch.equal(found["beams.plain"], found["beams.longer"])
    ended = min(lengths) < NEW and len(lengths) > 2 and NEW in lengths
    if ended and different and is_firm(folder, found, prompts, stop):
      break
  else:
    raise RuntimeError(f"no prompts for {folder}")
  found |= dict(prompts=prompts.int(), stop=torch.tensor(stop).int())
  contiguous = {key: value.detach().contiguous() for key, value in found.items()}
  save_file(contiguous, folder / "writing.safetensors")
  print(folder.name, "seed", seed, "lengths", sorted(lengths))


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  for name in SHAPES:
    write(HERE / name)

"""Tokenizers for others: the files that transformers reads, with the very same ids.

What the files beside a tokenizer.json said goes out as it came in. What they left open
is filled in: without a pad token transformers takes no batches, and without a limit it
warns of no text that is too long.
"""

import copy
import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from gpt2_flax.errors import InputError
from gpt2_flax.hub.folder import token_ids, TOKENIZER
from gpt2_flax.model_config import MOST
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  Tokenizer,
  WordTokenizer,
)
from gpt2_flax.tokenizer.hub_files import ABOUT, CONFIG, GENERATION, special_token

NO_BYTE_OF_TEXT = "<0xFF>"  # UTF-8 never has it


def write_tokenizer(
  folder: pathlib.Path, tokenizer: Tokenizer, context_length: int
) -> None:
  """Writes tokenizer.json and what lies beside it.

  Args:
    context_length: of the model. No limit that is written is above it.
  """
  # one with a `save` of its own is the library's already
  save = getattr(tokenizer, "save", None) or _hub_tokenizer(tokenizer).save
  save(str(folder / TOKENIZER))
  came_with = tokenizer.beside if isinstance(tokenizer, BPETokenizer) else {}
  beside = copy.deepcopy(came_with) or _beside_our_own(tokenizer)
  ids = beside.pop(CONFIG, None) or token_ids(tokenizer)  # `config_json` has them
  about = beside.setdefault(ABOUT, {})
  about.pop("auto_map", None)  # it names code, which does not come along
  theirs = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
  for name, content in _special_tokens(tokenizer, theirs).items():
    if special_token(beside, name) is None:
      about[name] = content
  limit = about.get("model_max_length")
  about["model_max_length"] = _within(context_length, limit)
  is_cut = isinstance(limit, (int, float)) and context_length < limit <= MOST
  if is_cut or not came_with:
    # else transformers writes past the last position that this model has
    ids = {name: token_id for name, token_id in ids.items() if name.endswith("_id")}
    generation = beside.setdefault(GENERATION, {"_from_model_config": True, **ids})
    if "max_new_tokens" not in generation:
      length = _within(context_length, generation.get("max_length"))
      generation["max_length"] = length
  for file, values in beside.items():
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / file).write_text(text, "utf-8")


def _within(most: int, said: Any) -> int | float:
  return min(most, said) if isinstance(said, (int, float)) else most


def _beside_our_own(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
  """For a tokenizer that no such files came with: what fits a model that writes on."""
  about: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # any tokenizer.json
    "padding_side": "left",  # so that a text's end is where the next token goes
    "clean_up_tokenization_spaces": False,
  }
  if isinstance(tokenizer, ByteTokenizer):
    about["split_special_tokens"] = True  # a text may say <0xFF>: six bytes
  if isinstance(tokenizer, CharTokenizer):
    about["added_tokens_decoder"] = {}  # else the pad token would become special
  return {ABOUT: about}


def _special_tokens(
  tokenizer: Tokenizer, theirs: tokenizers.Tokenizer
) -> dict[str, str]:
  """By transformers' names. Attention never sees what fills up a batch."""
  match tokenizer:
    case CharTokenizer():
      return {"pad_token": tokenizer.characters[0]}
    case ByteTokenizer():
      return {"pad_token": NO_BYTE_OF_TEXT}
  ids = token_ids(tokenizer)
  ids["unk_token_id"] = tokenizer.end_of_text_id  # as in GPT-2, which needs none
  return {
    name.removesuffix("_id"): content
    for name, token_id in ids.items()
    if token_id is not None and (content := theirs.id_to_token(token_id))
  }


def _hub_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
  match tokenizer:
    case WordTokenizer():
      ids = {word: i for i, word in enumerate(("<s>", *tokenizer.words))}
      theirs = tokenizers.Tokenizer(models.WordLevel(ids))
      theirs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
      theirs.add_special_tokens(["<s>"])
      theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.start_id)]
      )
    case CharTokenizer():
      ids = {character: i for i, character in enumerate(tokenizer.characters)}
      theirs = tokenizers.Tokenizer(models.WordLevel(ids))
      any_character = tokenizers.Regex(r"[\s\S]")
      theirs.pre_tokenizer = pre_tokenizers.Split(any_character, "isolated")
      theirs.decoder = decoders.Fuse()
      # It is the pad token. If it were special, texts would be written without it.
      theirs.add_tokens([AddedToken(tokenizer.characters[0], normalized=False)])
    case ByteTokenizer():
      # no pieces and no merges, so every character falls back to its bytes
      ids = {f"<0x{byte:02X}>": byte for byte in range(256)}
      theirs = tokenizers.Tokenizer(models.BPE(ids, [], byte_fallback=True))
      theirs.decoder = decoders.ByteFallback()
    case _:
      raise InputError(f"tokenizer {tokenizer.kind!r} cannot be exported")
  return theirs

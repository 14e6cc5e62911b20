"""Texts end where they should, and say why."""

import functools
import json
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config, InputError, pretrained
from gpt2_flax.generation import generate, Sampling
from gpt2_flax.tokenizer import BPETokenizer, ByteTokenizer
from gpt2_flax.writing.beams import beam_search
from gpt2_flax.writing.texts import (
  complete,
  complete_by_beams,
  end_ids,
  join,
  stream_texts,
)
from tests.params import random_params

GREEDY = Sampling(temperature=0)
SAID = "one two\0three"
CONTEXT_LENGTH = 32


class Bytes(ByteTokenizer):
  """With a token that ends a text."""

  end_of_text_id = 0


@functools.cache
def model_and_params():
  config = GPT2Config(
    vocab_size=256,
    context_length=CONTEXT_LENGTH,
    num_layers=1,
    num_heads=1,
    embed_dim=4,
    positional_encoding="learned",
  )
  return GPT2(config), random_params(GPT2(config), scale=0.02)


def say(logits_BV, tokens_BS, slot):
  """Makes the model say SAID again and again, from the length of the text on."""
  del slot
  said = jnp.array(list(SAID.encode()))
  wanted_B = said[((tokens_BS >= 0).sum(axis=1) - 3) % len(said)]
  return jnp.where(jnp.arange(256)[None] == wanted_B[:, None], 0 * logits_BV, -jnp.inf)


def said(prompts, tokenizer=Bytes(), num_tokens=20, **settings):  # noqa: B008
  return complete(
    *model_and_params(),
    tokenizer,
    prompts,
    num_tokens=num_tokens,
    sampling=GREEDY,
    logits_function=say,
    **settings,
  )


class CompleteTest(chex.TestCase):
  def test_ends_before_the_end_of_text_unless_other_tokens_are_asked_for(self):
    [one] = said(["abc"])
    self.assertEqual(one, ("one two", "stop", 8))
    [other] = said(["abc"], stop_ids=[ord("h"), ord("w")])
    self.assertEqual(other, ("one t", "stop", 6))
    [whole] = said(["abc"], stop_ids=[])
    self.assertEqual(whole, ((2 * SAID)[:20], "length", 20))
    [short] = said(["abc"], num_tokens=3)
    self.assertEqual(short, ("one", "length", 3))

  def test_each_prompt_ends_by_itself(self):
    """Three letters before "one", more of them within it; one is near the end."""
    long = "x" * (CONTEXT_LENGTH - 2)
    found = said(["abc", "abcde", long, "abcdefgh"], stop=["ne t", "\0t"])
    at = len(long) - 3
    near_the_end = (3 * SAID)[at : at + 2]
    self.assertEqual(
      [(c.text, c.finish_reason) for c in found],
      [("o", "stop"), ("e two", "stop"), (near_the_end, "length"), ("wo", "stop")],
    )

  def test_a_stream_is_the_text_in_pieces(self):
    pieces = list(
      stream_texts(
        *model_and_params(),
        ByteTokenizer(),
        ["abc", "abcd"],
        num_tokens=24,
        sampling=GREEDY,
        stop=["threeone t"],
        logits_function=say,
      )
    )
    self.assertGreater(len(pieces), 1)
    joined = [join(row) for row in zip(*pieces, strict=True)]
    whole = said(["abc", "abcd"], ByteTokenizer(), 24, stop=["threeone t"])
    self.assertEqual(joined, whole)
    self.assertEqual([c.text for c in joined], ["one two\0", "ne two\0"])
    reasons = [piece[0].finish_reason for piece in pieces]
    self.assertEqual(reasons[0], None)
    self.assertEqual(pieces[0][0].text, "one two\0")  # and "three" is held back

  def test_what_lies_beside_a_tokenizer_may_name_several_ends(self):
    tokenizer = Bytes()
    self.assertEqual(end_ids(tokenizer, 256), (0,))
    self.assertEqual(end_ids(ByteTokenizer(), 256), ())
    tokenizer.beside = {"config.json": {"eos_token_id": 7}}
    self.assertEqual(end_ids(tokenizer, 256), (7,))
    ids = {"eos_token_id": [119, 110, 256]}
    tokenizer.beside["generation_config.json"] = ids
    self.assertEqual(end_ids(tokenizer, 256), (119, 110))
    self.assertEqual(said(["abc"], tokenizer)[0].text, "o")
    tokenizer.beside = {"generation_config.json": {"eos_token_id": None}}
    self.assertEqual(end_ids(tokenizer, 256), (0,))

  def test_and_so_may_a_folder_of_the_hub(self):
    tokenizer = BPETokenizer.train(["to be or not to be"], 260)
    config = GPT2Config(vocab_size=260, num_layers=1, num_heads=1, embed_dim=2)
    model = GPT2(config)
    zeros = jax.tree.map(np.zeros_like, random_params(model))
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch) / "model"
      pretrained.save(folder, model, zeros, tokenizer)
      opened = pretrained.load_tokenizer(folder)
      self.assertEqual(end_ids(opened, 260), (tokenizer.end_of_text_id,))
      says = {"eos_token_id": [5, 7]}
      (folder / "generation_config.json").write_text(json.dumps(says))
      self.assertEqual(end_ids(pretrained.load_tokenizer(folder), 260), (5, 7))


class BeamsTest(chex.TestCase):
  def test_are_the_texts_of_the_beams(self):
    model, params = model_and_params()
    args = dict(num_tokens=6, num_beams=3)
    tokenizer = Bytes()
    found = complete_by_beams(
      model, params, tokenizer, ["abc"], stop=["q"], logits_function=say, **args
    )
    self.assertEqual(found, [[("one tw", "length", 6)]])
    args["num_tokens"] = 9
    found = complete_by_beams(
      model,
      params,
      tokenizer,
      ["abc", "abcdef"],
      stop=["w"],
      logits_function=say,
      **args,
    )
    self.assertEqual(found, [[("one t", "stop", 6)], [(" t", "stop", 3)]])

  def test_come_best_first(self):
    model, params = model_and_params()
    args = dict(num_tokens=3, num_beams=3)
    [found] = complete_by_beams(model, params, Bytes(), ["abc"], **args)
    [beams] = beam_search(model, params, [list(b"abc")], stop_ids=[0], **args)
    self.assertEqual([c.num_tokens for c in found], [len(b.tokens) for b in beams])
    [greedy] = generate(
      model, params, [list(b"abc")], num_tokens=3, sampling=GREEDY, stop_ids=[0]
    )
    self.assertIn(Bytes().decode(greedy), [c.text for c in found])

  def test_end_by_tokens(self):
    model, params = model_and_params()
    with self.assertRaisesRegex(InputError, "stop is 'ab', 2 tokens: must be one"):
      complete_by_beams(
        model, params, Bytes(), ["a"], stop=["ab"], num_tokens=1, num_beams=2
      )

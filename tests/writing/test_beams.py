"""Beam search finds what transformers finds, and all there is where beams suffice."""

import functools
import itertools
import pathlib

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt2_flax import GPT2, GPT2Config, InputError, pretrained
from gpt2_flax.generation import adjusted, generate, prefill, Sampling, warped
from gpt2_flax.writing.beams import beam_search
from tests.close import assert_close, ROUNDINGS
from tests.params import wide_params

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SHAPES = [
  "plain",  # test_pretrained.py has the logits of the others
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("wide", "untied", "by_layer", "unscaled", "sharded", "old")
  ),
]
BANS = dict(repetition_penalty=1.3, no_repeat_ngram_size=2)  # as in make_writing.py
WARPERS = dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02)
SEARCHES = {
  "plain": {},
  "by_sum": dict(length_penalty=0.0),
  "longer": dict(length_penalty=2.0),
  "shorter": dict(length_penalty=-1.0),
  "bans": BANS,
}
NEW = 8


@pytest.mark.parametrize("name", SHAPES)
def test_writes_what_transformers_writes(name):
  """Beams and their scores, texts without repeats, and what it draws from."""
  theirs = load_file(GOLDEN / name / "writing.safetensors")
  prompts = theirs["prompts"].tolist()
  model, params = pretrained.load(GOLDEN / name)
  for search, settings in SEARCHES.items():
    found = beam_search(
      model,
      params,
      prompts,
      num_tokens=NEW,
      num_beams=3,
      stop_ids=theirs["stop"].tolist(),
      **settings,
    )
    tokens = [[beam.tokens for beam in beams] for beams in found]
    expected = theirs[f"beams.{search}"]
    assert tokens == [[row[row >= 0].tolist() for row in rows] for rows in expected]
    scores = np.array([[beam.score for beam in beams] for beams in found], "f4")
    # a sum of NEW log-probabilities, each with the model's roundings
    assert_close(scores, theirs[f"scores.{search}"], NEW * ROUNDINGS)
  greedy = Sampling(temperature=0, **BANS)
  made = generate(model, params, prompts, num_tokens=NEW, sampling=greedy)
  assert made == theirs["repeats"].tolist()

  sampling = Sampling(**WARPERS, **BANS)

  @jax.jit
  def log_probs(text_BT, padding_B):
    state = prefill(model, params, text_BT, padding_B, num_slots=12)
    logits_BV = adjusted(state.logits_BV, state, sampling)
    return jax.nn.log_softmax(warped(logits_BV, sampling))

  texts = np.concatenate([theirs["prompts"], theirs["drawn"]], axis=1)
  for made in range(NEW):
    text = texts[:, : 4 + made]
    padding = 12 - text.shape[1]
    found = log_probs(np.pad(text, ((0, 0), (padding, 0))), np.full(2, padding))
    # the temperature makes the logits' roundings larger, as it does the logits
    assert_close(found, theirs["log_probs"][:, made], scale=50.0)


@functools.cache
def small(vocab_size, context_length=12):
  config = GPT2Config(
    vocab_size=vocab_size,
    context_length=context_length,
    num_layers=1,
    num_heads=2,
    embed_dim=8,
    positional_encoding="learned",
  )
  return GPT2(config), wide_params(GPT2(config), scale=0.4, seed=2)


def less_of_the_one_before(logits_BV, tokens_BS, slot):
  """Of the token before the last, which a beam has from the one that it grew out of."""
  before_B1 = jnp.take(tokens_BS, slot - 2, axis=1)[:, None]
  tokens_1V = jnp.arange(logits_BV.shape[1])[None]
  return logits_BV - (tokens_1V == before_B1)


class BeamTest(chex.TestCase):
  @parameterized.parameters((0.0, None), (1.0, None), (1.0, less_of_the_one_before))
  def test_with_beams_for_all_texts_it_finds_all_in_order(self, length_penalty, own):
    """Three tokens, of which 2 ends a text: 1 + 2 + 4 * 3 texts of at most three.

    A function of yours sees each beam's own tokens.
    """
    model, params = small(vocab_size=3)
    prompt = [0, 1, 1]

    apply = jax.jit(model.apply)

    def log_prob(tokens):
      text = [*prompt, *tokens, *[0] * (3 - len(tokens))]
      logits = np.asarray(apply(params, jnp.array([text]))[0], "f8")
      log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      return sum(
        log_probs[len(prompt) - 1 + at, token]
        - (own is not None and text[len(prompt) - 2 + at] == token)
        for at, token in enumerate(tokens)
      )

    texts = [
      tokens
      for length in (1, 2, 3)
      for tokens in itertools.product(range(3), repeat=length)
      if 2 not in tokens[:-1] and (tokens[-1] == 2 or length == 3)
    ]
    self.assertLen(texts, 15)
    scores = {
      tokens: float(log_prob(tokens)) / len(tokens) ** length_penalty
      for tokens in texts
    }
    (found,) = beam_search(
      model,
      params,
      [prompt],
      num_tokens=3,
      num_beams=15,
      length_penalty=length_penalty,
      stop_ids=[2],
      logits_function=own,
    )
    self.assertEqual(
      [tuple(beam.tokens) for beam in found], sorted(texts, key=lambda t: -scores[t])
    )
    assert_close(
      np.array([beam.score for beam in found], "f4"),
      np.array([scores[tuple(beam.tokens)] for beam in found], "f4"),
    )

  @parameterized.parameters(([],), ([0],))
  def test_prompts_of_several_lengths_go_to_their_own_end(self, stop_ids):
    model, params = small(vocab_size=7)
    prompts = [[1, 2, 3, 4, 5, 6, 1, 2], [3], [5, 5, 1]]
    args = dict(num_tokens=10, num_beams=2, stop_ids=stop_ids)
    found = beam_search(model, params, prompts, **args)
    for prompt, beams in zip(prompts, found, strict=True):
      alone, *_ = beam_search(model, params, [prompt] * 3, **args)
      self.assertEqual([b.tokens for b in beams], [b.tokens for b in alone])
      room = min(10, 12 - len(prompt))
      for beam in beams:
        stops = [token in stop_ids for token in beam.tokens]
        self.assertTrue(stops[-1] or len(beam.tokens) == room)
        self.assertFalse(any(stops[:-1]))

  def test_your_function_acts_on_log_probabilities(self):
    model, params = small(vocab_size=7)

    def only_six(logits_BV, tokens_BS, slot):
      del tokens_BS, slot
      return jnp.where(jnp.arange(7)[None] == 6, -0.5, -jnp.inf) + 0 * logits_BV

    (found,) = beam_search(
      model, params, [[1]], num_tokens=4, num_beams=2, logits_function=only_six
    )
    self.assertLen(found, 1)  # there is no other text
    self.assertEqual(found[0].tokens, [6] * 4)
    self.assertEqual(found[0].score, -0.5)

  @parameterized.parameters(
    (dict(num_beams=0), "num_beams is 0: must be at least 1"),
    (dict(length_penalty=float("nan")), "length_penalty is nan: must be finite"),
    (dict(prompts=[[1] * 12]), "a prompt has 12 tokens"),
    (dict(repetition_penalty=0.0), "repetition_penalty is 0.0: must be above 0"),
  )
  def test_refuses(self, arguments, message):
    model, params = small(vocab_size=3)
    with self.assertRaisesRegex(InputError, message):
      beam_search(model, params, **(dict(prompts=[[1]], num_tokens=1) | arguments))

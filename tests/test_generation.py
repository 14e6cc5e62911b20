import functools
import itertools
import math
import re
from unittest import mock

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax import generation
from gpt2_flax.errors import InputError
from gpt2_flax.generation import (
  CHUNK,
  decode,
  empty_cache,
  generate,
  prefill,
  sample_token,
  Sampling,
  stream,
)
from gpt2_flax.layers.head_kernels import swap_heads
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.transformer import GPT2
from tests.close import assert_close, ROUNDINGS
from tests.params import shapes_of, wide_params

GREEDY = Sampling(temperature=0)
CONTEXT_LENGTH = 40
NUM_TOKENS = CHUNK + 2
# Not in order; the largest sum to 0.5, 0.7, 0.85, 0.95.
PROBABILITIES = np.array([0.05, 0.2, 0.5, 0.1, 0.15])


@functools.cache
def model_and_params(kind="learned", context_length=CONTEXT_LENGTH):
  """By default one that has no vector for a position that is not there."""
  config = GPT2Config(
    vocab_size=11,
    context_length=context_length,
    num_layers=2,
    num_heads=2,
    embed_dim=8,
    positional_encoding=kind,
    tied_embeddings=kind == "learned",  # tied and unmoved, a token follows itself
  )
  return GPT2(config), wide_params(GPT2(config), scale=0.6, seed=8)


def random_key(seed):
  """XLA compiles this generator in a quarter of the default one's time."""
  return jax.random.key(seed, impl="unsafe_rbg")


def prompt(length):
  return np.random.default_rng(length).integers(0, 11, length).tolist()


@functools.cache
def model_at(kind, context_length):
  model, params = model_and_params(kind, context_length)
  return jax.jit(lambda tokens, position: model.apply(params, tokens)[0, position])


def continue_naively(
  text,
  num_tokens,
  repetition_penalty=1.0,
  no_repeat_ngram_size=0,
  kind="learned",
  context_length=CONTEXT_LENGTH,
):
  """Greedy; the whole window through the model for each token, with no cache.

  What comes after a token cannot change its logits, so the window is filled up on
  the right to one length. A full window goes on with its newer half, the larger one
  where it has a middle.
  """
  text, window = list(text), list(text)
  for _ in range(num_tokens):
    if len(window) >= context_length:
      window = window[-math.ceil(context_length / 2) :]
    filled = np.zeros((1, context_length), np.int32)
    filled[0, : len(window)] = window
    logits = np.array(model_at(kind, context_length)(filled, len(window) - 1))
    for token in set(window):
      if logits[token] > 0:
        logits[token] /= repetition_penalty
      else:
        logits[token] *= repetition_penalty
    if size := no_repeat_ngram_size:
      runs = {tuple(window[at : at + size]) for at in range(len(window) - size + 1)}
      last = window[len(window) - size + 1 :]
      logits[[(*last, token) in runs for token in range(11)]] = -1e9
    second, best = np.sort(logits)[-2:]
    # else roundings might decide: take other weights
    assert best - second > 100 * ROUNDINGS * 2**-24 * abs(logits[logits > -1e9]).max()
    text.append(int(logits.argmax()))
    window.append(text[-1])
  return text[-num_tokens:]


def continue_(
  prompts,
  num_tokens=NUM_TOKENS,
  sampling=GREEDY,
  kind="learned",
  context_length=CONTEXT_LENGTH,
  **kwargs,
):
  model, params = model_and_params(kind, context_length)
  return generate(
    model, params, prompts, num_tokens=num_tokens, sampling=sampling, **kwargs
  )


class GenerateTest(chex.TestCase):
  RAGGED = tuple(prompt(length) for length in (1, 3, 8))

  def test_greedy_equals_the_naive_loop_alone_and_in_a_ragged_batch(self):
    naive = [continue_naively(text, NUM_TOKENS) for text in self.RAGGED]
    self.assertEqual(continue_(self.RAGGED), naive)
    self.assertEqual([continue_([text])[0] for text in self.RAGGED], naive)
    self.assertGreater(len(np.unique(naive)), 3)  # not one token over and over

  def test_slots_will_do_for_relative_positions(self):
    self.assert_slots_will_do("rotary")

  @pytest.mark.slow
  def test_so_they_will_for_a_bias(self):
    self.assert_slots_will_do("alibi")

  def assert_slots_will_do(self, kind):
    """In a ragged batch, where each row has its own padding, and after a slide."""
    naive = [continue_naively(text, 40, kind=kind) for text in self.RAGGED]
    self.assertEqual(continue_(self.RAGGED, 40, kind=kind, overflow="slide"), naive)
    self.assertGreater(len(np.unique(naive)), 3)

  @pytest.mark.slow  # each row stops, and slides, below
  def test_a_full_context_stops_or_slides(self):
    naive = continue_naively(prompt(8), 60)
    self.assertEqual(continue_([prompt(8)], 60, overflow="slide"), [naive])
    # As many tokens as there are positions, the last one included.
    self.assertEqual(continue_([prompt(8)], 60), [naive[: CONTEXT_LENGTH - 8]])

  def test_each_row_writes_until_its_own_context_is_full(self):
    naive = [continue_naively(text, CONTEXT_LENGTH - len(text)) for text in self.RAGGED]
    with mock.patch.object(generation, "prefill", wraps=prefill) as reads:
      self.assertEqual(continue_(self.RAGGED, 60), naive)
    self.assertEqual(reads.call_count, 1)

  def test_each_row_slides_when_its_own_context_is_full(self):
    naive = [continue_naively(text, 60) for text in self.RAGGED]
    self.assertEqual(continue_(self.RAGGED, 60, overflow="slide"), naive)

  @pytest.mark.slow
  def test_a_context_of_odd_length_slides(self):
    args = dict(context_length=7)
    naive = continue_naively(prompt(9), 10, **args)
    self.assertEqual(continue_([prompt(9)], 10, overflow="slide", **args), [naive])

  def test_a_context_of_one_token_cannot_slide(self):
    for text in ([3], [3, 4]):
      with (
        mock.patch.object(generation, "prefill", side_effect=AssertionError("began")),
        self.assertRaisesRegex(InputError, "must have fewer than .* which is 1"),
      ):
        continue_([text], 1, overflow="slide", context_length=1)

  @pytest.mark.slow
  def test_a_prompt_longer_than_the_context_slides_too(self):
    self.assertEqual(
      continue_([prompt(50)], 5, overflow="slide"), [continue_naively(prompt(50), 5)]
    )

  def test_a_repetition_penalty_counts_the_prompt(self):
    sampling = Sampling(temperature=0, repetition_penalty=5.0)
    penalised = continue_naively(prompt(4), NUM_TOKENS, repetition_penalty=5.0)
    self.assertEqual(continue_([prompt(4)], sampling=sampling), [penalised])
    self.assertNotEqual(penalised, continue_naively(prompt(4), NUM_TOKENS))

  def test_no_run_of_two_tokens_comes_twice(self):
    self.assert_no_run_comes_twice(2)

  @parameterized.parameters(1, 3)
  @pytest.mark.slow  # rows/test_repeats.py has runs of other sizes
  def test_nor_does_a_shorter_or_a_longer_one(self, size):
    self.assert_no_run_comes_twice(size)

  def assert_no_run_comes_twice(self, size):
    """In the window that the model sees: it slides in the course of it."""
    sampling = Sampling(temperature=0, no_repeat_ngram_size=size)
    length, num_tokens = (4, 7) if size == 1 else (8, 40)
    args = dict(sampling=sampling, overflow="slide")
    made = continue_([prompt(length)], num_tokens, **args)
    naive = continue_naively(prompt(length), num_tokens, no_repeat_ngram_size=size)
    self.assertEqual(made, [naive])
    self.assertNotEqual(naive, continue_naively(prompt(length), num_tokens))

  def test_your_function_of_the_logits_sees_the_text(self):
    """It allows one token only, which it makes from the last one and the length."""

    def count_up(logits_BV, tokens_BS, slot):
      length_B = (tokens_BS >= 0).sum(axis=1)
      wanted_B = (jnp.take(tokens_BS, slot - 1, axis=1) + length_B) % 11
      return jnp.where(jnp.arange(11)[None] == wanted_B[:, None], logits_BV, -jnp.inf)

    made = continue_(
      self.RAGGED,
      sampling=Sampling(),
      key=random_key(0),
      logits_function=count_up,
    )
    for text, row in zip(self.RAGGED, made, strict=True):
      expected = list(text)
      for _ in range(NUM_TOKENS):
        expected.append((expected[-1] + len(expected)) % 11)
      self.assertEqual(row, expected[len(text) :])

  def test_your_function_comes_after_the_penalty_and_before_the_temperature(self):
    """With these penalties, a seen token's logit is next to nothing or far below."""
    seen = []

    def look(logits_BV, tokens_BS, slot):
      jax.debug.callback(lambda logits: seen.append(np.array(logits)), logits_BV)
      return logits_BV

    sampling = Sampling(temperature=1e-3, repetition_penalty=1e4)
    args = dict(sampling=sampling, key=random_key(0), logits_function=look)
    continue_([prompt(8)], **args)
    jax.effects_barrier()
    plain = np.asarray(
      model_at("learned", CONTEXT_LENGTH)(np.array([prompt(8) + [0] * 32]), 7)
    )
    expected = [
      x if token not in prompt(8) else x / 1e4 if x > 0 else x * 1e4
      for token, x in enumerate(plain)
    ]
    assert_close(seen[0][0], np.array(expected, "f4"))

  def test_a_function_that_gives_another_shape_is_refused(self):
    with self.assertRaisesRegex(InputError, r"gave shape \[1\]: must be \[1, 11\]"):
      continue_([[1]], logits_function=lambda logits, tokens, slot: logits[:, 0])

  def test_a_stop_token_ends_its_row_alone(self):
    whole = continue_(self.RAGGED, CONTEXT_LENGTH, overflow="slide")
    stop = next(token for token in whole[1] if token not in whole[2])
    ends = [row.index(stop) + 1 if stop in row else len(row) for row in whole]
    self.assertLess(ends[1], CHUNK)
    self.assertEqual(
      continue_(self.RAGGED, CONTEXT_LENGTH, overflow="slide", stop_ids=[stop]),
      [row[:end] for row, end in zip(whole, ends, strict=True)],
    )

  def test_each_of_several_stop_tokens_ends_a_row(self):
    whole = continue_(self.RAGGED)
    one, other = (
      next(token for token in whole[row] if token not in whole[1 - row])
      for row in (0, 1)
    )
    ids = (one, other)
    ends = [
      min(row.index(token) + 1 if token in row else len(row) for token in ids)
      for row in whole
    ]
    self.assertEqual(
      continue_(self.RAGGED, stop_ids=ids),
      [row[:end] for row, end in zip(whole, ends, strict=True)],
    )

  def test_a_stream_is_the_text_in_pieces(self):
    model, params = model_and_params()
    pieces = list(
      stream(model, params, self.RAGGED, num_tokens=NUM_TOKENS, sampling=GREEDY)
    )
    self.assertGreater(len(pieces), 1)
    joined = [list(itertools.chain(*row)) for row in zip(*pieces, strict=True)]
    self.assertEqual(joined, continue_(self.RAGGED))

  def test_the_key_decides_the_tokens(self):
    blind = Sampling(temperature=1e6)  # nothing but the key matters
    one, again, other = (
      continue_([prompt(4)] * 3, sampling=blind, key=random_key(seed))
      for seed in (1, 1, 2)
    )
    self.assertEqual(one, again)
    self.assertNotEqual(one, other)
    self.assertNotEqual(one[0], one[1])  # each row draws its own
    begun, continued = ([row[at : at + 2] for row in one] for at in (0, CHUNK))
    self.assertNotEqual(begun, continued)
    self.assertContainsSubset(itertools.chain(*one), range(11))

  def test_takes_params_as_init_gives_them(self):
    model, params = model_and_params()
    axes = shapes_of(model)
    named = jax.tree.map(
      lambda box, leaf: box.replace_boxed(leaf),
      axes,
      params,
      is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )
    self.assertIsInstance(
      named["params"]["token_embedding"]["embedding"], nn.LogicallyPartitioned
    )
    made = [
      generate(model, given, [prompt(3)], num_tokens=NUM_TOKENS, sampling=GREEDY)
      for given in (named, params)
    ]
    self.assertEqual(*made)

  @pytest.mark.slow  # so it is in SamplingTest
  def test_only_the_most_probable_token_is_greedy(self):
    hot = Sampling(temperature=5.0, top_k=1)
    self.assertEqual(
      continue_([prompt(5)], sampling=hot, key=random_key(3)), continue_([prompt(5)])
    )

  def test_a_length_in_the_same_bucket_does_not_compile_anew(self):
    def compiled(length):
      continue_([prompt(length)])
      return prefill._cache_size(), decode._cache_size()

    first = compiled(5)
    self.assertEqual([compiled(length) for length in (6, 8, 1)], [first] * 3)

  @parameterized.parameters(
    (dict(prompts=[]), "at least one token"),
    (dict(prompts=[[]]), "at least one token"),
    (dict(prompts=[[1], []]), "at least one token"),
    (dict(num_tokens=0), "num_tokens is 0"),
    (dict(prompts=[[1], [1] * 40]), "a prompt has 40 tokens.*context_length.* 40"),
    (dict(sampling=Sampling()), "key is None"),
    (dict(prompts=[[1], [3, 11]]), "prompts: token id is 11: must be 0 to 10"),
    (dict(prompts=[[-1]]), "prompts: token id is -1: must be 0 to 10"),
    (dict(prompts=[[2**63]]), "prompts: token id is 9223372036854775808: must be"),
    (dict(stop_ids=[11]), "stop_ids: token id is 11: must be 0 to 10"),
    (dict(overflow="slid"), "overflow 'slid': did you mean 'slide'"),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(InputError, message):
      continue_(**(dict(prompts=[[1]], num_tokens=1) | arguments))


sample_in_a_program = jax.jit(sample_token, static_argnums=2)
# Settings, and the tokens that they leave.
ALLOWED = (
  ("plain", Sampling(), [0, 1, 2, 3, 4]),
  ("cold", Sampling(temperature=0.5), [0, 1, 2, 3, 4]),
  ("hot", Sampling(temperature=2.0), [0, 1, 2, 3, 4]),
  ("top_k", Sampling(top_k=3), [1, 2, 4]),
  ("top_k_above_vocab_size", Sampling(top_k=9), [0, 1, 2, 3, 4]),
  ("top_p", Sampling(top_p=0.6), [1, 2]),
  ("top_p_of_one_token", Sampling(top_p=0.4), [2]),
  # Hot, the three largest have 0.74 of the mass, the four largest 0.89.
  ("hot_top_p", Sampling(temperature=2.0, top_p=0.8), [1, 2, 3, 4]),
  ("min_p", Sampling(min_p=0.25), [1, 2, 4]),
  ("min_p_of_one_token", Sampling(min_p=0.9), [2]),
  # Of the two that top_k leaves, 2 has 5/7 of the mass.
  ("top_k_then_top_p", Sampling(top_k=2, top_p=0.7), [2]),
  # At least 0.35 of 0.5: 0.175; hot, of 0.5 ** 0.5: a token of 0.06 or more.
  ("larger_min_p", Sampling(min_p=0.35), [1, 2]),
  ("hot_min_p", Sampling(temperature=2.0, min_p=0.35), [1, 2, 3, 4]),
)


class SamplingTest(chex.TestCase):
  @parameterized.named_parameters(*ALLOWED)
  def test_frequencies_are_those_of_the_allowed_tokens(self, sampling, allowed):
    """Without jit: one by one, these operations are compiled once for all settings."""
    self.assert_frequencies(sample_token, sampling, allowed)

  def test_so_they_are_in_one_program(self):
    """top_k leaves 0 out, top_p 3, and min_p 4."""
    all_of_them = Sampling(temperature=2.0, top_k=4, top_p=0.8, min_p=0.6)
    self.assert_frequencies(sample_in_a_program, all_of_them, [1, 2])

  @parameterized.named_parameters(*ALLOWED)
  @pytest.mark.slow
  def test_so_they_are_in_a_program_of_each(self, sampling, allowed):
    self.assert_frequencies(sample_in_a_program, sampling, allowed)

  def assert_frequencies(self, sample, sampling, allowed):
    logits = 7 + np.log(PROBABILITIES)  # a constant in the logits changes nothing
    tokens = sample(random_key(0), np.tile(logits.astype("f4"), (20_000, 1)), sampling)
    chex.assert_shape(tokens, (20_000,))
    chex.assert_type(tokens, jnp.int32)
    expected = np.zeros(5)
    expected[allowed] = PROBABILITIES[allowed] ** (1 / sampling.temperature)
    expected /= expected.sum()
    frequencies = np.bincount(tokens, minlength=5) / 20_000
    chex.assert_trees_all_equal(frequencies > 0, expected > 0)
    five_standard_errors = 5 * np.sqrt(expected * (1 - expected) / 20_000)
    np.testing.assert_array_less(
      abs(frequencies - expected), five_standard_errors + 1e-9
    )

  def test_each_row_is_cut_by_its_own_logits(self):
    logits = np.random.default_rng(1).normal(size=(200, 7)).astype("f4")
    best = np.argsort(-logits)
    sample, key = sample_in_a_program, random_key(2)
    for sampling in (GREEDY, Sampling(temperature=5.0, top_k=1), Sampling(top_p=1e-6)):
      chex.assert_trees_all_equal(
        sample(key, logits, sampling), best[:, 0].astype("i4")
      )
    tokens = np.asarray(sample(key, logits, Sampling(temperature=3.0, top_k=2)))
    self.assertTrue(np.all((tokens == best[:, 0]) | (tokens == best[:, 1])))
    first, second = np.take_along_axis(logits, best[:, :2], axis=1).T
    shares = 1 / (1 + np.exp((first - second) / 3.0))  # of the second, in each row
    five_standard_errors = 5 * math.sqrt((shares * (1 - shares)).sum())
    times = (tokens == best[:, 1]).sum()
    self.assertLess(abs(times - shares.sum()), five_standard_errors)

  def test_the_repetition_penalty_is_on_what_was_seen(self):
    logits = np.array([[2.0, 1.5, -1.0], [-1.0, -1.2, -3.0]], "f4")
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    for seen, expected in (
      ([[False] * 3] * 2, [0, 0]),
      ([[True, False, False]] * 2, [1, 1]),  # 2 / 2 < 1.5, and -1 * 2 < -1.2
      ([[True] * 3] * 2, [0, 0]),
    ):
      tokens = sample_in_a_program(random_key(0), logits, sampling, np.array(seen))
      self.assertEqual(tokens.tolist(), expected)

  @parameterized.parameters(
    ("temperature", -1.0),
    ("temperature", math.nan),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_p", math.nan),
    ("min_p", -0.1),
    ("repetition_penalty", 0.0),
    ("min_p", 1.1),
    ("no_repeat_ngram_size", -1),
  )
  def test_a_bad_setting_is_refused_by_field_and_value(self, field, value):
    with self.assertRaisesRegex(InputError, f"{field} is {value}: must be"):
      Sampling(**{field: value})


class CacheTest(chex.TestCase):
  @parameterized.parameters("float32", "bfloat16")
  def test_empty_cache(self, dtype):
    config = GPT2Config(num_layers=3, num_heads=2, embed_dim=8, dtype=dtype)
    cache = empty_cache(config, batch_size=5, num_slots=7)
    self.assertLen(cache, 3)
    chex.assert_tree_shape_prefix(cache, (2, 5, 7, 4))
    for leaf in jax.tree.leaves(cache):
      chex.assert_type(leaf, jnp.dtype(dtype))
      self.assertFalse(np.asarray(leaf).any())

  @parameterized.parameters(1, 3)
  def test_no_token_copies_it(self, batch_size):
    model, params = model_and_params()
    read = functools.partial(prefill, model, num_slots=24)
    prompts, padding = np.ones((batch_size, 5), int), np.zeros(batch_size, int)
    state = jax.eval_shape(read, params, prompts, padding)
    arguments = model, swap_heads(params), state, random_key(0), 0, CHUNK
    text = decode.lower(*arguments, sampling=GREEDY).compile().as_text()
    [body] = re.findall(r"while\(.*body=(%[\w.-]+)", text)
    lines = text.split(f"\n{body} (")[1].split("\n}")[0].splitlines()
    made = [  # what the body makes of that size
      operation
      for line in lines
      for shape, operation in re.findall(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", line)
      if math.prod(map(int, shape.split(","))) == state.cache[0].key.size
      and operation != "get-tuple-element"
    ]
    self.assertEqual(made, ["fusion"] * 4)  # keys and values of two layers, in place

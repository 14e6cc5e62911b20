"""A person and a model write one text; what was read is not read again."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import pytest

from gpt2_flax import InputError
from gpt2_flax.generation import CHUNK, generate, Sampling
from gpt2_flax.tokenizer import ByteTokenizer
from gpt2_flax.writing import conversation
from gpt2_flax.writing.conversation import Conversation
from tests.writing.small_model import model_and_params

CONTEXT_LENGTH = 64
PLAIN = Sampling(temperature=0)
PICKY = Sampling(temperature=0, repetition_penalty=1.5, no_repeat_ngram_size=2)


def begin(**settings):
  settings = dict(sampling=PLAIN, key=jax.random.key(0)) | settings
  return Conversation(*model_and_params(CONTEXT_LENGTH), ByteTokenizer(), **settings)


def expected(text, num_tokens, sampling=PLAIN):
  [new] = generate(
    *model_and_params(CONTEXT_LENGTH),
    [list(text.encode())],
    num_tokens=num_tokens,
    sampling=sampling,
    overflow="slide",
  )
  return bytes(new).decode()


class ConversationTest(chex.TestCase):
  def test_each_turn_reads_what_is_new_and_goes_on_from_all(self):
    """By rules that look back at the turns before, too."""
    talk, text, read = begin(sampling=PICKY), "", []
    real = conversation._read

    def counted(model, params, state, tokens, slot, length):
      read.append((slot, length))
      return real(model, params, state, tokens, slot, length)

    with mock.patch.object(conversation, "_read", counted):
      for line, number in (("abc", 6), ("de", 10), ("", 3), ("fghijklmn", 5)):
        talk.say(line)
        text += line
        written = "".join(talk.write(number))
        self.assertEqual(written, expected(text, number, PICKY))
        text += written
        self.assertEqual(bytes(talk.tokens).decode(), text)
    # "" was read already
    self.assertEqual(read, [(0, 3), (9, 2), (24, 9)])

  def test_goes_on_from_what_was_shown(self):
    """Not from the stop string, nor from what the loop made after it, by any rule."""
    whole = expected("abc", 30, PICKY)
    stop = whole[4:7]
    self.assertEqual(whole.find(stop), 4)
    talk = begin(stop=[stop], sampling=PICKY)
    talk.say("abc")
    self.assertEqual("".join(talk.write(30)), whole[:4])
    self.assertEqual(bytes(talk.tokens).decode(), "abc" + whole[:4])
    talk.say("x")
    before = bytes(talk.tokens).decode()
    self.assertEqual(before, "abc" + whole[:4] + "x")
    shown = "".join(talk.write(20))
    self.assertEqual(shown, expected(before, 20, PICKY).partition(stop)[0])

  def test_goes_on_from_what_was_yielded_when_the_turn_was_ended(self):
    talk = begin()
    talk.say("abc")
    pieces = talk.write(40)
    shown = next(pieces)
    pieces.close()
    self.assertLen(shown, CHUNK)
    self.assertEqual(bytes(talk.tokens).decode(), "abc" + shown)
    talk.say("de")
    self.assertEqual("".join(talk.write(5)), expected("abc" + shown + "de", 5))

  def test_so_it_does_if_some_was_held_back(self):
    whole = expected("abc", CHUNK + 5)
    shown = whole[: CHUNK - 2]
    talk = begin(stop=[whole[CHUNK - 2 : CHUNK] + "nothing that comes"])
    talk.say("abc")
    pieces = talk.write(40)
    self.assertEqual(next(pieces), shown)
    pieces.close()
    talk.say("")  # the last token is read again, for its logits
    self.assertEqual("".join(talk.write(5)), expected("abc" + shown, 5))

  def test_a_stop_token_is_no_part_of_it(self):
    whole = expected("abc", 30)
    stop = ord(whole[5])
    talk = begin(stop_ids=[stop])
    talk.say("abc")
    written = "".join(talk.write(30))
    self.assertEqual(written, whole.partition(chr(stop))[0])
    talk.say("b")
    after = expected("abc" + written + "b", 9).partition(chr(stop))[0]
    self.assertEqual("".join(talk.write(9)), after)

  def test_a_stop_string_may_cut_a_token_in_two(self):
    class Pairs(ByteTokenizer):
      """From 64 on, a token is two letters."""

      def decode(self, ids):
        return "".join(chr(i) if i < 64 else 2 * chr(i - 64) for i in ids)

    def say_pairs(logits_BV, tokens_BS, slot):
      wanted = jnp.where(slot == 1, 64 + ord("1"), 64 + ord("2"))
      return jnp.where(jnp.arange(128)[None] == wanted, 0 * logits_BV, -jnp.inf)

    talk = Conversation(
      *model_and_params(CONTEXT_LENGTH),
      Pairs(),
      key=jax.random.key(0),
      sampling=PLAIN,
      stop=["122"],
      logits_function=say_pairs,
    )
    talk.say("#")
    self.assertEqual("".join(talk.write(5)), "1")
    self.assertEqual(talk.tokens, [ord("#"), ord("1")])
    self.assertEqual(next(talk.write(1)), "122")
    self.assertEqual(talk.tokens, [ord(letter) for letter in "#1122"])

  def test_if_nothing_is_said_it_goes_on_after_what_ended_it(self):
    whole = expected("abc", 30)
    for at, number, name in ((4, 3, "stop"), (5, 1, "stop_ids")):
      stop = whole[at : at + number]
      at = whole.find(stop)
      talk = begin(**{name: [stop] if name == "stop" else [ord(stop)]})
      talk.say("abc")
      self.assertEqual("".join(talk.write(30)), whole[:at])
      talk.say("")
      rest = expected("abc" + whole[:at] + stop, 9).partition(stop)[0]
      self.assertEqual("".join(talk.write(len(rest))), stop + rest)
      now = "abc" + whole[:at] + stop + rest
      self.assertEqual(bytes(talk.tokens).decode(), now)
      talk.say("")  # that turn was not ended by it
      self.assertEqual("".join(talk.write(3)), expected(now, 3).partition(stop)[0])

  @pytest.mark.slow
  def test_a_full_context_forgets_its_older_half(self):
    talk = begin()
    talk.say("abc")
    self.assertEqual("".join(talk.write(100)), expected("abc", 100))
    # a line that fills it, and one that is longer than all of it
    for line in ("d" * 30, "e" * 90):
      talk.say(line)
      text = bytes(talk.tokens).decode()
      self.assertEqual("".join(talk.write(20)), expected(text, 20))
      self.assertLessEqual(len(talk.tokens), CONTEXT_LENGTH)

  def test_turns_draw_anew(self):
    talk = begin(sampling=Sampling(temperature=1e6))
    turns = []
    for _ in range(2):
      talk.say("a")
      turns.append("".join(talk.write(8)))
    self.assertNotEqual(*turns)

  def test_refuses_what_the_tokenizer_refuses_and_goes_on(self):
    talk = begin()
    with self.assertRaisesRegex(InputError, "the prompt is empty"):
      talk.say("")
    with self.assertRaisesRegex(InputError, "at least one token"):
      next(talk.write(3))
    talk.say("abc")
    self.assertEqual("".join(talk.write(4)), expected("abc", 4))

"""Rules on what is there already, against their definitions, row by row."""

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.rows.repeats import ban_repeated_ngrams, penalise_seen


def banned(text, size, vocab_size):
  """The tokens after which the last `size` tokens would have been there before."""
  runs = {tuple(text[at : at + size]) for at in range(len(text) - size + 1)}
  last = text[len(text) - size + 1 :] if len(text) >= size - 1 else None
  return [last is not None and (*last, token) in runs for token in range(vocab_size)]


class BanTest(chex.TestCase):
  @parameterized.parameters(1, 2, 3, 4)
  def test_ends_no_run_that_was_there(self, size):
    """Rows of 0 to 30 tokens of 3 kinds, in slots of which the last are free."""
    rng = np.random.default_rng(size)
    num_slots, slot = 36, 30
    lengths = [*range(1, 8), *rng.integers(8, 31, 40)]
    texts = [rng.integers(0, 3, length).tolist() for length in lengths]
    tokens = np.full((len(texts), num_slots), -1, np.int32)
    for row, text in zip(tokens, texts, strict=True):
      row[slot - len(text) : slot] = text
    logits = rng.normal(size=(len(texts), 3)).astype("f4")
    ban = jax.jit(ban_repeated_ngrams, static_argnums=3)
    found = np.asarray(ban(logits, jnp.array(tokens), jnp.int32(slot), size))
    expected = np.array([banned(text, size, 3) for text in texts])
    self.assertGreater(expected.sum(), 3)
    self.assertGreater((~expected).sum(), 3)
    np.testing.assert_array_equal(found, np.where(expected, -np.inf, logits))

  def test_tokens_in_slots_that_are_free_count_for_nothing(self):
    """A text that was cut leaves its tokens behind; runs do not wrap around either."""
    for last in (1, 2):
      tokens = jnp.array([[1, 2, 0, 1, 2, last]])
      found = ban_repeated_ngrams(jnp.zeros((1, 3)), tokens, 2, 2)
      self.assertEqual(found.tolist(), [[0, 0, 0]])

  def test_a_text_shorter_than_a_run_may_go_on_as_it_likes(self):
    tokens = jnp.array([[-1, -1, -1, 2, -1]])
    for size in (3, 4, 5, 6):
      found = ban_repeated_ngrams(jnp.zeros((1, 3)), tokens, 4, size)
      self.assertEqual(found.tolist(), [[0, 0, 0]])


class PenaltyTest(chex.TestCase):
  def test_makes_seen_tokens_less_likely(self):
    logits = jnp.array([[2.0, 1.5, -1.0, 0.0]])
    seen = jnp.array([[True, False, True, True]])
    found = penalise_seen(logits, seen, 2.0)
    self.assertEqual(found.tolist(), [[1.0, 1.5, -2.0, 0.0]])

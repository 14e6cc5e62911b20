"""The lesson on agreement, at its reduced size, and the phrases it asks with."""

import chex
import numpy as np

from gpt2_flax.datasets.grammar import GrammarConfig, NOUNS
from lessons import agreement


class PhrasesTest(chex.TestCase):
  def test_the_right_number_is_the_only_one_possible(self):
    language = GrammarConfig().make(48)
    for distance in agreement.PHRASES:
      for i, tokens in enumerate(agreement.phrases(language, distance, 10)):
        words = language.tokenizer.decode(tokens.tolist()).split()
        many = i % 2 == 1
        self.assertEqual(words[1] in NOUNS["they"], many)
        self.assertLen(words, 2 + distance)
        last = language.next_token_probabilities(tokens)[-1]
        possible = {language.tokenizer.token(j) for j in np.flatnonzero(last)}
        wrong, right = agreement.PLURAL, agreement.SINGULAR
        if many:
          wrong, right = right, wrong
        self.assertFalse(possible.intersection(wrong), words)
        self.assertContainsSubset(right, possible)

  def test_all_nouns_between_have_the_other_number(self):
    rng = np.random.default_rng(0)
    for distance in (4, 7, 8):
      for many in (False, True):
        words = agreement.phrase(rng, distance, many).split()[2:]
        nouns = [w for w in words if any(w in kind for kind in NOUNS.values())]
        self.assertNotEmpty(nouns)
        for noun in nouns:
          self.assertEqual(noun in NOUNS["they"], not many)

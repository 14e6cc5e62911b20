"""A small English of whole words, written by a probabilistic grammar.

    the cats that the dog near the boy sees sleep . they like themselves .

Subject and verb agree across prepositional phrases and nested relative clauses.
Pronouns agree with the subject of the sentence before, reflexives and possessives
with that of their own sentence. A person can read it, and only a model that looks far
enough back and at the right word can predict it.

The oracle is exact and knows nothing of this particular grammar: see `Automaton`.
"""

import bisect
from collections.abc import Callable
import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from gpt2_flax.datasets.dataset import require_seed, require_start_token, ToyLanguage
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer

# Who acts decides the verb's form and the pronoun: he, she, it or they.
AGREEMENTS = ("he", "she", "it", "they")
NOUNS: dict[str, tuple[str, ...]] = {
  "he": ("boy", "king", "farmer"),
  "she": ("girl", "queen", "singer"),
  "it": ("cat", "dog", "horse", "bird"),
}
NOUNS["they"] = tuple(f"{noun}s" for nouns in NOUNS.values() for noun in nouns)
NAMES = {"he": ("john", "tom"), "she": ("mary", "anna")}
DETERMINERS = {"it": ("the", "this", "every"), "they": ("the", "these", "all")}
DETERMINERS |= {"he": DETERMINERS["it"], "she": DETERMINERS["it"]}
REFLEXIVES = {"he": "himself", "she": "herself", "it": "itself", "they": "themselves"}
POSSESSIVES = {"he": "his", "she": "her", "it": "its", "they": "their"}
ADJECTIVES = ("big", "small", "old", "young", "happy")
PREPOSITIONS = ("near", "behind", "with")
INTRANSITIVE = ("sleep", "run", "sing", "wait")
TRANSITIVE = ("see", "like", "follow", "feed", "hear")

# A symbol is a word (str) or a nonterminal (tuple: its name, then its features).
Symbol = str | tuple
Production = tuple[float, tuple[Symbol, ...]]


def _one_of(words: tuple[str, ...]) -> list[Production]:
  return [(1 / len(words), (word,)) for word in words]


def _verb(stems: tuple[str, ...], who: str) -> list[Production]:
  return _one_of(stems if who == "they" else tuple(f"{stem}s" for stem in stems))


def english(symbol: tuple) -> list[Production]:
  """The grammar: what a nonterminal may become, with what probability.

  `who` is the agreement of the phrase, `depth` counts the relative clauses around it.
  """
  match symbol:
    case ("story",):
      return [
        (1 / len(AGREEMENTS), (("noun phrase", who, 0), ("told of", who)))
        for who in AGREEMENTS
      ]
    case ("told of", who):  # the rest of a sentence about `who`, and what follows it
      predicate = (("verb phrase", who, 0), ".")
      return [
        (0.5, (*predicate, ("story",))),
        (0.5, (*predicate, who, ("told of", who))),
      ]
    case ("noun phrase", who, depth):
      named = 0.2 if who in NAMES else 0.0
      clause = (0.3, 0.15, 0.0)[depth]
      core = ("core", who)
      return [
        (named, (("name", who),)),
        (0.2, (core, ("preposition",), ("any core",))),
        (clause, (core, "that", ("relative clause", who, depth + 1))),
        (0.8 - named - clause, (core,)),
      ]
    case ("relative clause", who, depth):
      return [(0.5, (("verb phrase", who, depth),))] + [
        (0.5 / len(AGREEMENTS), (("noun phrase", other, depth), ("transitive", other)))
        for other in AGREEMENTS
      ]
    case ("verb phrase", who, depth):
      return [
        (0.4, (("intransitive", who),)),
        (0.6, (("transitive", who), ("object", who, depth))),
      ]
    case ("object", who, depth):
      return [(0.15, (REFLEXIVES[who],))] + [
        share
        for other in AGREEMENTS
        for share in (
          (0.05, (POSSESSIVES[who], ("noun", other))),
          (0.1625, (("noun phrase", other, depth),)),
        )
      ]
    case ("any core",):
      return [(1 / len(AGREEMENTS), (("core", who),)) for who in AGREEMENTS]
    case ("core", who):
      return [(1.0, (("determiner", who), ("adjectives",), ("noun", who)))]
    case ("adjectives",):
      return [(0.75, ()), (0.25, (("adjective",), ("adjectives",)))]
    case ("adjective",):
      return _one_of(ADJECTIVES)
    case ("preposition",):
      return _one_of(PREPOSITIONS)
    case ("determiner", who):
      return _one_of(DETERMINERS[who])
    case ("noun", who):
      return _one_of(NOUNS[who])
    case ("name", who):
      return _one_of(NAMES[who])
    case ("intransitive", who):
      return _verb(INTRANSITIVE, who)
    case ("transitive", who):
      return _verb(TRANSITIVE, who)
  raise KeyError(symbol)


def _title(symbol: tuple) -> str:
  """A nonterminal as text: its name and its features."""
  return " ".join(map(str, symbol))


def english_words() -> tuple[str, ...]:
  """Every word the grammar can write, found by following all productions."""
  words, seen, todo = set(), set(), [("story",)]
  while todo:
    for probability, symbols in english(todo.pop()):
      for symbol in symbols if probability else ():
        if isinstance(symbol, str):
          words.add(symbol)
        elif symbol not in seen:
          seen.add(symbol)
          todo.append(symbol)
  return tuple(sorted(words))


@dataclasses.dataclass(eq=False)
class State:
  """All that a prefix tells about its continuation.

  Attributes:
    words: the words that may come next.
    probabilities: of each, summing to 1.
    cumulative: their running sum, ending at exactly 1.
    beliefs: for each word, the (stack, weight) pairs that remain after it.
    successors: for each word followed before, the state after it.
  """

  words: tuple[str, ...]
  probabilities: tuple[float, ...]
  cumulative: list[float]
  beliefs: dict[str, tuple]
  successors: dict[str, "State"] = dataclasses.field(default_factory=dict)


class Automaton:
  """The exact next-word distribution of a probabilistic context-free grammar.

  A leftmost derivation is a stack of symbols still to be written. Since several
  derivations may have led to the same words, a state is a set of stacks, each with
  its probability given those words. Writing one more word expands every stack until
  a word is on top, keeps those that agree, and renormalises: Bayes' rule, with
  nothing approximated. The grammar must not be left-recursive. States are built
  when first met; there are few, because depth is bounded and stacks soon agree.

  Source: the prefix probabilities of Stolcke (1995), "An Efficient Probabilistic
  Context-Free Parsing Algorithm that Computes Prefix Probabilities", section 4, by
  enumeration instead of an Earley chart.
  """

  def __init__(self, productions: Callable[[tuple], list[Production]], start: tuple):
    self.productions = functools.cache(productions)
    self._states: dict[tuple, State] = {}
    self.start = self._state(((((start, None)), 1.0),))

  def step(self, state: State, word: str) -> State:
    """The state after one more word; KeyError where it cannot come next."""
    if word not in state.successors:
      state.successors[word] = self._state(state.beliefs[word])
    return state.successors[word]

  def _state(self, beliefs: tuple) -> State:
    if beliefs not in self._states:
      self._states[beliefs] = self._expand(beliefs)
    return self._states[beliefs]

  def _expand(self, beliefs: tuple) -> State:
    """A stack is a linked list (top, rest), so that stacks share their tails."""
    after: dict[str, dict] = {}
    todo = list(beliefs)
    while todo:
      (top, rest), weight = todo.pop()
      if isinstance(top, str):
        stacks = after.setdefault(top, {})
        stacks[rest] = stacks.get(rest, 0.0) + weight
        continue
      for probability, symbols in self.productions(top):
        if probability:
          stack = rest
          for symbol in reversed(symbols):
            stack = (symbol, stack)
          todo.append((stack, weight * probability))

    words = tuple(sorted(after))
    masses = np.array([sum(after[word].values()) for word in words])
    probabilities = masses / masses.sum()
    cumulative = np.cumsum(probabilities)
    cumulative[-1] = 1.0
    beliefs_after = {
      word: tuple(
        # Rounding lets prefixes with equal continuations share a state. It is larger
        # than the error of the sums, and far too small to change a loss.
        (stack, round(weight / mass, 12))
        for stack, weight in sorted(after[word].items(), key=repr)
      )
      for word, mass in zip(words, masses, strict=True)
    }
    return State(
      words, tuple(probabilities.tolist()), cumulative.tolist(), beliefs_after
    )


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
  """The language itself has no settings.

  Attributes:
    seed: of the random streams that sentences are drawn from.
  """

  name: ClassVar = "grammar"
  seed: int = 0

  def __post_init__(self):
    require_seed(self.seed)

  def make(self, context_length: int) -> "Grammar":
    return Grammar(self, context_length)


class Grammar(ToyLanguage):
  """Windows of sentences of the small English above, from a story's beginning."""

  def __init__(self, config: GrammarConfig, context_length: int):
    self.context_length = context_length
    self.seed = config.seed
    self.tokenizer = WordTokenizer(english_words())
    self._automaton = Automaton(english, ("story",))
    self._ids = {word: self.tokenizer.encode(word)[0] for word in self.tokenizer.words}

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    tokens = [self.tokenizer.start_id]
    state = self._automaton.start
    for draw in rng.random(length - 1).tolist():
      word = state.words[bisect.bisect_right(state.cumulative, draw)]
      tokens.append(self._ids[word])
      state = self._automaton.step(state, word)
    return np.array(tokens, np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`; after a word that cannot come next, all rows are zero."""
    require_start_token(tokens, self.tokenizer.start_id)
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    state = self._automaton.start
    for i in range(len(tokens)):
      if i > 0:
        word = self.tokenizer.token(int(tokens[i]))
        if word not in state.beliefs:
          break
        state = self._automaton.step(state, word)
      rows[i, [self._ids[word] for word in state.words]] = state.probabilities
    return rows

  def process(self) -> dict[str, Any]:
    """See `Dataset`: productions by symbol, words as their token ids."""
    start = ("story",)
    productions: dict[str, list] = {}
    todo: list[tuple] = [start]
    while todo:
      symbol = todo.pop()
      if _title(symbol) in productions:
        continue
      possible = [one for one in english(symbol) if one[0]]
      productions[_title(symbol)] = [
        [p, [self._ids[s] if isinstance(s, str) else _title(s) for s in symbols]]
        for p, symbols in possible
      ]
      todo += [s for _, symbols in possible for s in symbols if not isinstance(s, str)]
    return {"kind": "grammar", "start": _title(start), "productions": productions}

  def is_grammatical(self, text: str) -> bool:
    """Whether the grammar can write these words from a story's beginning."""
    try:
      tokens = np.array([self.tokenizer.start_id, *self.tokenizer.encode(text)])
    except InputError:
      return False
    # rows stay zero from the first impossible word on
    return bool(self.next_token_probabilities(tokens)[-1].any())

"""The exact next-word distribution of a probabilistic grammar, word by word."""

from array import array
import collections
from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import numpy as np

# A symbol is a word (str) or a nonterminal (tuple: its name, then its features).
Symbol = str | tuple
Production = tuple[float, tuple[Symbol, ...]]

# A stack of symbols as a linked list (top, rest), so that stacks share their tails.
# Symbols are numbers here, so that stacks have an order.
Stack = tuple
Beliefs = tuple[tuple[Stack, float], ...]

MAX_STATES = 50_000  # kept; then all are forgotten, and built again when met


def reachable(
  productions: Callable[[tuple], list[Production]], start: tuple
) -> dict[tuple, list[Production]]:
  """The possible productions of each nonterminal that `start` may lead to."""
  found: dict[tuple, list[Production]] = {}
  todo = [start]
  while todo:
    symbol = todo.pop()
    if symbol not in found:
      found[symbol] = [one for one in productions(symbol) if one[0]]
      todo += [s for _, new in found[symbol] for s in new if isinstance(s, tuple)]
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
  """The words of some kinds, in the order of the alphabet.

  Attributes:
    words: that may come next.
    kinds: int [N], for each the place of its kind among those of the state.
    shares: float64 [N], of each within its kind.
  """

  words: tuple[str, ...]
  kinds: np.ndarray
  shares: np.ndarray


@dataclasses.dataclass(eq=False)
class State:
  """All that a prefix tells about its continuation.

  Attributes:
    choice: the words that may come next.
    masses: float64 [K], the probability of each kind of word, summing to 1.
    after: for each kind the state after it; until it is followed for the first time,
      the stacks that remain, and their weights.
  """

  choice: Choice
  masses: np.ndarray
  after: dict[int, Any]

  @property
  def words(self) -> tuple[str, ...]:
    """The words that may come next, in the order of the alphabet."""
    return self.choice.words

  @property
  def probabilities(self) -> np.ndarray:
    """Of each word, summing to 1."""
    return self.masses[self.choice.kinds] * self.choice.shares

  @functools.cached_property
  def cumulative(self) -> array:
    """The running sum of the probabilities, ending at exactly 1."""
    sums = np.cumsum(self.probabilities)
    sums[-1] = 1.0
    return array("d", sums.tobytes())


class Automaton:
  """The exact next-word distribution of a probabilistic context-free grammar.

  A leftmost derivation is a stack of symbols still to be written. Since several
  derivations may have led to the same words, a state is a set of stacks, each with
  its probability given those words. Writing one more word expands every stack until
  a word is on top, keeps those that agree, and renormalises: Bayes' rule, with
  nothing approximated. The grammar must not be left-recursive, and its symbols must
  be finitely many. States are built when first met.

  Words that tell the same are of one kind, as "boy" and "king" are: the symbols that
  become one word become one or the other in the same proportion. After either the same
  stacks remain. So the work is that of the kinds, however many words there are.

  Source: the prefix probabilities of Stolcke (1995), "An Efficient Probabilistic
  Context-Free Parsing Algorithm that Computes Prefix Probabilities", section 4, by
  enumeration instead of an Earley chart.

  Attributes:
    words: all that the grammar can write, in the order of the alphabet.
    start: the state before the first word.
    states: those that are kept, by what they believe.
  """

  def __init__(
    self,
    productions: Callable[[tuple], list[Production]],
    start: tuple,
    max_states: int = MAX_STATES,
  ):
    possible = reachable(productions, start)
    kinds, totals = _kinds(possible)
    self.words = tuple(sorted(totals))
    self._kind = {word: kind for kind, words in enumerate(kinds) for word in words}
    self._share = {}
    for words in kinds:
      whole = sum(totals[word] for word in words)
      self._share |= {word: totals[word] / whole for word in words}
    self._kinds = kinds

    numbers: dict[Symbol, int] = {**self._kind}
    numbers |= {symbol: len(kinds) + i for i, symbol in enumerate(possible)}
    self._productions: dict[int, list] = {}
    for symbol, becomes in possible.items():
      merged: dict[tuple[int, ...], float] = collections.defaultdict(float)
      for probability, symbols in becomes:
        merged[tuple(numbers[s] for s in reversed(symbols))] += probability
      self._productions[numbers[symbol]] = list(merged.items())

    self._max_states = max_states
    self._first: Beliefs = (((numbers[start], ()), 1.0),)
    self._forget()

  def step(self, state: State, word: str) -> State:
    """The state after one more word; KeyError where it cannot come next."""
    kind = self._kind[word]
    following = state.after[kind]
    if not isinstance(following, State):
      # several threads may do so at once: they find the same
      following = state.after[kind] = self._state(_beliefs(following))
    return following

  def _forget(self) -> None:
    self.states: dict[Beliefs, State] = {}
    self._choices: dict[tuple[int, ...], Choice] = {}
    self.start = self._state(self._first)

  def _state(self, beliefs: Beliefs) -> State:
    state = self.states.get(beliefs)
    if state is None:
      if len(self.states) >= self._max_states:
        self._forget()
      state = self.states[beliefs] = self._expand(beliefs)
    return state

  def _expand(self, beliefs: Beliefs) -> State:
    after: dict[int, dict[Stack, float]] = {}
    num_kinds = len(self._kinds)
    todo = list(beliefs)
    while todo:
      (top, rest), weight = todo.pop()
      if top < num_kinds:
        stacks = after.setdefault(top, {})
        stacks[rest] = stacks.get(rest, 0.0) + weight
        continue
      for symbols, probability in self._productions[top]:
        stack = rest
        for symbol in symbols:
          stack = (symbol, stack)
        todo.append((stack, weight * probability))
    kinds = tuple(sorted(after))
    masses = np.array([sum(after[kind].values()) for kind in kinds])
    return State(self._choice(kinds), masses / masses.sum(), after)

  def _choice(self, kinds: tuple[int, ...]) -> Choice:
    choice = self._choices.get(kinds)
    if choice is None:
      words = sorted(
        (word, i) for i, kind in enumerate(kinds) for word in self._kinds[kind]
      )
      choice = self._choices[kinds] = Choice(
        tuple(word for word, _ in words),
        np.array([i for _, i in words]),
        np.array([self._share[word] for word, _ in words]),
      )
    return choice


def _kinds(
  possible: dict[tuple, list[Production]],
) -> tuple[list[list[str]], dict[str, float]]:
  """Words that tell the same, together; and how much each is written by all symbols."""
  written: dict[str, dict] = collections.defaultdict(dict)
  for symbol, becomes in possible.items():
    one_word = all(len(new) == 1 and isinstance(new[0], str) for _, new in becomes)
    for probability, symbols in becomes:
      for word in symbols:
        if isinstance(word, str):
          # a word among other symbols tells what no other word does
          by = symbol if one_word else word
          share = probability if one_word else 1.0
          written[word][by] = written[word].get(by, 0.0) + share
  totals = {word: sum(shares.values()) for word, shares in written.items()}
  kinds: dict[tuple, list[str]] = collections.defaultdict(list)
  for word, shares in written.items():
    proportions = [(by, round(s / totals[word], 12)) for by, s in shares.items()]
    kinds[tuple(proportions)].append(word)
  return list(kinds.values()), totals


def _beliefs(stacks: dict[Stack, float]) -> Beliefs:
  """The stacks in order, with weights that sum to 1.

  Rounding lets prefixes with equal continuations share a state. It is larger than the
  error of the sums, and far too small to change a loss: 40 bits are kept of 53.
  """
  ordered = sorted(stacks)
  weights = np.array([stacks[stack] for stack in ordered])
  mantissas, exponents = np.frexp(weights / weights.sum())
  rounded = np.ldexp(np.round(np.ldexp(mantissas, 40)), exponents - 40)
  return tuple(zip(ordered, rounded.tolist(), strict=True))

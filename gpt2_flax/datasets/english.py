"""The words and the productions of a small English, and of harder ones like it."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools

from gpt2_flax.datasets.automaton import Production
from gpt2_flax.errors import InputError

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
VERB_ENDINGS = {"he": "s", "she": "s", "it": "s", "they": ""}
ADJECTIVES = ("big", "small", "old", "young", "happy")
PREPOSITIONS = ("near", "behind", "with")
INTRANSITIVE = ("sleep", "run", "sing", "wait")
TRANSITIVE = ("see", "like", "follow", "feed", "hear")

SYLLABLES = tuple(a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou"))
NEW_NOUNS = 3  # of a class that is made up, times `vocabulary`
KEPT_TOPIC = 0.9  # how likely the next sentence has the topic of the last
MAX_VOCABULARY, MAX_CLASSES, MAX_DEPTH, MAX_ZIPF = 100, 20, 8, 4.0


def made_up(number: int) -> str:
  """A word of its own for each number; all end in a vowel, as in "basu", "vetuko"."""
  length = 2
  while number >= len(SYLLABLES) ** length:
    length += 1
  # a prime that shares no factor with their count: neighbours do not look alike
  number = number * 2027 % len(SYLLABLES) ** length
  places = [number // len(SYLLABLES) ** i % len(SYLLABLES) for i in range(length)]
  return "".join(SYLLABLES[place] for place in places)


def _require(
  field: str, value: float, least: float, most: float, why: str = ""
) -> None:
  if not least <= value <= most:
    raise InputError(f"data.{field} is {value}: must be {least} to {most}{why}")


def _extended(
  words: tuple[str, ...], times: int, new: Iterator[str]
) -> tuple[str, ...]:
  """A list of words, so many times as long."""
  return (*words, *itertools.islice(new, len(words) * (times - 1)))


def _evenly(words: tuple[str, ...]) -> list[Production]:
  return [(1 / len(words), (word,)) for word in words]


@dataclasses.dataclass(frozen=True)
class English:
  """A probabilistic grammar: call it with a nonterminal for its productions.

  With the default settings it is the toy's small English. Words beyond the toy's are
  made up of syllables. A class beyond the first four is one like "it", with nouns,
  determiners, a pronoun and a form of each verb that are its own.

  The open words are nouns, names, adjectives and verbs. Each has one topic, in all its
  forms.

  Attributes:
    vocabulary: there are so many times as many open words as in the toy.
    num_classes: how many classes must agree: he, she, it, they, and made-up ones.
    max_depth: how many relative clauses may be around a word. Of the noun phrases that
      are inside of n, 0.3 / 2**n are followed by one more.
    num_topics: the topics that the open words are dealt out among. A story keeps its
      topic from sentence to sentence with probability 0.9, and draws anew otherwise.
    zipf: of the words that may stand in a place, the r-th comes with a probability
      proportional to r**-zipf, if they are open; 0 is even odds.

  Raises:
    InputError: a setting is not allowed.
  """

  vocabulary: int = 1
  num_classes: int = len(AGREEMENTS)
  max_depth: int = 2
  num_topics: int = 1
  zipf: float = 0.0

  def __post_init__(self):
    _require("vocabulary", self.vocabulary, 1, MAX_VOCABULARY)
    _require("num_classes", self.num_classes, len(AGREEMENTS), MAX_CLASSES)
    _require("max_depth", self.max_depth, 0, MAX_DEPTH)
    names = min(map(len, NAMES.values()))  # the shortest of the open lists
    why = f", which is {names} * data.vocabulary"
    _require("num_topics", self.num_topics, 1, names * self.vocabulary, why)
    _require("zipf", self.zipf, 0.0, MAX_ZIPF)

  @functools.cached_property
  def _new_roots(self) -> dict[str, str]:
    """The syllable that all of a made-up class's own words have, by its pronoun."""
    count = self.num_classes - len(AGREEMENTS)
    roots = [SYLLABLES[i * 23 % len(SYLLABLES)] for i in range(count)]
    return {f"{root}r": root for root in roots}

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The classes that agree, each named by its pronoun."""
    return (*AGREEMENTS, *self._new_roots)

  @functools.cached_property
  def _open(self) -> dict[tuple, tuple[str, ...]]:
    """The open words: stems of verbs, and no plurals."""
    new = (made_up(number) for number in itertools.count())
    lists = {("noun", who): NOUNS[who] for who in AGREEMENTS if who != "they"}
    lists |= {("name", who): names for who, names in NAMES.items()}
    lists |= {("adjective",): ADJECTIVES}
    lists |= {("intransitive",): INTRANSITIVE, ("transitive",): TRANSITIVE}
    longer = {
      name: _extended(words, self.vocabulary, new) for name, words in lists.items()
    }
    for who in self._new_roots:
      count = NEW_NOUNS * self.vocabulary
      longer["noun", who] = tuple(itertools.islice(new, count))
    return longer

  def _about(self, name: tuple, about: Sequence[int]) -> tuple[str, ...]:
    """The open words of a topic; of all if there are no topics."""
    first = about[0] if about else 0
    return self._open[name][first :: self.num_topics]

  def _topics(self, last: Sequence[int]) -> list[tuple[float, tuple[int, ...]]]:
    """What a sentence may be about, with what probability; `last` is () at first."""
    if self.num_topics == 1:
      return [(1.0, ())]
    even = (1.0 - KEPT_TOPIC if last else 1.0) / self.num_topics
    return [
      (even + (KEPT_TOPIC if topic in last else 0.0), (topic,))
      for topic in range(self.num_topics)
    ]

  def _one_of(self, words: tuple[str, ...]) -> list[Production]:
    """One of the open words."""
    shares = [rank**-self.zipf for rank in range(1, len(words) + 1)]
    return [(s / sum(shares), (word,)) for s, word in zip(shares, words, strict=True)]

  def _own(self, words: dict[str, str], who: str, ending: str) -> str:
    """The word of a class: one of these, or made up."""
    return words[who] if who in words else f"{self._new_roots[who]}{ending}"

  def __call__(self, symbol: tuple) -> list[Production]:
    """What a nonterminal may become, with what probability.

    `who` is the agreement of the phrase, `depth` counts the relative clauses around it.
    `about` is (its topic,), or () in a language of one topic.
    """
    classes = self.classes
    match symbol:
      case ("story", *about):
        return [
          (
            share / len(classes),
            (("noun phrase", who, 0, *new), ("told of", who, *new)),
          )
          for share, new in self._topics(about)
          for who in classes
        ]
      case ("told of", who, *about):  # the rest of a sentence, and what follows it
        predicate = (("verb phrase", who, 0, *about), ".")
        on = "still of" if about else "told of"
        return [
          (0.5, (*predicate, ("story", *about))),
          (0.5, (*predicate, who, (on, who, *about))),
        ]
      case ("still of", who, *about):
        return [
          (share, (("told of", who, *new),)) for share, new in self._topics(about)
        ]
      case ("noun phrase", who, depth, *about):
        named = 0.2 if who in NAMES else 0.0
        clause = 0.3 / 2**depth if depth < self.max_depth else 0.0
        core = ("core", who, *about)
        return [
          (named, (("name", who, *about),)),
          (0.2, (core, ("preposition",), ("any core", *about))),
          (clause, (core, "that", ("relative clause", who, depth + 1, *about))),
          (0.8 - named - clause, (core,)),
        ]
      case ("relative clause", who, depth, *about):
        return [(0.5, (("verb phrase", who, depth, *about),))] + [
          (
            0.5 / len(classes),
            (("noun phrase", other, depth, *about), ("transitive", other, *about)),
          )
          for other in classes
        ]
      case ("verb phrase", who, depth, *about):
        return [
          (0.4, (("intransitive", who, *about),)),
          (0.6, (("transitive", who, *about), ("object", who, depth, *about))),
        ]
      case ("object", who, depth, *about):
        return [(0.15, (self._own(REFLEXIVES, who, "rself"),))] + [
          share
          for other in classes
          for share in (
            (
              0.2 / len(classes),
              (self._own(POSSESSIVES, who, "s"), ("noun", other, *about)),
            ),
            (0.65 / len(classes), (("noun phrase", other, depth, *about),)),
          )
        ]
      case ("any core", *about):
        return [(1 / len(classes), (("core", who, *about),)) for who in classes]
      case ("core", who, *about):
        determiner, adjectives = ("determiner", who), ("adjectives", *about)
        return [(1.0, (determiner, adjectives, ("noun", who, *about)))]
      case ("adjectives", *about):
        return [(0.75, ()), (0.25, (("adjective", *about), ("adjectives", *about)))]
      case ("adjective", *about):
        return self._one_of(self._about(("adjective",), about))
      case ("preposition",):
        return _evenly(PREPOSITIONS)
      case ("determiner", who):
        root = self._new_roots.get(who)
        return _evenly(("the", f"{root}l", f"{root}t") if root else DETERMINERS[who])
      case ("noun", "they", *about):
        nouns = [self._about(("noun", one), about) for one in NOUNS if one != "they"]
        return self._one_of(tuple(f"{noun}s" for one in nouns for noun in one))
      case ("noun" | "name" as name, who, *about):
        return self._one_of(self._about((name, who), about))
      case ("intransitive" | "transitive" as name, who, *about):
        ending = self._own(VERB_ENDINGS, who, "n")
        stems = self._about((name,), about)
        return self._one_of(tuple(f"{stem}{ending}" for stem in stems))
    raise KeyError(symbol)

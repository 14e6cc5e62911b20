"""The table of mutants still fits the code; `python -m tests.mutants` tries them."""

import re

import chex

from tests.mutants.__main__ import read_mutants, ROOT


def is_there(test: str) -> bool:
  """A file, or a class or a function in it, to which one of several cases adds."""
  path, *names = test.split("::")
  if not names:
    return (ROOT / path).exists()
  defined = tuple(re.findall(r"(?:class|def) (\w+)", (ROOT / path).read_text("utf-8")))
  return all(name.startswith(defined) for name in names)


class MutantsTest(chex.TestCase):
  def test_what_each_breaks_is_there_once(self):
    mutants = read_mutants()
    self.assertGreater(len(mutants), 900)
    stale = [
      (mutant.file, mutant.before)
      for mutant in mutants
      if (ROOT / mutant.file).read_text("utf-8").count(mutant.before) != 1
      or mutant.before == mutant.after
    ]
    self.assertEqual(stale, [])

  def test_so_is_what_must_notice_it(self):
    named = {test for mutant in read_mutants() for test in mutant.noticed_by}
    self.assertEqual([test for test in sorted(named) if not is_there(test)], [])

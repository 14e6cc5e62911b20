"""Text from files cannot control a terminal, and errors stay one line."""

from absl.testing import parameterized
import chex

from gpt2_flax import terminal
from gpt2_flax.errors import InputError, nearest, RunError, unknown_name


class TerminalTest(chex.TestCase):
  @parameterized.parameters(
    ("naïve 日本 🙂", "naïve 日本 🙂"),
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    ("a\nb\r\tc", r"a\nb\r\tc"),
    ("\x9b31m\x7f", r"\x9b31m\x7f"),
    ("right\u202eto left", r"right\u202eto left"),
    ("\u2028\udcff\0", r"\u2028\udcff\x00"),
  )
  def test_one_line_shows_what_cannot_be_seen(self, text, shown):
    self.assertEqual(terminal.one_line(text), shown)

  def test_one_line_has_both_ends_of_a_long_text(self):
    line = terminal.one_line("begin" + "x" * 10**6 + "end")
    self.assertLess(len(line), terminal.MOST_CHARACTERS + 10)
    self.assertStartsWith(line, "beginx")
    self.assertEndsWith(line, "xend")

  def test_lines_stay_lines(self):
    text = "one\n\ttwo\r\x1b[2J\x00\x85 \u202e日"
    self.assertEqual(terminal.lines(text), "one\n\ttwo\\r\\x1b[2J\\x00\\x85 \u202e日")

  @parameterized.parameters(InputError, RunError)
  def test_errors_are_one_line(self, error):
    self.assertEqual(str(error("file\n\x1b[2J: bad")), r"file\n\x1b[2J: bad")

  def test_a_long_unknown_name_is_not_compared_with_a_million(self):
    error = unknown_name("word", "x" * 10**6, [str(i) for i in range(10**4)])
    self.assertIn("0, 1, 10, 100", str(error)[-1000:])

  @parameterized.parameters(
    ("The", "the"), ("teh", "the"), ("SLEEP", "sleep"), ("x", None)
  )
  def test_the_nearest_name_differs_in_case_only_if_there_is_one(self, name, expected):
    self.assertEqual(nearest(name, ["he", "she", "sleep", "the"]), expected)

  def test_a_hundred_names_are_listed_and_the_others_counted(self):
    words = [f"word{i:04}" for i in range(2000)]
    self.assertEndsWith(str(unknown_name("word", "?", words[:100])), ", word0099")
    said = str(unknown_name("word", "?", words))
    self.assertEndsWith(said, ", word0099, ... (2,000 in all)")

  def test_what_was_meant_may_be_more_than_one(self):
    said = str(unknown_name("flag", "--c", ["--a"], ["--d", "--e"]))
    self.assertEqual(
      said, "unknown flag '--c': did you mean '--d' or '--e'? allowed: --a"
    )

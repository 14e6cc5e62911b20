"""What `sample.py` writes: stop strings, files of prompts, beams."""

import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex

from gpt2_flax import InputError, pretrained
from gpt2_flax.doors.prompts import read_prompts
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.writing.texts import complete_by_beams
from tests import forked
from tests.writing.small_model import LETTERS, model_and_params

CONTEXT_LENGTH = 40


def call(*flags, stdin=""):
  return forked.finish(forked.start("sample.py", *flags), stdin)


class SampleTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.model, cls.params = model_and_params(CONTEXT_LENGTH)
    pretrained.save(cls.folder / "model", cls.model, cls.params, LETTERS)
    cls.flag = f"--pretrained={cls.folder / 'model'}"

  def write(self, *flags, stdin=""):
    done = call(self.flag, *flags, stdin=stdin)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(done.stderr, r"^\d+ tokens in .* tokens/s\n$")
    return done.stdout

  def answers(self, *flags, stdin=""):
    return [json.loads(line) for line in self.write(*flags, stdin=stdin).splitlines()]

  def file(self, name, content):
    path = self.folder / name
    path.write_bytes(content.encode())
    return f"--prompts={path}"

  def test_ends_before_the_first_of_its_stop_strings(self):
    flags = ("--prompt=abc", "--seed=3", "--num_tokens=30")
    whole = self.write(*flags).removesuffix("\n").removeprefix("abc")
    self.assertLen(whole, 30)
    one, other = whole[17:22], whole[24:26]
    self.assertGreater(whole.find(other), whole.find(one))
    stopped = self.write(*flags, f"--stop={other}", f"--stop={one}", "--stop=not there")
    self.assertEqual(stopped, "abc" + whole.partition(one)[0] + "\n")

  def test_a_file_of_prompts_gives_a_json_line_each(self):
    prompts = ["abc", "d", "e" * (CONTEXT_LENGTH - 4), " f\tg"]
    lines = self.file("lines.txt", "abc\r\n\nd\n" + "\n".join(prompts[2:]))
    flags = ("--temperature=0", "--num_tokens=12")
    found = self.answers(lines, *flags, "--batch_size=3")
    self.assertEqual([answer["prompt"] for answer in found], prompts)
    alone = [
      self.write(f"--prompt={prompt}", *flags).removeprefix(prompt).removesuffix("\n")
      for prompt in (prompts[0], prompts[3])
    ]
    self.assertEqual([found[0]["completion"], found[3]["completion"]], alone)
    self.assertLen(found[2]["completion"], 4)  # its context is full
    self.assertEqual({answer["finish_reason"] for answer in found}, {"length"})

    objects = [{"id": n, "prompt": prompt} for n, prompt in enumerate(prompts)]
    content = "".join(json.dumps(x) + "\n" for x in objects)
    again = self.answers("--prompts=-", *flags, stdin=content)
    expected = [x | answer for x, answer in zip(objects, found, strict=True)]
    self.assertEqual(again, expected)

  def test_several_samples_of_each_prompt(self):
    """Of one that is there twice, too: each batch draws anew."""
    lines = self.file("two.txt", "abc\nabc\n")
    flags = (lines, "--num_tokens=5", "--num_samples=3", "--batch_size=1")
    found = self.answers(*flags)
    self.assertEqual([x["prompt"] for x in found], ["abc"] * 6)
    self.assertLen({x["completion"] for x in found}, 6)
    self.assertEqual(self.answers(*flags), found)
    self.assertNotEqual(self.answers(*flags, "--seed=1"), found)

  def test_stop_strings_end_each_by_itself(self):
    lines = self.file("two.txt", "abc\nd\n")
    flags = (lines, "--num_tokens=20", "--temperature=0")
    whole = [x["completion"] for x in self.answers(*flags)]
    stop = whole[0][3:6]
    self.assertNotIn(stop, whole[1])
    first, second = self.answers(*flags, f"--stop={stop}")
    self.assertEqual(first["completion"], whole[0].partition(stop)[0])
    self.assertEqual(first["finish_reason"], "stop")
    self.assertEqual(
      (second["completion"], second["finish_reason"]), (whole[1], "length")
    )

  def test_beams(self):
    settings = dict(
      num_tokens=6, num_beams=3, length_penalty=0.5, no_repeat_ngram_size=1
    )
    flags = [f"--{name}={value}" for name, value in settings.items()]
    prompts = ["abc", "d"]
    expected = complete_by_beams(self.model, self.params, LETTERS, prompts, **settings)
    found = self.write(*flags, "--prompt=abc", "--num_samples=2")
    texts = ["abc" + completion.text for completion in expected[0][:2]]
    self.assertEqual(found, "\n---\n".join(texts) + "\n")
    for text in texts:
      self.assertLen(set(text), len(text))
    answers = self.answers(*flags, self.file("two.txt", "abc\nd\n"))
    best = [completions[0].text for completions in expected]
    self.assertEqual([x["completion"] for x in answers], best)

  @parameterized.parameters(
    ("a.txt", f"abc\n\n{'d' * 40}\n", r"a\.txt, line 3 has 40 tokens: must have at m"),
    ("a.txt", "\n \n", r"a\.txt has no prompt"),
    ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', r"a\.jsonl, line 2 is not JSON"),
    ("a.jsonl", '\n{"text": "a"}\n', r'a\.jsonl, line 2 has no text "prompt"'),
    ("a.jsonl", '{"prompt": ["a"]}\n', r'a\.jsonl, line 1 has no text "prompt"'),
    ("a.jsonl", '{"prompt": ""}\n', r"a\.jsonl, line 1: the prompt is empty"),
    ("a.jsonl", '{"prompt": "a", "x": NaN}\n', r"a\.jsonl, line 1: .* not JSON"),
  )
  def test_a_bad_line_is_named_and_nothing_is_written(self, name, content, message):
    bad = call(self.flag, self.file(name, content))
    self.assertEqual(bad.returncode, 2, bad.stderr)
    self.assertRegex(bad.stderr, rf"^error: --prompts: .*{message}.*\n$")
    self.assertEqual(bad.stdout, "")

  def test_so_is_a_prompt_that_the_tokenizer_cannot_write(self):
    (self.folder / "words.txt").write_text("a b\n\na c\n")
    with self.assertRaisesRegex(InputError, "words.txt, line 3: unknown word 'c'"):
      read_prompts(str(self.folder / "words.txt"), WordTokenizer(["a", "b"]), 9)

  @parameterized.parameters(
    (["--prompts=no.txt"], "--prompts: no.txt cannot be read"),
    (["--prompts=x", "--prompt=a"], "--prompt and --prompts: give one of them"),
    (["--num_tokens", "a=b"], "--num_tokens=a=b: must be an integer\n"),
    (["--temperature=hot"], "--temperature=hot: must be a number\n"),
    (["--batch_size=0"], "--batch_size=0: must be at least 1"),
    (["--num_beams=0"], "--num_beams=0: must be at least 1"),
    (["--num_beams=2", "--top_k=3"], "--top_k: with --num_beams nothing is drawn"),
    (["--num_beams=2", "--overflow=slide"], "--overflow=slide: must be stop"),
    (["--num_beams=2", "--num_samples=3"], "--num_samples=3: must be at most"),
    (["--num_beams=2", "--prompt=a", "--stop=ab"], "stop is 'ab', 2 tokens"),
    (["--length_penalty=2"], "--length_penalty: only beams have one"),
    (["--prompt=a", "--stop="], "stop is '': must have at least one character"),
  )
  def test_bad_flags_give_one_line(self, flags, message):
    bad = call(self.flag, *flags)
    self.assertEqual(bad.returncode, 2, bad.stderr)
    self.assertStartsWith(bad.stderr, f"error: {message}")
    self.assertEqual(bad.stderr.count("\n"), 1)
    self.assertEqual(bad.stdout, "")

"""Answers are what is learned, each line by itself, and wrong lines are named."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import numpy as np

from gpt2_flax.datasets import completions
from gpt2_flax.datasets.completions import CompletionsConfig
from gpt2_flax.datasets.pipeline import train_batches, validation_windows
from gpt2_flax.datasets.text import TextConfig
from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.tokenizer import BPETokenizer, tokenizer_json, WordTokenizer
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.transformer import GPT2
from tests.close import assert_close
from tests.reference import reference_logits

LINES = [
  (f"What is {i} + {i}?", f" It is {'so ' * (i % 4)}{i + i}.") for i in range(30)
]


class CompletionsTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(
      mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder / "cache"))
    )

  def write(self, lines=LINES, name="lines.jsonl"):
    texts = (json.dumps({"id": 1, "prompt": p, "completion": c}) for p, c in lines)
    (self.folder / name).write_text("\n".join(texts) + "\n")
    return str(self.folder / name)

  def make(self, context_length=48, lines=LINES, **fields):
    return CompletionsConfig(self.write(lines), **fields).make(context_length)

  def read(self, dataset, split):
    """(inputs, targets) of each document, as the batches have them."""
    found = []
    for index in range(dataset.num_windows(split)):
      batch = dataset.batch(dataset.window(split, index)[None])
      for array in batch.values():
        self.assertEqual((array.shape, array.dtype), ((1, 48), np.int32))
      inputs, targets, documents = (
        batch[name][0] for name in ("inputs", "targets", "documents")
      )
      borders = np.flatnonzero(np.diff(documents)) + 1
      parts = zip(*(np.split(x, borders) for x in (inputs, targets)), strict=True)
      for part in parts:
        if (part[1] >= 0).any():  # else it is what was left of the row
          found.append(tuple(x.tolist() for x in part))
        else:
          self.assertEqual(part[0].any(), False)
    return sorted(found)

  def expected(self, lines, tokenizer):
    """By hand: (inputs, targets) of each line."""
    parts = []
    for prompt, completion in lines:
      end = [] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]
      start = [] if tokenizer.start_id is None else [tokenizer.start_id]
      begin = start + tokenizer.encode(prompt)
      answer = tokenizer.encode(completion) + end
      parts.append(([*begin, *answer][:-1], [-1] * (len(begin) - 1) + answer))
    return sorted(parts)

  @parameterized.parameters("bpe", "char", "byte")
  def test_each_line_is_there_once_and_only_its_answer_counts(self, tokenizer):
    dataset = self.make(tokenizer=tokenizer, bpe_vocab_size=300)
    end = dataset.tokenizer.end_of_text_id
    self.assertEqual(end is None, tokenizer != "bpe")
    for split, lines in (("train", LINES[:27]), ("validation", LINES[27:])):
      expected = self.expected(lines, dataset.tokenizer)
      self.assertEqual(self.read(dataset, split), expected)
    if tokenizer == "bpe":
      self.assertLess(dataset.num_windows("train"), 27 // 2)  # lines share rows

  def test_files_of_their_own_for_validation(self):
    (self.folder / "more").mkdir()
    self.write(LINES[3:8], "more/b.jsonl")
    self.write(LINES[:3], "more/a.jsonl")
    self.write(LINES[8:9], "more/a.txt")
    dataset = self.make(validation_path=str(self.folder / "more"), tokenizer="char")
    for split, lines in (("train", LINES), ("validation", LINES[:8])):
      self.assertEqual(
        self.read(dataset, split), self.expected(lines, dataset.tokenizer)
      )

  def test_a_start_token_comes_first(self):
    words = WordTokenizer(("to", "be", "or", "not"))
    (self.folder / "tokenizer.json").write_text(tokenizer_json(words))
    lines = [("to be", "or not"), ("or", "not"), ("", "be")]
    dataset = self.make(
      lines=lines, tokenizer=str(self.folder), validation_fraction=0.4
    )
    found = self.read(dataset, "train") + self.read(dataset, "validation")
    self.assertEqual(sorted(found), self.expected(lines, words))

  def test_without_a_prompt_an_answer_follows_the_end_of_another_text(self):
    dataset = self.make(lines=[("", " yes")] * 2, validation_fraction=0.5)
    end, answer = dataset.tokenizer.end_of_text_id, dataset.tokenizer.encode(" yes")
    expected = [([end, *answer], [*answer, end])]
    self.assertEqual(self.read(dataset, "train"), expected)

  def test_the_loss_is_that_of_each_line_alone(self):
    dataset = self.make(tokenizer="char", validation_fraction=0.2)
    windows = validation_windows(dataset, 0)
    batch = dataset.batch(windows)
    self.assertGreater(batch["documents"].max(), 0)
    size = dataset.tokenizer.vocab_size
    shape = dict(num_layers=1, num_heads=2, embed_dim=8, positional_encoding="learned")
    model = GPT2(GPT2Config(size, 48, **shape))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch["inputs"]))
    params = jax.tree.map(lambda x: 5 * np.array(x), params)
    total, count = jax.jit(lambda *args: summed_loss(model, *args))(params, batch)
    expected, num_targets = 0.0, 0
    for inputs, targets in self.expected(LINES[24:], dataset.tokenizer):
      logits = reference_logits(params, np.array([inputs]), model.config)[0]
      for row, target in zip(logits, targets, strict=True):
        if target >= 0:
          expected += np.log(np.exp(row).sum()) - row[target]
          num_targets += 1
    self.assertEqual(int(count), num_targets)
    assert_close(total, expected, dtype=np.float32)

  def test_made_once_the_same_each_time_and_gone_on_from_anywhere(self):
    one = self.make(tokenizer="bpe", bpe_vocab_size=300)
    with mock.patch.object(completions._Source, "_write", side_effect=AssertionError):
      other = self.make(tokenizer="bpe", bpe_vocab_size=300)
      self.make(context_length=40, tokenizer="bpe", bpe_vocab_size=300)
    batches, again = (train_batches(d, 2, seed=3) for d in (one, other))
    first = [next(batches) for _ in range(4)]
    position = batches.get_state()
    later = [next(batches) for _ in range(9)]  # the next epoch too
    self.assertLess(one.num_windows("train"), 26)
    chex.assert_trees_all_equal(first, [next(again) for _ in range(4)])
    again.set_state(position)
    chex.assert_trees_all_equal(later, [next(again) for _ in range(9)])

  def test_the_same_file_as_text_is_another_cache(self):
    dataset = self.make(tokenizer="byte")
    (self.folder / "tokenizer.json").write_text(tokenizer_json(dataset.tokenizer))
    TextConfig(self.write(), str(self.folder)).make(8)
    again = self.make(tokenizer=str(self.folder))
    self.assertEqual(self.read(again, "train"), self.read(dataset, "train"))

  def test_a_sample_begins_with_the_first_prompt_of_validation(self):
    dataset = self.make(tokenizer="char")
    self.assertEqual(dataset.tokenizer.decode(dataset.opening()), LINES[27][0])

  def test_a_long_line_is_cut_at_the_right(self):
    lines = [("ab", "cd" * 40), ("ab", "c" * 47), ("ab", "cd")]
    with mock.patch("sys.stderr") as stderr:
      dataset = self.make(lines=lines, tokenizer="char", validation_fraction=0.3)
    said = "".join(call.args[0] for call in stderr.write.call_args_list)
    self.assertIn("data.path: 1 of 3 lines are cut at the right, to", said)
    encode = dataset.tokenizer.encode
    cut = [("ab", ("cd" * 40)[:47]), ("ab", "c" * 47)]
    self.assertEqual(encode("ab" + cut[0][1]), encode("ab" + "cd" * 40)[:49])
    self.assertEqual(self.read(dataset, "train"), self.expected(cut, dataset.tokenizer))

  def test_a_prompt_without_room_is_refused(self):
    path = self.folder / "lines.jsonl"
    lines = [*LINES[:2], ("p" * 48, "c"), ("p" * 49, "c")]
    says = rf"data.path: {path}, line 4: prompt has 49 tokens: must have at most 48, by"
    with self.assertRaisesRegex(InputError, says):
      self.make(lines=lines, tokenizer="byte")
    self.make(lines=lines[:3], tokenizer="byte", validation_fraction=0.4)

  @parameterized.parameters(
    ('{"completion": "b"}', "prompt is missing: must be a text"),
    ('{"prompt": "a"}', "completion is missing: must be a text"),
    ('{"prompt": 5, "completion": "b"}', "prompt is of int: must be a text"),
    ('{"prompt": "a", "completion": ["b"]}', "completion is of list: must be a text"),
    ('{"prompt": "a", "completion": null}', "completion is of NoneType: must be a"),
    ('{"prompt": "a", "completion": ""}', "completion has no tokens"),
    ('{"prompt": "", "completion": "b"}', "the prompt is empty"),
    ("[]", "is not a JSON object"),
    ('{"prompt": "a",', "is not JSON"),
  )
  def test_a_wrong_line_is_named(self, line, says):
    good = '{"prompt": "a", "completion": "b"}'
    path = self.folder / "lines.jsonl"
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    with self.assertRaisesRegex(InputError, rf"^data.path: {path}, line 3:? {says}"):
      CompletionsConfig(str(path), tokenizer="byte").make(8)

  def test_what_a_tokenizer_cannot_write_is_named(self):
    (self.folder / "tokenizer.json").write_text(
      tokenizer_json(WordTokenizer(("to", "be")))
    )
    with self.assertRaisesRegex(InputError, r"line 2: unknown word 'not'"):
      self.make(lines=[("to", "be"), ("to", "not")], tokenizer=str(self.folder))

  @parameterized.parameters(
    (dict(path=""), "data.path is empty"),
    (dict(path="no.jsonl"), "data.path is 'no.jsonl': no such file"),
    (dict(validation_path="no"), "data.validation_path is 'no': no such file"),
    (dict(validation_path="https://x/y"), "data.validation_path is .*: no such file"),
    (dict(validation_fraction=0.01), "30 lines are for training, 0 for validation"),
    (dict(validation_fraction=1.5), "data.validation_fraction is 1.5"),
    (dict(bpe_vocab_size=5), "data.bpe_vocab_size is 5"),
    (dict(tokenizer="chars"), "unknown data.tokenizer 'chars': did you mean 'char'"),
  )
  def test_other_fields(self, fields, says):
    fields = {"path": self.write()} | fields
    with self.assertRaisesRegex(InputError, says):
      CompletionsConfig(**fields).make(48)

  def test_an_empty_file(self):
    path = self.write()
    (self.folder / "none.jsonl").write_text("\n")
    with self.assertRaisesRegex(InputError, "30 lines .*, 0 for validation"):
      CompletionsConfig(path, str(self.folder / "none.jsonl")).make(48)

  def test_bpe_is_trained_on_prompts_and_answers(self):
    dataset = self.make(tokenizer="bpe", bpe_vocab_size=280)
    texts = [text for line in LINES for text in line]
    self.assertEqual(
      tokenizer_json(dataset.tokenizer), tokenizer_json(BPETokenizer.train(texts, 280))
    )

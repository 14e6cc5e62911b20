"""What others are told of a tokenizer: the same ids, and what surrounds a text."""

import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex
import tokenizers

from gpt2_flax import GPT2Config
from gpt2_flax.hub import folder as hub_folder
from gpt2_flax.hub.tokenizer import write_tokenizer
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  read_tokenizer,
  WordTokenizer,
)

BPE = BPETokenizer.train(["to be or not to be"], 300)
WORDS = WordTokenizer(["the", "cat", "don't"])
NAMES = ("eos_token", "bos_token", "unk_token", "pad_token")
END = "<|endoftext|>"
# As transformers' tokenizers and models save themselves.
SAID = {
  "tokenizer_config.json": {
    "tokenizer_class": "GPT2Tokenizer",
    "eos_token": {"__type": "AddedToken", "content": "not", "lstrip": False},
    "bos_token": "be",
    "unk_token": END,
    "pad_token": "<pad>",
    "model_max_length": 12,
    "added_tokens_decoder": {"300": {"content": "<pad>", "special": True}},
    "chat_template": "{{ messages }}",
  },
  "special_tokens_map.json": {"additional_special_tokens": ["<|user|>"]},
  "added_tokens.json": {"<pad>": 300},
  "generation_config.json": {"eos_token_id": [7, 9], "top_k": 40, "max_length": 9},
}
IN_CONFIG = {"bos_token_id": 1, "eos_token_id": [7, 9], "pad_token_id": 300}
IN_CONFIG |= {"task_specific_params": {"text-generation": {"max_length": 50}}}


class WriteTokenizerTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.named_parameters(
    ("word", WORDS, " the  cat\n don't ", "dog"),
    ("char", CharTokenizer("the cät\n日"), "chä t\n\nte日", "dog"),
    ("byte", ByteTokenizer(), "a <s> <0x41>  é\x00\r\n日 🙂", None),
  )
  def test_same_ids(self, ours, text, unknown):
    write_tokenizer(self.scratch, ours, 8)
    theirs = tokenizers.Tokenizer.from_file(str(self.scratch / "tokenizer.json"))
    self.assertEqual(theirs.get_vocab_size(), ours.vocab_size)
    ids = ours.encode(text)
    self.assertEqual(theirs.encode(text).ids, ours.start(text))
    self.assertEqual(theirs.decode(ids, skip_special_tokens=True), ours.decode(ids))
    if unknown is not None:
      with self.assertRaisesRegex(Exception, "UNK"):
        theirs.encode(unknown)
    if ours.start_id is not None:
      self.assertEqual(theirs.token_to_id("<s>"), ours.start_id)
      self.assertEqual(theirs.decode([ours.start_id, *ids]), ours.decode(ids))

  @parameterized.parameters(
    (WordTokenizer(["a"]), 2, 0),
    (ByteTokenizer(), 256, None),
    (BPE, 300, 0),
    (None, 256, None),
    (None, 50_257, 50_256),
  )
  def test_start_and_end_token(self, tokenizer, vocab_size, token_id):
    config = GPT2Config(vocab_size=vocab_size)
    values = hub_folder.config_json(config, tokenizer, "float32")
    self.assertEqual(values["bos_token_id"], token_id)
    self.assertEqual(values["eos_token_id"], token_id)

  def test_a_tokenizer_that_saves_itself(self):
    write_tokenizer(self.scratch, BPE, 8)
    theirs = tokenizers.Tokenizer.from_file(str(self.scratch / "tokenizer.json"))
    self.assertEqual(theirs.encode("not to be").ids, BPE.encode("not to be"))


class BesideTest(chex.TestCase):
  """The keys are those that transformers' AutoTokenizer and GenerationConfig read."""

  def setUp(self):
    super().setUp()
    self.scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def source(self, said=SAID, in_config=IN_CONFIG):
    """A folder that others have written."""
    folder = self.scratch / "source"
    folder.mkdir(exist_ok=True)
    BPE.save(str(folder / "tokenizer.json"))
    config = {"model_type": "gpt2", "n_head": 2, **in_config}
    for name, values in {**said, "config.json": config}.items():
      (folder / name).write_text(json.dumps(values))
    return folder

  def written(self, tokenizer, context_length):
    folder = pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
    write_tokenizer(folder, tokenizer, context_length)
    return {path.name: json.loads(path.read_text("utf-8")) for path in folder.iterdir()}

  def test_what_came_in_goes_out(self):
    tokenizer = read_tokenizer(self.source() / "tokenizer.json")
    files = self.written(tokenizer, context_length=12)
    self.assertEqual(files.pop("tokenizer.json"), tokenizer.state()["tokenizer"])
    self.assertEqual(files, SAID)
    config = hub_folder.config_json(GPT2Config(), tokenizer, "float32")
    self.assertEqual({key: config[key] for key in IN_CONFIG}, IN_CONFIG)
    self.assertEqual(config["n_head"], 12)
    self.assertEqual(config["n_ctx"], 1024)  # llama.cpp's converter needs it

  def test_limits_are_those_of_a_shorter_context(self):
    tokenizer = read_tokenizer(self.source() / "tokenizer.json")
    files = self.written(tokenizer, context_length=5)
    self.assertEqual(files["tokenizer_config.json"]["model_max_length"], 5)
    about_generation = SAID["generation_config.json"] | {"max_length": 5}
    self.assertEqual(files["generation_config.json"], about_generation)

  def test_a_cut_context_bounds_what_is_written_by_default(self):
    said = {"tokenizer_config.json": {"model_max_length": 1024}}
    tokenizer = read_tokenizer(self.source(said) / "tokenizer.json")
    files = self.written(tokenizer, context_length=256)
    self.assertEqual(files["generation_config.json"]["max_length"], 256)
    self.assertEqual(files["generation_config.json"]["eos_token_id"], [7, 9])
    self.assertNotIn("task_specific_params", files["generation_config.json"])
    self.assertNotIn("generation_config.json", self.written(tokenizer, 1024))

    said["generation_config.json"] = {"max_new_tokens": 3}
    tokenizer = read_tokenizer(self.source(said) / "tokenizer.json")
    files = self.written(tokenizer, context_length=256)
    self.assertEqual(files["generation_config.json"], {"max_new_tokens": 3})

  def test_what_is_not_said_is_filled_in(self):
    said = {
      "tokenizer_config.json": {"model_max_length": 1e30, "pad_token": None},
      "special_tokens_map.json": {"unk_token": "be"},
    }
    tokenizer = read_tokenizer(self.source(said, {}) / "tokenizer.json")
    files = self.written(tokenizer, context_length=12)
    expected = {"eos_token": END, "bos_token": END, "pad_token": END}
    expected |= {"model_max_length": 12}
    self.assertEqual(files["tokenizer_config.json"], expected)
    self.assertNotIn("generation_config.json", files)
    self.assertEqual(files["special_tokens_map.json"], {"unk_token": "be"})

  def test_a_template_in_a_file_of_its_own(self):
    folder = self.source()
    (folder / "chat_template.jinja").write_text("{{ é }}", "utf-8")
    files = self.written(read_tokenizer(folder / "tokenizer.json"), 12)
    self.assertEqual(files["tokenizer_config.json"]["chat_template"], "{{ é }}")

  def test_code_does_not_come_along(self):
    about = {"auto_map": {"AutoTokenizer": "someone/model--code.Tokenizer"}}
    folder = self.source({"tokenizer_config.json": about})
    files = self.written(read_tokenizer(folder / "tokenizer.json"), 12)
    self.assertNotIn("auto_map", files["tokenizer_config.json"])

  @parameterized.named_parameters(
    ("word", WORDS, ("<s>", "<s>", None, "<s>"), 0),
    ("char", CharTokenizer("b\na"), (None, None, None, "\n"), None),
    ("byte", ByteTokenizer(), (None, None, None, "<0xFF>"), None),
    ("bpe", BPE, (END, END, END, END), 0),
  )
  def test_our_own(self, ours, tokens, token_id):
    files = self.written(ours, context_length=8)
    about = files["tokenizer_config.json"]
    said = {name: about.get(name) for name in NAMES}
    self.assertEqual(said, dict(zip(NAMES, tokens, strict=True)))
    self.assertEqual(about["model_max_length"], 8)
    self.assertEqual(about["padding_side"], "left")
    generation = files["generation_config.json"]
    self.assertEqual(generation["eos_token_id"], token_id)
    self.assertEqual(generation["pad_token_id"], token_id)
    self.assertEqual(generation["max_length"], 8)

  def test_what_fills_up_a_batch_is_not_taken_out_of_texts(self):
    """transformers leaves out special tokens when it writes a text; and a text that
    says the name of one means that name."""
    files = self.written(CharTokenizer("b\na"), context_length=8)
    [newline] = files["tokenizer.json"]["added_tokens"]
    self.assertEqual((newline["content"], newline["special"]), ("\n", False))
    self.assertEqual(files["tokenizer_config.json"]["added_tokens_decoder"], {})
    files = self.written(ByteTokenizer(), context_length=8)
    self.assertEqual(files["tokenizer.json"]["added_tokens"], [])
    self.assertIs(files["tokenizer_config.json"]["split_special_tokens"], True)

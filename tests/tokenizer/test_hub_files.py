"""vocab.json and merges.txt mean what the tokenizer.json of the same tokens means."""

import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex

from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import (
  BPETokenizer,
  CharTokenizer,
  read_tokenizer,
  same_tokens,
  tokenizer_file,
  tokenizer_json,
)

BPE = BPETokenizer.train(["the cats ## and the dogs, the end. "] * 9, 300)
MODEL = BPE.state()["tokenizer"]["model"]
SIZE = BPE.vocab_size
TEXT = " the cats  and ☃<|endoftext|>\r\n the dogs##"


class FilesTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, **beside):
    """As GPT-2's were published."""
    merges = "".join(" ".join(pair) + "\n" for pair in MODEL["merges"])
    (self.folder / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    vocab = json.dumps(MODEL["vocab"], ensure_ascii=False)
    (self.folder / "vocab.json").write_text(vocab, "utf-8")
    for name, said in beside.items():
      (self.folder / f"{name}.json").write_text(json.dumps(said))
    return self.folder

  def test_same_tokens(self):
    tokenizer = read_tokenizer(tokenizer_file(self.write()))
    self.assertEqual(tokenizer.vocab_size, BPE.vocab_size)
    self.assertEqual(tokenizer.end_of_text_id, BPE.end_of_text_id)
    self.assertEqual(tokenizer.encode(TEXT), BPE.encode(TEXT))
    self.assertEqual(tokenizer.decode(tokenizer.encode(TEXT)), TEXT)

  def test_lines_may_end_as_on_windows(self):
    folder = self.write()
    merges = (folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (folder / "merges.txt").write_bytes(merges)
    self.assertEqual(
      read_tokenizer(folder / "vocab.json").encode(TEXT), BPE.encode(TEXT)
    )

  def test_tokens_that_were_added(self):
    pad, user = SIZE, SIZE + 1
    by_id = {user: {"content": "<|user|>"}, pad: {"content": "<pad>", "special": True}}
    for beside in (
      dict(added_tokens={"<|user|>": user, "<pad>": pad}),
      dict(tokenizer_config={"added_tokens_decoder": by_id}),
    ):
      tokenizer = read_tokenizer(tokenizer_file(self.write(**beside)))
      self.assertEqual(tokenizer.vocab_size, SIZE + 2)
      self.assertEqual(tokenizer.encode("<|user|><pad>"), [user, pad])
      self.assertEqual(tokenizer.encode(TEXT), BPE.encode(TEXT))

  def test_a_space_before_every_text(self):
    folder = self.write(tokenizer_config={"add_prefix_space": True})
    tokenizer = read_tokenizer(folder / "vocab.json")
    self.assertEqual(tokenizer.encode("the cats"), BPE.encode(" the cats"))

  def test_end_of_text_is_the_one_that_is_named(self):
    for said in ("the", {"content": "the"}):
      folder = self.write(special_tokens_map={"eos_token": said})
      tokenizer = read_tokenizer(folder / "vocab.json")
      self.assertEqual(tokenizer.end_of_text_id, MODEL["vocab"]["the"])
    folder = self.write(tokenizer_config={"eos_token": "and"})
    tokenizer = read_tokenizer(folder / "vocab.json")
    self.assertEqual(tokenizer.end_of_text_id, MODEL["vocab"]["and"])

  def test_tokenizer_json_comes_first(self):
    folder = self.write()
    (folder / "tokenizer.json").write_text(tokenizer_json(CharTokenizer("ab")))
    self.assertEqual(tokenizer_file(folder), folder / "tokenizer.json")
    self.assertEqual(tokenizer_file(self.folder / "no"), self.folder / "no")
    (folder / "vocab.json").unlink()
    self.assertEqual(tokenizer_file(folder), folder / "tokenizer.json")

  @parameterized.parameters(
    (b"a b c\n", "line 1 must be two pieces"),
    (b"#version: 0.2\n\xff", "is not UTF-8"),
    (b"zz yy\n", "not a tokenizer.json: "),
    (None, "merges.txt is missing"),
  )
  def test_merges_that_are_none(self, content, message):
    folder = self.write()
    (folder / "merges.txt").unlink()
    if content is not None:
      (folder / "merges.txt").write_bytes(content)
    with self.assertRaisesRegex(InputError, message):
      read_tokenizer(folder / "vocab.json")

  @parameterized.parameters(
    (dict(added_tokens={"<pad>": SIZE + 1}), f"{SIZE + 1}: must be {SIZE}, the next"),
    (dict(added_tokens={"<pad>": "300"}), "the id of '<pad>' is '300': must be an"),
    (
      dict(added_tokens={"<pad>": []}),
      r"the id of '<pad>' is \[\]: must be an integer",
    ),
    (
      dict(tokenizer_config={"added_tokens_decoder": {"x": {}}}),
      "tokenizer_config.json: added_tokens_decoder has 'x': {}: must be an id and an",
    ),
    (
      dict(tokenizer_config={"added_tokens_decoder": {str(SIZE): "<pad>"}}),
      f"has '{SIZE}': '<pad>': must be an id and an object",
    ),
    (
      dict(tokenizer_config={"added_tokens_decoder": 3}),
      "tokenizer_config.json: added_tokens_decoder must be an object",
    ),
    (dict(tokenizer_config=[]), "tokenizer_config.json is not a JSON object"),
    (dict(generation_config="x"), "generation_config.json is not a JSON object"),
  )
  def test_what_lies_beside_and_is_wrong(self, beside, message):
    with self.assertRaisesRegex(InputError, message):
      read_tokenizer(self.write(**beside) / "vocab.json")


class BesideTest(chex.TestCase):
  def test_comes_back_from_our_own_file_and_cuts_no_text(self):
    beside = {"tokenizer_config.json": {"eos_token": "the"}}
    tokenizer = BPETokenizer(BPE.state()["tokenizer"], beside)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer), "utf-8")
    (folder / "tokenizer_config.json").write_text("what is here does not matter")
    loaded = read_tokenizer(folder / "tokenizer.json")
    self.assertEqual(loaded.beside, beside)
    self.assertEqual(loaded.end_of_text_id, MODEL["vocab"]["the"])
    self.assertTrue(same_tokens(loaded, BPE))
    self.assertFalse(same_tokens(loaded, CharTokenizer("ab")))
    self.assertFalse(same_tokens(BPE, BPETokenizer.train(["the"], 300)))

  @parameterized.parameters(
    ({"../evil.json": {}},), ({"tokenizer_config.json": 1},), ([],), ("x",)
  )
  def test_no_other_file(self, beside):
    with self.assertRaisesRegex(InputError, "beside: must be what is in"):
      BPETokenizer(BPE.state()["tokenizer"], beside)

"""Token arrays on disk: .npy, nanoGPT's .bin, with a tokenizer or none."""

import pathlib
import tempfile

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax.datasets.arrays import ArrayConfig, PACKS
from gpt2_flax.datasets.text import TextConfig
from gpt2_flax.errors import InputError
from gpt2_flax.layers.masks import apart
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.tokenizer import ByteTokenizer, NumberTokenizer, tokenizer_json
from gpt2_flax.transformer import GPT2
from tests.close import assert_close
from tests.params import random_params
from tests.reference import reference_logits

IDS = np.arange(100) * 37 % 101


class ArraysTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    IDS.astype("u2").tofile(self.folder / "train.bin")
    np.save(self.folder / "val.npy", IDS[:21][::-1])

  def path(self, name: str) -> str:
    return str(self.folder / name)

  def test_windows_of_two_files(self):
    config = ArrayConfig(self.path("train.bin"), self.path("val.npy"))
    dataset = config.make(context_length=8)
    self.assertEqual(dataset.num_windows("train"), 92)
    np.testing.assert_array_equal(dataset.window("train", 91), IDS[91:100])
    self.assertEqual(dataset.num_windows("validation"), 3)
    np.testing.assert_array_equal(dataset.window("validation", 1), IDS[4:13][::-1])
    last = dataset.window("validation", 2)  # cut short
    np.testing.assert_array_equal(last, [*IDS[:5][::-1], -1, -1, -1, -1])
    self.assertEqual(last.dtype, np.int32)
    self.assertIsInstance(dataset.tokenizer, NumberTokenizer)
    self.assertEqual(dataset.tokenizer.vocab_size, IDS.max() + 1)
    self.assertEqual(dataset.tokenizer.decode(IDS[:3]), "0 37 74")

  def test_the_end_of_one_file_is_for_validation(self):
    config = ArrayConfig(self.path("train.bin"), validation_fraction=0.2)
    dataset = config.make(context_length=8)
    self.assertEqual(dataset.num_windows("train"), 72)
    np.testing.assert_array_equal(dataset.window("validation", 0), IDS[80:89])

  def test_what_is_read_stays_on_the_disk(self):
    np.save(self.folder / "many.npy", np.zeros(1000, "i4"))
    dataset = ArrayConfig(self.path("many.npy")).make(4)
    self.assertIsInstance(dataset._tokens["train"].base, np.memmap)

  def test_a_tokenizer_decides_the_vocabulary(self):
    file = self.folder / "tokenizer.json"
    file.write_text(tokenizer_json(ByteTokenizer()))
    for name in (str(file), str(self.folder)):
      dataset = ArrayConfig(self.path("train.bin"), tokenizer=name).make(8)
      self.assertEqual(dataset.tokenizer.vocab_size, 256)
    file.write_text(tokenizer_json(NumberTokenizer(90)))
    with self.assertRaisesRegex(InputError, r"data.path has token id 100: .*below 90"):
      ArrayConfig(self.path("train.bin"), tokenizer=str(file)).make(8)
    dataset = ArrayConfig(self.path("train.bin"), vocab_size=128).make(8)
    self.assertEqual(dataset.tokenizer.vocab_size, 128)

  @parameterized.parameters(
    (dict(path="none.bin"), "data.path: .*none.bin cannot be read: No such file"),
    (dict(path="train.txt"), "data.path is '.*train.txt': must end on .npy or .bin"),
    (dict(path="flat.npy"), r"is int64\[2, 3\]: must be integers with one axis"),
    (dict(path="float.npy"), r"is float64\[3\]: must be integers"),
    (dict(path="object.npy"), "is no array of token ids"),
    (dict(path="negative.npy"), "data.path has token id -2: must be 0 or more"),
    (dict(path="broken.npy"), "is no array of token ids"),
    (dict(path="short.npy"), "too short for one training window"),
    (dict(path="empty.bin"), "is no array of token ids"),
  )
  def test_what_is_refused(self, values, message):
    for name, array in (
      ("flat", np.zeros((2, 3), int)),
      ("float", np.zeros(3)),
      ("negative", np.array([3, -2, 1])),
      ("short", np.arange(8)),
    ):
      np.save(self.folder / f"{name}.npy", array)
    np.save(self.folder / "object.npy", np.array([{}]), allow_pickle=True)
    (self.folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (self.folder / "empty.bin").write_bytes(b"")
    values = {**values, "path": self.path(values["path"])}
    with self.assertRaisesRegex(InputError, message):
      ArrayConfig(**values).make(8)

  def test_fields_that_do_not_fit(self):
    with self.assertRaisesRegex(InputError, "vocab_size is 5: must be 0 with"):
      ArrayConfig("x.bin", tokenizer="y", vocab_size=5)
    with self.assertRaisesRegex(InputError, "validation_fraction is 1.0: must be"):
      ArrayConfig("x.bin", validation_fraction=1.0)


class NumberTokenizerTest(chex.TestCase):
  def test_there_and_back(self):
    tokenizer = NumberTokenizer(12)
    self.assertEqual(tokenizer.encode(" 0 11\n7"), [0, 11, 7])
    self.assertEqual(tokenizer.decode([0, 11, 7]), "0 11 7")
    for word in ("12", "-1", "x", "1.0", "9" * 5000, "٣"):
      with self.assertRaisesRegex(InputError, "is no token: must be 0 to 11"):
        tokenizer.encode(word)
    for size in (0, True, 1 << 21, "3"):
      with self.assertRaisesRegex(InputError, "vocab_size is .*: must be 1 to"):
        NumberTokenizer(size)


class SeparateTest(chex.TestCase):
  """Documents in a window, as the end-of-text token divides them."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name, text in (("a", "one two"), ("b", "three"), ("c", "four five six")):
      (self.folder / f"{name}.txt").write_text(text * 3)

  def make(self, context_length=8, **fields):
    config = TextConfig(str(self.folder), bpe_vocab_size=258, **fields)
    return config.make(context_length)

  def test_a_document_begins_with_the_border_and_has_the_next_as_its_last_target(self):
    dataset = self.make(tokenizer="bpe", pack="separate")
    border = dataset.tokenizer.end_of_text_id
    self.assertEqual(border, 0)
    windows = np.array([[5, 6, 0, 7, 8, 9, 0, 0, 4], [0, 1, 2, 3, 0, 5, -1, -1, -1]])
    batch = dataset.batch(windows)
    self.assertEqual(set(batch), {"inputs", "targets", "documents"})
    np.testing.assert_array_equal(batch["targets"], windows[:, 1:])
    np.testing.assert_array_equal(batch["inputs"][0], windows[0, :-1])
    self.assertEqual(batch["documents"].dtype, np.int32)
    self.assertEqual(batch["documents"].tolist()[0], [0, 0, 1, 1, 1, 1, 2, 3])
    self.assertEqual(batch["documents"].tolist()[1][:6], [1, 1, 1, 1, 2, 2])

  def test_joined_is_the_same_without(self):
    separate, joined = (self.make(tokenizer="bpe", pack=pack) for pack in PACKS[::-1])
    self.assertEqual(PACKS, ("joined", "separate"))
    for split in ("train", "validation"):
      windows = np.stack([d.window(split, 0)[None] for d in (separate, joined)])
      np.testing.assert_array_equal(windows[0], windows[1])
    batches = [d.batch(windows[0]) for d in (separate, joined)]
    del batches[0]["documents"]
    chex.assert_trees_all_equal(*batches)

  def test_each_is_in_the_window_what_it_is_alone(self):
    dataset = self.make(60, tokenizer="bpe", pack="separate")
    batch = dataset.batch(dataset.window("train", 0)[None])
    shape = dict(num_layers=1, num_heads=2, embed_dim=8, positional_encoding="learned")
    model = GPT2(GPT2Config(dataset.tokenizer.vocab_size, 60, **shape))
    params = random_params(model, scale=0.5)

    @jax.jit
    def apply(tokens_BT, documents_BT):
      return model.apply(params, tokens_BT, *apart(documents_BT))

    logits = np.asarray(apply(batch["inputs"], batch["documents"]))[0]
    texts = [(self.folder / f"{name}.txt").read_text() for name in "abc"]
    ids = [dataset.tokenizer.encode(text) for text in texts]
    ends = np.cumsum([len(document) for document in ids]) + np.arange(3)
    alone = [ids[0], [0, *ids[1]], [0, *ids[2]]]
    for document, end in zip(alone, ends, strict=True):
      place = slice(end - len(document), min(end, 60))
      shown = np.array([document[: place.stop - place.start]])
      self.assertEqual(batch["inputs"][0, place].tolist(), shown[0].tolist())
      expected = reference_logits(params, shown, model.config)[0]
      assert_close(logits[place], expected, dtype=np.float32)

  @parameterized.parameters("char", "byte")
  def test_a_tokenizer_without_a_border_is_refused(self, tokenizer):
    self.make(tokenizer=tokenizer)
    with self.assertRaisesRegex(InputError, f"data.pack .* of kind '{tokenizer}', "):
      self.make(tokenizer=tokenizer, pack="separate")
    np.save(self.folder / "ids.npy", IDS)
    with self.assertRaisesRegex(InputError, "data.pack .* of kind 'number', "):
      ArrayConfig(str(self.folder / "ids.npy"), pack="separate").make(4)

  @parameterized.parameters(TextConfig, ArrayConfig)
  def test_an_unknown_way(self, config):
    with self.assertRaisesRegex(InputError, "data.pack 'seperate': did you mean 'sep"):
      config(path="x", pack="seperate")

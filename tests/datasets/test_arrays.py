"""Token arrays on disk: .npy, nanoGPT's .bin, with a tokenizer or none."""

import pathlib
import tempfile

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.arrays import ArrayConfig
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import ByteTokenizer, NumberTokenizer, tokenizer_json

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

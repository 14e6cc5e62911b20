"""What hostile input is tried on: files that are read, texts that become prompts.

A target has a `path` that a mutation of one of its `corpus` is written to, and `use`,
which does with it what this project does.
"""

import contextlib
import json
import os
import pathlib
import pickle
import shutil
import struct
import sys
from unittest import mock
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers as library

from configs import toy
from gpt2_flax import generation, pretrained
from gpt2_flax.errors import InputError
from gpt2_flax.files import json as json_files
from gpt2_flax.hub.folder import find_folder
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  read_tokenizer,
  tokenizer_json,
  WordTokenizer,
)
from gpt2_flax.training import adapter_folder, source
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.config import CheckpointConfig, from_dict
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.kept import read_params
from gpt2_flax.training.lora import new_adapters
from gpt2_flax.training.manifest import MANIFEST, manifest
from gpt2_flax.training.step import TrainState
from tests.reliability import mutations

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


class Payload:
  """Unpickled, it would leave a file behind."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def pickles(folder: pathlib.Path) -> list[bytes]:
  """Code as it is smuggled: a pickle, torch's archive of one, numpy's file of one."""
  payload = Payload(folder / "hacked")
  found = [pickle.dumps(payload, protocol) for protocol in range(6)]
  with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
    archive.writestr("archive/data.pkl", found[2])
    archive.writestr("archive/version", "3")
  np.save(folder / "array.npy", np.array([payload], object), allow_pickle=True)
  found += [(folder / name).read_bytes() for name in ("archive.zip", "array.npy")]
  header = struct.pack("<Q", len(found[0])) + found[0]
  return [*found, header]


class Target:
  """Something that is read: `use` does it, a mutation of one of its `corpus`."""

  path: pathlib.Path
  corpus: list[bytes]

  def write(self, content: bytes) -> None:
    self.path.write_bytes(content)


class Weights(Target):
  """model.safetensors, or a shard, beside a config.json that is as it should be."""

  def __init__(self, folder: pathlib.Path, source: str, name: str):
    self.folder = shutil.copytree(GOLDEN / source, folder)
    self.path = self.folder / name
    self.corpus = [self.path.read_bytes()]

  def mutate(self, content, random):
    how = mutations.of_safetensors if random.random() < 0.7 else mutations.of_bytes
    return how(content, random)

  def use(self):
    pretrained.load(self.folder)


class Json(Weights):
  """config.json, or the index of the shards."""

  def mutate(self, content, random):
    if random.random() < 0.8:
      with contextlib.suppress(ValueError, RecursionError):
        return mutations.of_json(json.loads(content), random, self.more)
    return mutations.of_bytes(content, random)

  more = (
    *("../model.safetensors", "/model.safetensors", "..\\model.safetensors", ".."),
    *("a/../../model.safetensors", "model.safetensors\0", "pytorch_model.bin"),
  )


NO_LAB = "this"  # a module that nothing imports, and that can be


class RunConfig(Json):
  """The config.json of a run."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir()
    self.path = folder / "config.json"
    whole = parse(toy.get_config())[0].to_dict()
    text = {**whole, "data": {"name": "text", "path": "a.txt"}}
    own = dict.fromkeys(("data", "tokenizer", "attention", "loss"), f"{NO_LAB}:Part")
    lab = {**whole, "data": {"name": "mine"}, "own": own}
    self.corpus = [json.dumps(values).encode() for values in (whole, text, lab)]

  def use(self):
    try:
      from_dict(json_files.read_json(self.path))
    finally:
      assert NO_LAB not in sys.modules, "a folder caused an import"


REGEXES = (
  *("(a+)+$", "(a|a)*$", "(a|aa)+$", "a.*a.*a.*a.*a.*b", "a?" * 30 + "a" * 30, "(" * 9),
  *("(?<n>a|b\\g<n>)*", "(a)\\1+", "(?#[)a*a*a*a*a*b", "(?x)#[\na*a*a*a*a*b", "[", ""),
  *("a{1000}{1000}{1000}", "(?<=a{1,99999})b", "\\", "(?:a*)*b", " {2,}", "[\\s\\S]"),
  *("^(([a-z])+.)+[A-Z]$", "(.*)(.*)(.*)(.*)[^>]", "((?:a|b)?)*", "[[*]a*a*a*]"),
)


def tokenizer_files() -> tuple[list[bytes], tuple]:
  """Tokenizers of every kind that work, and parts that ask for too much."""
  ours = (
    WordTokenizer(["the", "cat", "</script>"]),
    CharTokenizer("the cat\n\u2028"),
    ByteTokenizer(),
    BPETokenizer.train(["the cat sat on the mat"], 290),
  )
  models, ids = library.models, {"<unk>": 0, "a": 1, "##a": 2, "aa": 3, "the": 4}
  theirs = [
    library.Tokenizer(model)
    for model in (
      models.WordLevel(ids, "<unk>"),
      models.WordPiece(ids, unk_token="<unk>"),
      models.Unigram([("<unk>", 0.0), ("a", -1.0), ("the", -2.0)], 0, False),
      models.BPE(ids, [("a", "a")], unk_token="<unk>"),
    )
  ]
  for tokenizer in theirs:
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(" ", "isolated")
    tokenizer.normalizer = library.normalizers.Sequence(
      [library.normalizers.NFKC(), library.normalizers.Replace("  ", " ")]
    )
    tokenizer.post_processor = library.processors.TemplateProcessing(
      single="<unk> $A", special_tokens=[("<unk>", 0)]
    )
    tokenizer.decoder = library.decoders.WordPiece()
  files = [tokenizer_json(tokenizer) for tokenizer in ours]
  files += [tokenizer.to_str() for tokenizer in (*theirs, ours[3]._tokenizer)]
  grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
  byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
  splits = [
    {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
    | {"invert": False}
    for regex in REGEXES
  ]
  prepend = {"type": "Prepend", "prepend": "a" * 1000}
  more = (
    *splits,
    *(
      {"type": "Replace", "pattern": s["pattern"], "content": "a" * 100} for s in splits
    ),
    {"type": "Sequence", "normalizers": [prepend, grow, grow, grow, grow]},
    {"type": "Sequence", "pretokenizers": [byte_level] * 40},
    {"type": "Sequence", "decoders": [grow] * 40},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hYWE="},
    {"type": "FixedLength", "length": 0},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always"},
    {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9},
    {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0}
    | {"pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "a"},
    [["a", "a"], ["aa", "aa"], ["a", "aaa"]] * 100,  # merges that go in circles
    {"a": 0, "b": 0, "c": 2**32 - 1},
    {"id": 2**32 - 1, "content": "", "single_word": False, "lstrip": False}
    | {"rstrip": False, "normalized": True, "special": True},
  )
  return [file.encode() for file in files], more


TEXTS = (
  *("", " ", "the cat", "a" * 60 + "!", "a" * 20_000, "\0", "\ud800", "\udcff\udc80 a"),
  *("\x1b[2J\x1b]0;t\x07", "\u202e", "é" * 3000, "👩‍💻", "\uffff", "<s>", "{{7*7}}"),
  *(" " * 20_000, "\n" * 5000, "</script>", "\r\n", "aé b" * 2000, "<|endoftext|>"),
)


class TokenizerFile(Json):
  """tokenizer.json, and texts for what comes of it."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir()
    self.path = folder / "tokenizer.json"
    self.corpus, self.more = tokenizer_files()

  def mutate(self, content, random):
    self.texts = random.sample(TEXTS, 2)
    return super().mutate(content, random)

  def use(self):
    tokenizer = read_tokenizer(self.path)
    refused = None
    for text in self.texts:
      try:
        ids = tokenizer.start(text)
        tokenizer.decode(ids)
        [tokenizer.token(token_id) for token_id in ids[:5]]
      except InputError as error:
        refused = error
    tokenizer_json(tokenizer).encode("utf-8")
    if refused:
      raise refused


BESIDE = {
  "tokenizer_config.json": {
    "tokenizer_class": "GPT2Tokenizer",
    "eos_token": {"__type": "AddedToken", "content": "the", "lstrip": False},
    "bos_token": "<s>",
    "model_max_length": 12,
    "add_prefix_space": True,
    "added_tokens_decoder": {"269": {"content": "<s>", "special": True}},
  },
  "special_tokens_map.json": {"additional_special_tokens": ["<|user|>"]},
  "added_tokens.json": {"<s>": 269},
  "generation_config.json": {"eos_token_id": [7, 9], "max_length": 9},
  "config.json": {"bos_token_id": 1, "eos_token_id": [7, 9], "pad_token_id": 300},
}


class TokenizerFolder(Json):
  """vocab.json and merges.txt, and what lies beside a tokenizer in its folder."""

  more = ({"content": "a"}, {"269": {}}, {"a": 269}, {"269": "a"}, ["<s>"], "<s>", 269)

  def __init__(self, folder: pathlib.Path):
    folder.mkdir()
    bpe = BPETokenizer.train(["the cat sat on the mat"], 290)
    model = json.loads(bpe._tokenizer.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    self.whole = {folder / "merges.txt": merges.encode()}
    for name, values in {"vocab.json": model["vocab"], **BESIDE}.items():
      self.whole[folder / name] = json.dumps(values).encode()
    for path, content in self.whole.items():
      path.write_bytes(content)
    self.folder, self.path, self.corpus = folder, folder / "merges.txt", [b""]

  def mutate(self, content, random):
    self.path.write_bytes(self.whole[self.path])
    self.path = random.choice(list(self.whole))
    return super().mutate(self.whole[self.path], random)

  def use(self):
    tokenizer = pretrained.load_tokenizer(self.folder)
    tokenizer.decode(tokenizer.start("the cat"))
    tokenizer_json(tokenizer).encode("utf-8")


class Adapter(Json):
  """adapter_config.json, beside a base and adapters that are as they should be."""

  more = ("plain", "../adapter-config", 1e308, {"attn.c_attn": 2}, {"": 0})
  name = adapter_folder.CONFIG

  def __init__(self, folder: pathlib.Path):
    folder.mkdir()
    base = shutil.copytree(GOLDEN / "plain", folder / "base")
    (base / "tokenizer.json").write_text(tokenizer_json(CharTokenizer("the")))
    adapters = new_adapters(
      [
        ("blocks_0/attention/heads/query/kernel", (2, 16, 8)),
        ("blocks_1/feed_forward/expand/kernel", (16, 64)),
      ],
      2,
      jax.random.key(0),
    )
    adapter_folder.save(folder, adapters, 2, 4.0, str(base))
    self.folder, self.path = folder, folder / self.name
    self.corpus = [self.path.read_bytes()]

  def use(self):
    def only_here(name):  # what is downloaded is as hostile, and tried as such
      if not os.path.isdir(name):
        raise InputError("no folder")
      return find_folder(name)

    with mock.patch.object(source, "find_folder", only_here):
      source.load(self.folder)


class AdapterWeights(Adapter):
  """adapter_model.safetensors."""

  name = adapter_folder.WEIGHTS
  mutate = Weights.mutate


class Prompts(Target):
  """What a model shall continue: text for a tokenizer that is fine, and ids."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir()
    self.path = folder / "prompt"
    self.corpus = [b""]
    self.model, self.params = pretrained.load(GOLDEN / "plain")
    self.tokenizers = []
    for content in tokenizer_files()[0]:
      self.path.write_bytes(content)
      self.tokenizers.append(read_tokenizer(self.path))
    self.sampling, self.text, self.tokenizer = {}, "the", self.tokenizers[0]
    for length in (1, 5, 8, 60):  # what is compiled is no work of what is tried
      for stop_ids in ((), (1,)):
        self.ids = [0] * length
        self.more = dict(num_tokens=1, overflow="slide", stop_ids=stop_ids)
        self.use()

  def mutate(self, content, random):
    characters = [chr(random.randrange(0x110000)) for _ in range(random.randrange(30))]
    self.text = random.choice((random.choice(TEXTS), "".join(characters)))
    self.tokenizer = random.choice(self.tokenizers)
    self.ids = [
      random.choice((0, 1, 36, 37, -1, 2**31, 2**63, -(2**63), 10**30))
      if random.random() < 0.2
      else random.randrange(37)
      for _ in range(random.choice((0, 1, 5, 8, 60)))
    ]
    self.more = dict(
      num_tokens=random.choice((0, 1, 1, 1, -1)),
      overflow=random.choice(("stop", "stop", "slide", "", "\x1b")),
      stop_ids=random.choice(((), (), (1,), (-1,), (2**40,))),
    )
    value = random.choice((0.0, -1.0, 1e308, float("nan"), float("inf"), 1e-320, -1))
    field = random.choice(list(generation.Sampling.__dataclass_fields__))
    self.sampling = {field: value}
    return self.text.encode("utf-8", "surrogatepass")

  def use(self):
    self.tokenizer.decode(self.tokenizer.start(self.text))
    greedy = generation.Sampling(temperature=0.0)
    list(
      generation.stream(
        self.model, self.params, [self.ids], sampling=greedy, **self.more
      )
    )
    generation.Sampling(**self.sampling)


class CheckpointFile(Target):
  """One file of a run's only checkpoint, sometimes with a manifest that agrees."""

  def __init__(self, folder: pathlib.Path):
    self.state = TrainState(
      step=jnp.int32(1),
      skipped=jnp.int32(0),
      loss_mean=jnp.float32(0),
      params={"params": {"kernel": jnp.arange(12.0).reshape(3, 4)}},
      opt_state=optax.adam(0.1).init({"kernel": jnp.zeros((3, 4))}),
      rng=jax.random.key(7),
    )
    self.config = CheckpointConfig(every_steps=1, keep=2)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    self.abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), self.state
    )
    self.folder = folder
    with Checkpoints(folder, self.config) as saver:
      saver.save(self.state, {"next_index": 1}, {})
    self.files = sorted(path for path in folder.rglob("*") if path.is_file())
    self.whole = {path: path.read_bytes() for path in self.files}
    self.manifest = (folder / "1" / MANIFEST).read_bytes()
    self.path, self.corpus = self.files[0], [b""]

  def mutate(self, content, random):
    self.path.write_bytes(self.whole[self.path])
    self.path = random.choice(self.files)
    (self.folder / "1" / MANIFEST).write_bytes(self.manifest)
    content, self.sealed = self.whole[self.path], random.random() < 0.7
    if random.random() < 0.5:
      with contextlib.suppress(ValueError, RecursionError):
        return mutations.of_json(json.loads(content), random)
    return mutations.of_bytes(content, random)

  def write(self, content):
    super().write(content)
    if self.sealed and self.path.name != MANIFEST:
      made_to_fit = manifest(self.folder / "1")
      (self.folder / "1" / MANIFEST).write_bytes(made_to_fit)

  def use(self):
    params = read_params(self.folder, self.abstract.params)
    # so it is not damaged, and nothing is set aside
    with Checkpoints(self.folder, self.config) as reader:
      state, position = reader.restore(self.abstract)
    if not self.sealed:
      assert position == {"next_index": 1}, f"restored silently wrong: {position}"
      for found in (params, state.params):
        same = jax.tree.map(np.array_equal, found, self.state.params)
        assert all(jax.tree.leaves(same)), "restored silently wrong"


def targets(folder: pathlib.Path) -> dict[str, tuple[float, object]]:
  """Kind -> (its share of all tries, what tries it)."""
  shard = "model-00001-of-00002.safetensors"
  index, config = "model.safetensors.index.json", "config.json"
  return {
    "weights": (0.15, Weights(folder / "weights", "plain", "model.safetensors")),
    "shard": (0.1, Weights(folder / "shard", "sharded", shard)),
    "index": (0.05, Json(folder / "index", "sharded", index)),
    "config": (0.1, Json(folder / "config", "untied", config)),
    "run's config": (0.1, RunConfig(folder / "run")),
    "tokenizer": (0.2, TokenizerFile(folder / "tokenizer")),
    "tokenizer's folder": (0.1, TokenizerFolder(folder / "beside")),
    "adapter's config": (0.05, Adapter(folder / "adapter-config")),
    "adapter": (0.05, AdapterWeights(folder / "adapter")),
    "prompt": (0.085, Prompts(folder / "prompt")),
    "checkpoint": (0.015, CheckpointFile(folder / "checkpoint")),
  }

import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import shutil
import tempfile
import threading
from typing import ClassVar
from unittest import mock

from absl.testing import parameterized
import chex
import huggingface_hub
import huggingface_hub.utils

from gpt2_flax import GPT2Config, InputError
from gpt2_flax.hub import folder as hub_folder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD, LAST_SHARD = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
WTE = "transformer.wte.weight"

# Changes to config.json, and what the one line must say.
BAD_CONFIGS = {
  "other_model": ({"model_type": "llama"}, "model_type is 'llama': must be gpt2"),
  "no_model_type": ({"model_type": None}, "model_type is None: must be gpt2"),
  "encoder": ({"add_cross_attention": True}, "add_cross_attention is true: must be"),
  "activation": ({"activation_function": "gelu_nwe"}, "did you mean 'gelu_new'?"),
  "activation_type": ({"activation_function": []}, "activation_function is []: must"),
  "text": ({"n_layer": "2"}, "n_layer is '2': must be of type int"),
  "number": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1: must be of type"),
  "flag": ({"n_inner": True}, "n_inner is True: must be of type int"),
  "null": ({"n_embd": None}, "n_embd is None: must be of type int"),
  "zero": ({"n_head": 0}, "n_head is 0: must be at least 1"),
  "negative": ({"n_inner": -1}, "n_inner is -1: must be at least 1"),
  "heads": ({"n_head": 3}, "model.embed_dim is 16: must be divisible by"),
  "epsilon": ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0.0: must be in"),
  "not_finite": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
  "no_float": ({"layer_norm_epsilon": 10**400}, "must be of type float"),
  "dropout": (dict.fromkeys(hub_folder.DROPOUT_KEYS, 1.0), "dropout_rate is 1.0"),
  "alias": ({"num_attention_heads": 4}, "num_attention_heads is 4, but n_head is 2"),
}
BAD_JSON = {
  "empty": (b"", "is not JSON"),
  "cut_short": (b'{"n_layer": 2', "is not JSON"),
  "not_text": (b"\xff\xfe", "is not JSON"),
  "too_deep": (b"[" * 100_000, "is not JSON"),
  "list": (b"[]", "is not a JSON object"),
}
# What model.safetensors becomes, given what it was.
BAD_WEIGHTS = {
  "tail_missing": lambda content: content[:-1],
  "half_a_header": lambda content: content[:100],
  "empty": lambda content: b"",
  "git_lfs_pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
  "more_than_there_should_be": lambda content: content + b"\0",
}
# Changes to the weight_map of an index, and what the one line must say.
BAD_INDICES = {
  "parent": ({WTE: f"../{WEIGHTS}"}, f"{WTE} is in '../{WEIGHTS}': must be a"),
  "inner": ({WTE: f"a/{WEIGHTS}"}, "must be a .safetensors file in this folder"),
  "absolute": ({WTE: f"/{WEIGHTS}"}, f"{WTE} is in '/{WEIGHTS}': must be a"),
  "backslash": ({WTE: f"..\\{WEIGHTS}"}, "must be a .safetensors file in this folder"),
  "newline": ({WTE: f"{SHARD}\n"}, "must be a .safetensors file in this folder"),
  "pickle": ({WTE: "pytorch_model.bin"}, "must be a .safetensors file in this folder"),
  "number": ({WTE: 1}, f"{WTE} is in 1: must be a .safetensors file in this folder"),
  "absent": ({WTE: "model-3.safetensors"}, f"{WTE} is in {SHARD}, the index says"),
  "moved": ({WTE: LAST_SHARD}, f"is in {SHARD}, the index says {LAST_SHARD}"),
  "invented": ({"h.9.ln_1.bias": SHARD}, f"h.9.ln_1.bias is not in {SHARD}"),
}


HUB = (CONFIG, WEIGHTS)


class Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub as a download asks for; `served` is what it really sends."""

  contents: ClassVar[dict[str, bytes]]
  served: ClassVar[dict[str, bytes]]
  cache: ClassVar[pathlib.Path]

  def do_GET(self):
    if self.path.startswith("/api/"):
      about = {"id": "someone/model", "sha": "0" * 40}
      about["siblings"] = [{"rfilename": name} for name in self.contents]
      files = [self.entry(name) for name in self.contents]
      return self.answer(json.dumps(files if "/tree/" in self.path else about).encode())
    name = self.path.rpartition("/")[2]
    whole, entry = self.contents[name], self.entry(name)
    checksum = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
    headers = {"ETag": f'"{checksum}"', "X-Repo-Commit": "0" * 40}
    return self.answer(self.served.get(name, whole), headers, len(whole))

  do_HEAD = do_GET

  def entry(self, name: str) -> dict:
    content = self.contents[name]
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name == WEIGHTS:  # too large for git
      oid = hashlib.sha256(content).hexdigest()
      entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 100}
    return entry

  def answer(self, content: bytes, headers: dict = {}, length: int | None = None):  # noqa: B006
    self.send_response(200)
    length = len(content) if length is None else length
    for header, value in {**headers, "Content-Length": length}.items():
      self.send_header(header, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(content)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def hub_of(contents: dict[str, bytes], served: dict[str, bytes] | None = None):
  """Downloads come from a hub on this machine, to an empty cache."""
  with tempfile.TemporaryDirectory() as cache:
    attributes = dict(contents=contents, served=served or {}, cache=pathlib.Path(cache))
    hub = type("AHub", (Hub,), attributes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
      threading.Thread(target=server.serve_forever, daemon=True).start()
      download = functools.partial(
        huggingface_hub.snapshot_download,
        endpoint=f"http://127.0.0.1:{server.server_port}",
        cache_dir=cache,
      )
      with mock.patch.object(huggingface_hub, "snapshot_download", download):
        yield hub
      server.shutdown()


def change_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class HubFolderTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def copy(self, name):
    return pathlib.Path(shutil.copytree(GOLDEN / name, self.scratch / name))

  @contextlib.contextmanager
  def assert_refused(self, path, *says):
    """One line that names the file, or the folder that it is missing from."""
    with self.assertRaises(InputError) as raised:
      yield
    message = str(raised.exception)
    self.assertNotIn("\n", message)
    for words in (str(path), *says):
      self.assertIn(words, message)

  def test_config(self):
    self.assertEqual(
      hub_folder.read_config(GOLDEN / "wide" / CONFIG),
      GPT2Config(
        vocab_size=37,
        context_length=40,
        num_layers=2,
        num_heads=4,
        embed_dim=16,
        mlp_dim=24,
        positional_encoding="learned",
        dropout_rate=0.1,
        activation="gelu",
        layer_norm_epsilon=1e-2,
      ),
    )

  def test_config_that_leaves_all_out_is_the_published_one(self):
    path = self.scratch / CONFIG
    path.write_text('{"model_type": "gpt2"}')
    self.assertEqual(
      hub_folder.read_config(path), GPT2Config.published("small", dropout_rate=0.1)
    )

  def test_other_names_of_config_keys(self):
    path = self.scratch / CONFIG
    values = json.loads((GOLDEN / "wide" / CONFIG).read_text())
    for alias, key in hub_folder.ALIASES.items():
      values[alias] = values.pop(key)
    path.write_text(json.dumps(values))
    self.assertEqual(
      hub_folder.read_config(path), hub_folder.read_config(GOLDEN / "wide" / CONFIG)
    )

  def test_different_dropout_rates_become_none_with_a_warning(self):
    path = self.copy("plain") / CONFIG
    change_json(path, attn_pdrop=0)
    with self.assertLogs("absl", "WARNING") as logs:
      config = hub_folder.read_config(path)
    self.assertEqual(config.dropout_rate, 0.0)
    self.assertIn("'attn_pdrop': 0.0", logs.output[0])

  @parameterized.parameters(
    dict(activation="relu"),
    dict(activation="gelu_tanh", mlp_dim=7, dropout_rate=0.25),
    dict(tied_embeddings=False, layer_norm_epsilon=1e-3),
    dict(scale_attention=False, num_heads=1),
    dict(scale_attention_by_layer=True, num_layers=3),
  )
  def test_config_json_and_back(self, **changes):
    config = GPT2Config.published("small", **changes)
    path = self.scratch / CONFIG
    path.write_text(json.dumps(hub_folder.config_json(config, None, "float32")))
    self.assertEqual(hub_folder.read_config(path), config)

  @parameterized.named_parameters((name, *case) for name, case in BAD_CONFIGS.items())
  def test_bad_config(self, changes, says):
    path = self.copy("plain") / CONFIG
    change_json(path, **changes)
    with self.assert_refused(path, says):
      hub_folder.read_config(path)

  @parameterized.named_parameters((name, *case) for name, case in BAD_JSON.items())
  def test_bad_json(self, content, says):
    for path in (self.copy("plain") / CONFIG, self.copy("sharded") / INDEX):
      path.write_bytes(content)
      with self.assert_refused(path, says):
        if path.name == CONFIG:
          hub_folder.read_config(path)
        else:
          hub_folder.find_weights(path.parent)

  @parameterized.named_parameters(BAD_WEIGHTS.items())
  def test_bad_weights(self, damage):
    for path in (self.copy("plain") / WEIGHTS, self.copy("sharded") / SHARD):
      path.write_bytes(damage(path.read_bytes()))
      with self.assert_refused(path, "is not a whole safetensors file"):
        hub_folder.find_weights(path.parent)

  @parameterized.named_parameters((name, *case) for name, case in BAD_INDICES.items())
  def test_bad_index(self, changes, says):
    path = self.copy("sharded") / INDEX
    weight_map = json.loads(path.read_text())["weight_map"]
    change_json(path, weight_map=weight_map | changes)
    with self.assert_refused(path, says):
      hub_folder.find_weights(path.parent)

  def test_shard_whose_name_no_file_can_have(self):
    path, shard = self.copy("sharded") / INDEX, "a" * 300 + ".safetensors"
    change_json(path, weight_map={WTE: shard})
    says = self.assert_refused(path.with_name(shard), "is missing")
    with says:
      hub_folder.find_weights(path.parent)

  def test_index_without_a_map(self):
    path = self.copy("sharded") / INDEX
    change_json(path, weight_map=[])
    with self.assert_refused(path, "has no weight_map"):
      hub_folder.find_weights(path.parent)

  @parameterized.parameters(("plain", CONFIG), ("sharded", SHARD))
  def test_missing_file(self, name, missing):
    folder = self.copy(name)
    (folder / missing).unlink()
    with self.assert_refused(folder / missing, "is missing"):
      hub_folder.read_config(folder / CONFIG)
      hub_folder.find_weights(folder)

  def test_no_weights(self):
    folder = self.copy("plain")
    (folder / WEIGHTS).unlink()
    says = f"has neither {WEIGHTS} nor {INDEX}"
    with self.assert_refused(folder, says):
      hub_folder.find_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    ways_out = (
      "pytorch_model.bin is a pickle, which is never read",
      f'GPT2LMHeadModel.from_pretrained("{folder}").save_pretrained("NEW")',
      f'AutoTokenizer.from_pretrained("{folder}").save_pretrained("NEW")',
    )
    with self.assert_refused(folder, *ways_out):
      hub_folder.find_weights(folder)

  def test_a_file_is_no_folder(self):
    with self.assert_refused(GOLDEN / "plain" / CONFIG, "cannot be read"):
      hub_folder.read_config(GOLDEN / "plain" / CONFIG / CONFIG)

  def test_hub_id(self):
    with mock.patch("huggingface_hub.snapshot_download") as download:
      download.return_value = str(GOLDEN / "sharded")
      folder = hub_folder.find_folder("openai-community/gpt2")
    self.assertEqual(folder, GOLDEN / "sharded")
    download.assert_called_once()
    self.assertEqual(download.call_args.args, ("openai-community/gpt2",))

    needed = [CONFIG, "tokenizer.json", WEIGHTS, INDEX, SHARD, "vocab.json"]
    needed += ["merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
    needed += ["added_tokens.json", "generation_config.json", "chat_template.jinja"]
    needed += ["adapter_config.json", "adapter_model.safetensors"]
    others = ["README.md", "flax_model.msgpack", "tf_model.h5"]
    others += ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "optimizer.pt"]
    others += [
      "training_args.bin",
      "model-00001-of-00002.bin",
      "onnx/decoder_model.onnx",
    ]
    others += [f"checkpoint-5/{WEIGHTS}", "rust_model.ot", "model.ckpt", "64.tflite"]
    wanted = huggingface_hub.utils.filter_repo_objects(
      needed + others, allow_patterns=download.call_args.kwargs["allow_patterns"]
    )
    self.assertEqual(list(wanted), needed)

  @parameterized.parameters(CONFIG, WEIGHTS)
  def test_a_download_is_compared_with_its_checksum(self, changed):
    contents = {name: (GOLDEN / "plain" / name).read_bytes() for name in HUB}
    with hub_of(contents) as download:
      folder = hub_folder.find_folder("someone/model")
      self.assertEqual((folder / changed).read_bytes(), contents[changed])
    at = len(contents[changed]) // 2
    wrong = contents[changed][:at] + b"!" + contents[changed][at + 1 :]
    with hub_of(contents, {changed: wrong}) as download:
      with self.assert_refused("was not what the hub has", "is deleted"):
        hub_folder.find_folder("someone/model")
      self.assertEmpty(list(download.cache.rglob("*.incomplete")))
      download.served = contents
      folder = hub_folder.find_folder("someone/model")
      self.assertEqual((folder / changed).read_bytes(), contents[changed])

  def test_a_download_cut_short_is_not_there(self):
    contents = {name: (GOLDEN / "plain" / name).read_bytes() for name in HUB}
    cut = {WEIGHTS: contents[WEIGHTS][:-100]}
    with hub_of(contents, cut) as download, mock.patch("time.sleep"):  # it tries again
      with self.assert_refused("someone/model", "not to be had"):
        hub_folder.find_folder("someone/model")
      self.assertEmpty(list(download.cache.rglob(WEIGHTS)))

  def test_a_folder_comes_before_a_hub_id(self):
    with mock.patch("huggingface_hub.snapshot_download") as download:
      self.assertEqual(hub_folder.find_folder(str(self.scratch)), self.scratch)
    download.assert_not_called()

  @parameterized.parameters(OSError("offline\nsecond line"), RuntimeError())
  def test_neither_folder_nor_hub_id(self, error):
    with (
      mock.patch("huggingface_hub.snapshot_download", side_effect=error),
      self.assert_refused("gtp2", "no such folder, and not to be had from the Hugging"),
    ):
      hub_folder.find_folder("gtp2")

  def test_a_file_is_not_the_folder_that_holds_it(self):
    (file := self.scratch / hub_folder.WEIGHTS).touch()
    with self.assert_refused(str(file), "is a file: must be the folder that holds"):
      hub_folder.find_folder(str(file))

  def test_a_name_that_no_file_can_have(self):
    with self.assert_refused("a" * 300, "cannot be read"):
      hub_folder.find_folder("a" * 300)

  @parameterized.parameters(
    "./foo", "/no/such", "runs/no/such", "../x", "~/gpt2", "a b"
  )
  def test_a_name_that_is_no_hub_id_can_only_be_a_folder(self, name):
    with (
      mock.patch("huggingface_hub.snapshot_download") as download,
      self.assertRaises(InputError) as raised,
    ):
      hub_folder.find_folder(name)
    self.assertEqual(str(raised.exception), f"{name}: there is no such folder")
    download.assert_not_called()

"""What every config starts from, and what train does unless told otherwise: the toy.

    from gpt2_flax.training import default_config

    def get_config():
      config = default_config.get_config()
      config.model.num_layers = 4
      return config

is a config of one's own: `--config=FILE`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Every key there is, and what it means."""
  config = ConfigDict()
  config.init_from = ""  # weights to start from: a run, a folder, a hub id; "": random
  config.profile = ""  # folder for a trace of steps 10 to 15; "": none

  config.data = ConfigDict()
  config.data.name = "grammar"  # grammar, markov, induction or text
  config.data.vocabulary = 1  # times as many nouns, names, adjectives and verbs
  config.data.num_classes = 4  # that must agree: he, she, it, they, and made-up ones
  config.data.max_depth = 2  # relative clauses around a word
  config.data.num_topics = 1  # that words are dealt out among; a story keeps its own
  config.data.zipf = 0.0  # the r-th word comes as often as r**-zipf; 0: all alike
  config.data.seed = 0  # of the sentences drawn

  config.model = ConfigDict()
  config.model.vocab_size = 0  # 0: as many as the data has
  config.model.context_length = 48  # tokens the model sees at once
  config.model.num_layers = 2  # blocks, one on top of the other
  config.model.num_heads = 4  # attention heads in each block
  config.model.embed_dim = 64  # width of the residual stream
  config.model.mlp_dim = 0  # width inside the feed-forward; 0: 4 * embed_dim
  config.model.positional_encoding = "sinusoidal"  # or learned, rotary, alibi, none
  config.model.feed_forward = True  # False: attention-only blocks, for study
  config.model.attention = "explicit"  # or flash: one kernel, for accelerators
  config.model.dropout_rate = 0.0  # share of features left out; endless data needs 0
  config.model.dtype = "float32"  # of activations; bfloat16 on accelerators
  config.model.scan_layers = False  # True: deep models compile in one layer's time
  config.model.remat = "none"  # or computed twice, to save memory: scores, dots, full

  config.optimizer = ConfigDict()
  config.optimizer.name = "muon"  # adamw, lion or muon
  config.optimizer.learning_rate = 0.02  # the peak; adamw wants about 0.002
  config.optimizer.warmup_steps = 100  # linear from 0; then a cosine to 0
  config.optimizer.weight_decay = 0.01  # on matrices only
  config.optimizer.beta1 = 0.9  # averaging of gradients (muon: for its Adam)
  config.optimizer.beta2 = 0.99  # averaging of their squares (muon: for its Adam)
  config.optimizer.max_grad_norm = 1.0  # longer gradients are cut to this norm

  config.train = ConfigDict()
  config.train.num_steps = 1500  # optimizer steps
  config.train.batch_size = 32  # windows in a step, over all devices
  config.train.accumulation_steps = 1  # pieces a batch is worked through in
  config.train.seed = 0  # of initialisation, dropout and the order of data
  config.train.log_every_steps = 20  # how often metrics are written
  config.train.max_skipped_steps = 0  # bad ones left out; one more stops the run
  config.train.max_loss_jump = 0.0  # nats above its mean are bad; 0: only nan, inf

  config.finetune = ConfigDict()
  config.finetune.train = ""  # names of what learns, as blocks_1[01]/*,*/bias; "": all
  config.finetune.layer_decay = 1.0  # times this for each layer further down
  config.finetune.lora = ""  # kernels with an adapter, which learns alone; "": none
  config.finetune.lora_rank = 8  # of each adapter
  config.finetune.lora_alpha = 16.0  # adapters add lora_alpha / lora_rank * A B

  config.eval = ConfigDict()
  config.eval.every_steps = 300  # how often; and after the last step
  config.eval.num_windows = 512  # validation windows; 0: all (text only)
  config.eval.sample_tokens = 24  # length of the sample shown; 0: none

  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 300  # how often; and after the last step
  config.checkpoint.keep = 2  # how many of the latest stay
  config.checkpoint.keep_steps = ""  # whose params stay for good: 0,100,400 or log2

  config.mesh = ConfigDict()
  config.mesh.data = -1  # copies of the model; -1: one on each device left
  config.mesh.fsdp = 1  # devices that share a copy's parameters; divides embed_dim
  config.mesh.tensor = 1  # devices that share a layer's heads; divides num_heads

  return config.lock()

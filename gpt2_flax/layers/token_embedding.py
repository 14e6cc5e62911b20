"""A table with a row for each token.

Axes: V vocab_size, D embed_dim.
"""

from flax import linen as nn


class TokenEmbedding(nn.Embed):
  """A vector for each token.

  Devices may each hold a part of the table's width (see `training/mesh.py`). They
  gather the table where it is used, in the dtype that it is used in; without the
  constraints they would gather the whole batch instead.
  """

  def setup(self):
    super().setup()
    embedding_VD = self.embedding.astype(self.dtype)
    # Still in parts: else the compiler gathers float32, and converts it afterwards.
    embedding_VD = nn.with_logical_constraint(embedding_VD, ("vocab", "embed"))
    self.embedding = nn.with_logical_constraint(embedding_VD, ("vocab", None))

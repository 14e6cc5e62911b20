"""A table with a row for each token.

Axes: V vocab_size, D embed_dim.
"""

from flax import linen as nn


class TokenEmbedding(nn.Embed):
  """A vector for each token.

  Devices that share the table by its width (see `training/mesh.py`) bring it together
  where it is used, in place of the whole batch, and in the dtype that it is used in.
  """

  def setup(self):
    super().setup()
    embedding_VD = self.embedding.astype(self.dtype)
    # Still in parts: else the compiler brings together float32, and then converts it.
    embedding_VD = nn.with_logical_constraint(embedding_VD, ("vocab", "embed"))
    self.embedding = nn.with_logical_constraint(embedding_VD, ("vocab", None))

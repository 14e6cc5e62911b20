"""gpt2_flax/doors/export.py, in a checkout."""

from gpt2_flax.doors import command_line, export

if __name__ == "__main__":
  command_line.run(export.main)

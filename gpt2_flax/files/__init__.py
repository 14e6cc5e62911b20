"""How files are written, read and kept."""

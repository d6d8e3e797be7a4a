"""GGUF files, whichever engine runs them: the header, how tensors are stored, and what is wrong with a broken file."""

"""Stage 8: turn a batch of sequences into tokens. Each engine is one folder behind the port in base."""

"""Stage 2, too: other people's protocols. Each is a pure translation of requests, and a projection of the log."""

"""Stage 8: fold events into sentences, metrics and traces."""

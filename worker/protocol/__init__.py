"""Stage 2: turn bytes into frames, frames into commands, log records into frames. No I/O, no clock."""

"""Stage 7: decide which sequences share the next engine step. Runs in the engine process."""

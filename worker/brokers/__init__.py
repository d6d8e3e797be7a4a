"""Stage 5: carry work to engines and their events back. Each module but base is one way to reach an engine."""

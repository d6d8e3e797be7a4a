"""Stage 4: say what a job may ask for. Each module but `base` and `fields` is one operation."""

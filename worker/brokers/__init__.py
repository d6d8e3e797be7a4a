"""Stage 5: carry work to engines and their events back. `base` is the port, `local` the way to a process here."""

"""Stage 3: own the life of a job and its ordered log. Only `service` writes to a log."""

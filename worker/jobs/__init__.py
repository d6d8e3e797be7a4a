"""Stage 3: own the life of a job and its ordered log. Only `jobs.service` writes to a log."""

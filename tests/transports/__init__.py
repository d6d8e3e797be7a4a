"""Ways in, without a process."""

"""What a browser shows: the playground and the reference."""

"""HTTP calls, one module per family."""

"""Stage 1: carry bytes between a client and the protocol. Each module but base is one way in."""

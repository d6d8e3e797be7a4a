"""Stage 6: the processes beside the gateway: how they are started, what they are sent, and what runs in them."""

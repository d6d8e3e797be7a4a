"""Stage 1: carry bytes between a client and a protocol.

The floor is what every way in shares: `gateway`, `connection`, `wake`, `timer` and `correlation`. `access` decides who
may connect and as whom, `front` holds the listening socket and the long-lived connections, `routes` the HTTP calls,
and `pages` what a browser shows.
"""

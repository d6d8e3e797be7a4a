"""Stage 1: carry bytes between a client and a protocol.

What all transports share: `gateway`, `connection`, `delivery`, `room`, `wake`, `timer` and `correlation`. `access`
decides who may connect and as whom, `front` holds the listening socket and the long-lived connections, `routes` the
HTTP calls, and `pages` what a browser shows.
"""

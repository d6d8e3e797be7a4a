"""WebSockets: an opening `handshake`, then a `websocket`, which carries the messages of a dialect in `frames`.

`sessions` has the port of the dialects; ours is `jobwire`.
"""

"""Stage 2: Jobwire's own protocol. Bytes to frames, frames to commands, log records to frames. No I/O, no clock.

In: ``decoding`` makes frames (``interpret`` reads WebSocket messages, ``create_of_post`` POST bodies), ``frames`` are
their types, ``creating`` makes a job of a ``create`` frame, ``credentials`` are requests for access tokens. ``session``
is one WebSocket client; ``host`` is what it needs of the worker, ``meter`` bounds its rate, ``closing`` says why its
connection ends.

Out: ``reading`` is a job's log as frames, from a cursor; ``subscriptions`` are the readers of one client, ``pacing``
their windows and pauses, ``sse`` the form of an event stream, ``views`` the answers over HTTP, ``paging`` which jobs a
page has. ``tally`` counts.

``describe`` makes OpenAPI, AsyncAPI, JSON Schema and TypeScript of all this; ``corpus`` has an example of every frame.
"""

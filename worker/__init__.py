"""Jobwire: the realtime LLM worker. A job is an ordered log of events; everything else reads or writes such a log.

The life of a job, told by folder:

1. ``transports`` carry bytes between a client and the protocol: HTTP, SSE, WebSocket.
2. ``protocol`` turns bytes into frames and frames into commands, and log records into frames. No I/O.
3. ``jobs`` own the life of a job and its ordered log: the only place that writes to a log.
4. ``operations`` say what a job may ask for.
5. ``brokers`` carry work to an engine, wherever it runs, and its events back.
6. ``scheduler`` decides which sequences share the next engine step. It lives in the engine process.
7. ``engines`` turn a batch of sequences into tokens.
8. ``observers`` fold events into sentences, metrics and traces.

``events`` and ``errors`` are the words that all of them share, ``config`` the settings, ``app`` the one module that
knows every part, ``cli`` the commands. Imports go in one direction only: cli > app > transports > protocol | observers
> jobs > operations > brokers > scheduler > engines > config > events > errors.
"""

__version__ = "0.2.0"

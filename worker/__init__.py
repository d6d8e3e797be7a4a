"""Jobwire: the realtime LLM worker. A job is an ordered log of events; everything else reads or writes such a log.

Each folder is one stage of a job's life (numbered) or one plug-in point (its port named):

1. ``transports`` carry bytes between a client and a protocol: listener, WebSockets, event streams, routes, pages.
2. ``protocol`` is Jobwire's own: frames, sessions, and the log as frames. ``dialects`` are other people's protocols,
   each a translation of requests and a projection of the log. No I/O in either.
3. ``jobs`` own the life of a job and its ordered log: the only place that writes to a log.
4. ``operations`` say what a job may ask for (port: ``operations.base``).
5. ``brokers`` carry work to an engine, wherever it runs, and its events back (port: ``brokers.base``).
6. ``processes`` are those beside the gateway: how they are started, and the messages they exchange with it.
7. ``scheduler`` decides which sequences share the next engine step.
8. ``engines`` turn a batch of sequences into tokens (port: ``engines.base``).

``observers`` fold events into sentences, metrics, log lines and spans. ``bundled`` is the bundled model and how it was
made; ``deploy`` and ``docs`` are files and pages for operators and users. ``requests``, ``events`` and ``errors`` are
the words that all of them share, ``config`` the settings, ``app`` the one module that knows every part, ``cli`` the
commands. ``printable`` makes what strangers wrote fit for terminals and logs.

Imports go in one direction only: cli > app > transports > protocol | dialects | observers > jobs > operations >
brokers > processes > scheduler > engines > config > requests > events > errors > printable.
"""

__version__ = "0.3.0"

"""The dialect of the older worker: `stream` encodes a job's log, `problems` its errors, `deprecation` ends its paths.

Its requests need no translation: operation `infer` has the same names for the same fields, and ignores the rest
(`hive_id`, `device`, `worker_id`, `stream`), without naming them as it does to others. What else of the older worker
lives elsewhere, and why:

- `config.sources`, LEGACY_FLAGS: the flags that the old fleet starts a worker with; only settings know flags.
- `observers.heartbeat`: the sign of life that it posts to the fleet's queen; a client of HTTP, not a translation.
- `protocol.views`, `LoadingItem` and the shapes of /health and /v1/ready: old probes and new ones read the same bodies.
- `transports.front.eventstream`: how this stream's chunks are sent, one per event and without comments.
- `transports.routes.legacy`: which request speaks this dialect, and its stream; `transports.access.guards`: the
  headers that announce its end.
- `protocol.describe`: the deprecated routes and their schemas, beside all others in the documents.
"""

"""Stage 3: own the life of a job and its ordered log. Only ``service`` writes to a log.

- A job: ``job``, its ``log``, what may happen to it (``lifecycle``) and to its choices (``places``), its
  ``correlation``.
- All jobs: ``service`` creates and ends them; ``registry`` finds them, with a ``listing`` per owner; ``agenda`` has
  those on which time acts by itself; ``clock`` is the time.
- To the engine and back: ``handing`` submits choices under leases.
- To those who watch: ``news`` passes records on; ``remarks`` are sentences in the log, ``narration`` is what becomes of
  them.
- ``limits``: how much each owner may use.
"""

"""HTTP calls, one module per family: `jobs`, `tokens` and `operators`. `application` puts them together.

`bodies` reads what a request brings, `answers` makes what it gets, `problems` what it gets instead if it is refused,
and `legacy` knows which of the two dialects it speaks.
"""

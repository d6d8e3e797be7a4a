"""HTTP calls, one module per family: `jobs`, `tokens` and `operators`. `application` puts them together.

`intake` bounds what a request brings, `bodies` reads it, `answers` makes what it gets, `problems` what it gets instead
if it is refused, and `legacy` knows which of the two dialects it speaks.
"""

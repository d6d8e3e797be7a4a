"""Pages for browsers: the playground and the reference. `tagged` answers with 304 if a page is unchanged."""

"""The dialect of the older worker: its stream, its errors, and how its paths go away, release by release."""

"""What is patched in Hypercorn. `patches` holds the table of it and installs it; the rest are the replacements."""

"""A small closed world, text about it, and tasks on that text: what `tiny_gemma` is made from."""

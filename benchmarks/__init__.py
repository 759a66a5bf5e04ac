"""Measurements of kerora and its rivals; see `python -m benchmarks.finetune --help`."""

"""The ways to fine-tune that are compared, each run in a process of its own."""

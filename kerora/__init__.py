"""Fast, durable low-rank fine-tuning of KerasHub language models."""

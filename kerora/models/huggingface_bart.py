"""What KerasHub's BART leaves out of a Hugging Face configuration."""

from __future__ import annotations

from typing import Any

from kerora.models.errors import inexpressible


def check_bart(config: dict[str, Any]) -> None:
    """Refuse what KerasHub's BART cannot compute.

    Args:
        config: The `config.json` of a Hugging Face folder.

    Raises:
        ModelSourceError: If it holds such a value; names the field.
    """
    if config.get("scale_embedding", False):
        raise inexpressible("bart", "scale_embedding", config["scale_embedding"], False)
    heads = config["encoder_attention_heads"]
    if config.get("decoder_attention_heads", heads) != heads:
        expected = f"{heads}, the encoder's"
        received = config["decoder_attention_heads"]
        raise inexpressible("bart", "decoder_attention_heads", received, expected)

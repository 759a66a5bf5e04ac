"""Models that kerora loads no part of for itself, and why."""

from __future__ import annotations

from typing import Any

from kerora.models.errors import ModelSourceError

_WHOLE = (
    "So kerora loads no language model of it for text alone. Load all of it with "
    "`keras_hub.models.CausalLM.from_preset`, and give what you get to `kerora.adapt`; it has not "
    "been checked against `transformers`."
)
_REASONS = {
    "paligemma": "whose prompts are read in both directions: its processor marks them so "
    "(`token_type_ids`), and a causal language model reads forwards alone. " + _WHOLE,
    "blip-2": "which answers from the query tokens of an image; its language model is an OPT or "
    "Flan-T5 that was left as it is published by itself. " + _WHOLE,
    "gemma4_assistant": "which drafts tokens from the hidden states, keys and values of the model "
    "that it assists, and has no layers for keys and values: by itself it computes nothing that "
    "could be trained. Adapt the model that it assists.",
}


def check_separable(config: dict[str, Any], source: str) -> None:
    """Refuse a model that is nothing without what kerora does not load.

    Args:
        config: Its `config.json`.
        source: Where it comes from, for the message.

    Raises:
        ModelSourceError: If it is one.
    """
    family = config["model_type"]
    if family in _REASONS:
        raise ModelSourceError(f"'{source}' is of type '{family}', {_REASONS[family]}")

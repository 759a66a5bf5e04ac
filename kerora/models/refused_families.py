"""Families that KerasHub reads from Hugging Face folders and kerora does not, and why."""

from __future__ import annotations

from collections.abc import Sequence

from kerora.models.errors import ModelSourceError

# Models that see whose language models alone would not be themselves.
_INSEPARABLE = {
    "paligemma": "whose prompts are read in both directions: its processor marks them so "
    "(`token_type_ids`), and a causal language model reads forwards alone",
    "blip-2": "which answers from the query tokens of an image; its language model is an OPT or "
    "Flan-T5 that was left as it is published by itself",
}
_OTHERWISE_COMPUTED = {
    "sam3_video": "KerasHub's SAM 3 reads a text in both directions, and attends to a token for "
    "boxes where none are given; `transformers` reads it forwards, and leaves that token out",
}


def check_separable(source: str, model_type: str) -> None:
    """Refuse a model of which no language model can be loaded alone.

    Args:
        source: The folder or handle, for the message.
        model_type: The type that its `config.json` gives.

    Raises:
        ModelSourceError: If it is one.
    """
    if model_type in _INSEPARABLE:
        raise ModelSourceError(
            f"'{source}' is of type '{model_type}', {_INSEPARABLE[model_type]}. "
            "So kerora loads no language model of it for text alone. Load all of it with "
            "`keras_hub.models.CausalLM.from_preset`, and give what you get to `kerora.adapt`; "
            "it has not been checked against `transformers`."
        )


def unchecked(source: str, model_type: str, checked: Sequence[str]) -> ModelSourceError:
    """The error for a backbone whose type is not among those that were checked.

    Args:
        source: The folder or handle.
        model_type: The type that its `config.json` gives.
        checked: The types that were.
    """
    reason = _OTHERWISE_COMPUTED.get(model_type)
    known = "" if reason is None else f" ({reason})"
    return ModelSourceError(
        f"kerora has not been checked against `transformers` for models of type '{model_type}', so "
        f"'{source}' might give other answers{known}. Checked are: {', '.join(checked)}, and the "
        "causal language models of `load_task`."
    )

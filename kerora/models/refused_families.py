"""Families that KerasHub reads from Hugging Face folders and kerora does not, or not as a language
model, and why."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kerora.json_file import shown
from kerora.models.converters import text_config
from kerora.models.errors import ModelSourceError

_WHOLE = (
    "So kerora loads no language model of it for text alone. Load all of it with "
    "`kerora.models.loading.load_backbone`, put KerasHub's task around it (a `PaliGemmaCausalLM`, "
    "`BLIP2CausalLM` or `BLIP2Seq2SeqLM` of `keras_hub.models`), and give that to `kerora.adapt`."
)
# Models that see whose language models alone would not be themselves.
_INSEPARABLE = {
    "paligemma": "whose prompts are read in both directions: its processor marks them so "
    f"(`token_type_ids`), and a causal language model reads forwards alone. {_WHOLE}",
    "blip-2": "which answers from the query tokens of an image; its language model is an OPT or "
    f"Flan-T5 that was left as it is published by itself. {_WHOLE}",
}
_REFUSED = {
    "gemma4_assistant": "which drafts tokens from the hidden states, keys and values of the model "
    "that it assists, and has no layers for keys and values: by itself it computes nothing that "
    "could be trained. Adapt the model that it assists.",
}


_UNHEEDED = ("use_bidirectional_attention", "gemma2")


def check_language_model(source: str, config: dict[str, Any]) -> None:
    """Refuse a model of which no language model can be loaded alone, or that reads its text in both
    directions.

    Args:
        source: The folder or handle, for the message.
        config: Its `config.json`.

    Raises:
        ModelSourceError: If it is one.
    """
    _refuse(source, config["model_type"], {**_INSEPARABLE, **_REFUSED})
    text = text_config(config)
    for field, causal in (
        ("is_causal", (None, True)),
        # "vision": the tokens of one image see each other, and no text does.
        ("use_bidirectional_attention", (None, False, "vision")),
    ):
        # Gemma 2 has the latter too, and reads forwards in `transformers` whatever it says.
        if text.get(field) not in causal and (field, text.get("model_type")) != _UNHEEDED:
            raise ModelSourceError(
                f"'{source}' reads its text in both directions (`{field}`: {shown(text[field])}) "
                "as embedding models do, and a causal language model forwards alone. Loaded "
                "regardless, it would give other answers."
            )


def check_backbone(source: str, model_type: str, checked: Collection[str]) -> None:
    """Refuse a backbone that was not checked against `transformers`, or was and differs.

    Args:
        source: The folder or handle, for the message.
        model_type: The type that its `config.json` gives.
        checked: The types that were checked and agree.

    Raises:
        ModelSourceError: If its type is not among them.
    """
    _refuse(source, model_type, _REFUSED)
    if model_type not in checked:
        raise ModelSourceError(
            f"kerora has not been checked against `transformers` for models of type "
            f"'{model_type}', so '{source}' might give other answers. Checked are: "
            f"{', '.join(checked)}, and the causal language models of `load_task`."
        )


def _refuse(source: str, model_type: str, reasons: dict[str, str]) -> None:
    if model_type in reasons:
        raise ModelSourceError(f"'{source}' is of type '{model_type}', {reasons[model_type]}")

"""What `transformers` loads a family as, which gives its modules their first names."""

from __future__ import annotations

import dataclasses

import keras

from kerora.adapters.saved_model import own_class


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """A class of `transformers` models.

    Attributes:
        task_type: PEFT's `task_type`.
        prefix: What stands before the names of the backbone's modules.
        head: Name of the module that gives the logits; None where there is none.
    """

    task_type: str
    prefix: str
    head: str | None


_CAUSAL = ModelKind("CAUSAL_LM", "model.", "lm_head")
_ENCODER = ModelKind("FEATURE_EXTRACTION", "", None)
_SEQ2SEQ = ModelKind("SEQ_2_SEQ_LM", "model.", None)
_KINDS = {
    "GPT2Backbone": ModelKind("CAUSAL_LM", "transformer.", "lm_head"),
    "BertBackbone": _ENCODER,
    "RobertaBackbone": _ENCODER,
    "XLMRobertaBackbone": _ENCODER,
    "AlbertBackbone": _ENCODER,
    "DistilBertBackbone": _ENCODER,
    "ESMBackbone": _ENCODER,
    "BartBackbone": _SEQ2SEQ,
    "T5GemmaBackbone": _SEQ2SEQ,
}


def model_kind(backbone: keras.Model) -> ModelKind:
    """How `transformers` loads this family: causal language models with `AutoModelForCausalLM`,
    encoders with `AutoModel`, encoders with decoders with `AutoModelForSeq2SeqLM`."""
    return _KINDS.get(own_class(backbone).__name__, _CAUSAL)

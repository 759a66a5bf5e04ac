"""What `transformers` loads a family as, which gives its modules their first names."""

from __future__ import annotations

import dataclasses
import re

import keras

from kerora.adapters.saved_model import own_class


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """A class of `transformers` models.

    Attributes:
        task_type: PEFT's `task_type`; None for images, which PEFT has no type for.
        prefix: What stands before the names of the backbone's modules.
        head: Name of the module that gives the logits; None where there is none.
        other_prefixes: What stands there instead below other heads, or in older adapters.
        renamed: Regular expressions, and what the model of `transformers` has in place of what
            matches them in the name of a file's tensor; older versions of it do not rename.
        adapts_tables: Whether PEFT adapts a table as kerora does; it does not where encoder and
            decoder share one, or where what it looks up is not what its module is asked for.
        left_out: Linear layers that KerasHub leaves out, and whose names end as those of others do.
    """

    task_type: str | None
    prefix: str
    head: str | None
    other_prefixes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    adapts_tables: bool = True
    left_out: tuple[str, ...] = ()


_DINOV2_RENAMED = (
    (r"mlp\.weights_out", "mlp.down_proj"),
    (r"attention\.(?:attention|self)\.([qkv])(uery|ey|alue)\b", r"attention.\1_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
)
_SWIN_RENAMED = (
    *_DINOV2_RENAMED,
    (r"attention\.self\.(?=relative_position_bias_table)", "attention.relative_position_bias."),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
# A module of files, and the modules of the model whose rows it holds one after another.
_WHOLE = "mlp.weights_in"
_PARTS = ("mlp.gate_proj", "mlp.up_proj")
_VIT_RENAMED = (*_SWIN_RENAMED, (r"encoder\.layer\.", "layers."))
_PALIGEMMA_RENAMED = (
    (r"vision_tower\.vision_model\.", "vision_tower."),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(?=vision_tower\.|multi_modal_projector\.)", "model."),
)
# The detector inside a SAM 3 for videos, in whose file it is stored.
_SAM3_RENAMED = ((r"^detector_model\.", ""),)
_ALL_RENAMED = (*_VIT_RENAMED, *_PALIGEMMA_RENAMED, *_SAM3_RENAMED)
_CAUSAL = ModelKind("CAUSAL_LM", "model.", "lm_head")
# The language model of a model that sees.
_INNER = ModelKind(
    "CAUSAL_LM", "model.language_model.", "lm_head", ("model.", "language_model.model.")
)
_SEQ2SEQ = ModelKind("SEQ_2_SEQ_LM", "model.", None, adapts_tables=False)


def _encoder(name: str) -> ModelKind:
    return ModelKind("FEATURE_EXTRACTION", "", None, (f"{name}.",))


def _image_encoder(renamed: tuple[tuple[str, str], ...], *names: str) -> ModelKind:
    return ModelKind(None, "", None, tuple(f"{name}." for name in names), renamed)


_KINDS = {
    "GPT2Backbone": ModelKind("CAUSAL_LM", "transformer.", "lm_head"),
    "BertBackbone": _encoder("bert"),
    "RobertaBackbone": _encoder("roberta"),
    "XLMRobertaBackbone": _encoder("roberta"),
    "AlbertBackbone": _encoder("albert"),
    "DistilBertBackbone": _encoder("distilbert"),
    "ESMBackbone": _encoder("esm"),
    "BartBackbone": _SEQ2SEQ,
    "T5GemmaBackbone": _SEQ2SEQ,
    "T5Gemma2Backbone": dataclasses.replace(
        _SEQ2SEQ, renamed=((r"^encoder\.(?=embed_tokens|layers|norm)", "encoder.text_model."),)
    ),
    "ViTBackbone": _image_encoder(_VIT_RENAMED, "vit"),
    "DeiTBackbone": _image_encoder(_VIT_RENAMED, "deit"),
    "DINOV2Backbone": _image_encoder(_DINOV2_RENAMED, "dinov2", "dinov2_with_registers"),
    "SwinTransformerBackbone": _image_encoder(_SWIN_RENAMED, "swin"),
    "MetaCLIP2Backbone": ModelKind(None, "", None),
    "DINOV3Backbone": _image_encoder(((r"^layer\.", "model.layer."),)),
    "PaliGemmaBackbone": ModelKind("CAUSAL_LM", "", "lm_head", renamed=_PALIGEMMA_RENAMED),
    # PEFT's types of tasks hand on no images to BLIP-2.
    "BLIP2Backbone": ModelKind(None, "", "language_model.lm_head", adapts_tables=False),
    # Most of its tables are no tables of words, and are read past any adapter.
    "SAM3PromptableConceptBackbone": ModelKind(
        None,
        "",
        None,
        renamed=_SAM3_RENAMED,
        adapts_tables=False,
        left_out=("text_encoder.text_projection",),
    ),
}


def model_kind(backbone: keras.Model) -> ModelKind:
    """How `transformers` loads this family: causal language models with `AutoModelForCausalLM`,
    encoders with `AutoModel`, encoders with decoders with `AutoModelForSeq2SeqLM`.

    A backbone that was loaded as the language model of a model that sees has the type of the latter
    as `language_model_of`, and the names that its layers have there.
    """
    is_inner = getattr(backbone, "language_model_of", None) is not None
    return _KINDS.get(own_class(backbone).__name__, _INNER if is_inner else _CAUSAL)


def name_in_model(name: str, renamed: tuple[tuple[str, str], ...] = _ALL_RENAMED) -> str:
    """What a model of `transformers` calls a file's tensor, or one of an older version's modules.

    Args:
        name: The name in the file.
        renamed: As in `ModelKind`. By default that of all models that take images, to compare names
            of which both are turned.
    """
    for pattern, replacement in renamed:
        name = re.sub(pattern, replacement, name)
    return name


def parts_of_name(name: str) -> tuple[str, ...]:
    """What a model of `transformers` calls the parts of a file's tensor, or of an older version's
    module, in the order of their rows; the name itself but for DINOv2's SwiGLU."""
    if f".{_WHOLE}." not in f".{name}.":
        return (name,)
    return tuple(name.replace(_WHOLE, part) for part in _PARTS)

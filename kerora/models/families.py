"""What differs between the model families of KerasHub, as far as training is concerned."""

from typing import Any

# Every example of a packed row gives the values that it gives alone in a row of its own.
_ROTARY = (
    "GemmaBackbone",
    "Gemma3Backbone",
    "Gemma3nBackbone",
    "Gemma4Backbone",
    "LlamaBackbone",
    "MistralBackbone",
    "QwenBackbone",
    "Qwen3Backbone",
    "Phi3Backbone",
    "GptOssBackbone",
    "SmolLM3Backbone",
    "GPTNeoXBackbone",
)
_ROUTED = ("MixtralBackbone", "QwenMoeBackbone", "Qwen3MoeBackbone")
_ALIBI = ("BloomBackbone",)
_LEARNED = ("GPT2Backbone", "OPTBackbone")
_REFUSED = {
    "FalconBackbone": "it counts its ALiBi positions from the padding mask",
    "RWKV7Backbone": "its recurrent state runs on from one example into the next",
    "Qwen3_5Backbone": "its linear attention's state runs on from one example into the next",
    "Qwen3_5MoeBackbone": "its linear attention's state runs on from one example into the next",
}


def packing_support(backbone: Any, sequence_length: int | None = None) -> tuple[bool, str]:
    """Whether several examples may share a row of this model, and why or why not.

    Args:
        backbone: a KerasHub backbone.
        sequence_length: the length of a packed row; asked for by Phi-3's long-context scaling.

    Returns:
        `(supported, reason)`; the reason is a clause that completes "X can be packed: ..." or
        "X cannot be packed: ...".

    Example:

        supported, reason = packing_support(model.backbone, 512)
    """
    names = [cls.__name__ for cls in type(backbone).__mro__]
    refused = next((_REFUSED[name] for name in names if name in _REFUSED), None)
    if refused:
        return False, refused
    if getattr(backbone, "vision_encoder", None) is not None:
        return False, "its images attend in both directions and belong to whole rows"
    if getattr(backbone, "use_bidirectional_attention", False):
        return False, "it attends in both directions, as an embedding model does"
    if any(name in _LEARNED for name in names):
        return True, "its learned positions restart with each example"
    if any(name in _ALIBI for name in names):
        return True, "its ALiBi biases differ by a constant only, which a softmax ignores"
    if any(name in _ROUTED for name in names):
        return True, (
            "its rotary positions are relative and experts are chosen token by token; the router's "
            "auxiliary loss is a mean over the batch's rows and so depends on how they are filled"
        )
    if any(name in _ROTARY for name in names):
        return _rotary_support(backbone, sequence_length)
    return False, f"how {type(backbone).__name__} uses its padding mask is not known to kerora"


def decoder_blocks(backbone: Any) -> list[Any]:
    """The decoder blocks of a KerasHub backbone, in order; none where it has no list of them."""
    # Gemma 3n's are those of a model inside of it.
    names = [cls.__name__ for cls in type(backbone).__mro__]
    holder = backbone.language_model if "Gemma3nBackbone" in names else backbone
    return list(getattr(holder, "transformer_layers", None) or [])


def _rotary_support(backbone: Any, sequence_length: int | None) -> tuple[bool, str]:
    if getattr(backbone, "rope_scaling_type", None) == "su":
        limit = backbone.pretraining_sequence_length
        if sequence_length is None or sequence_length > limit:
            return False, (
                f"its rotary frequencies change for rows longer than {limit} tokens; "
                f"pack rows of at most {limit} (received: {sequence_length})"
            )
    return True, "its rotary positions are relative"

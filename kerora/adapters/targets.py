"""Which layers of a model an adapter goes on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import keras

from kerora.adapters.errors import AdapterError
from kerora.adapters.host import HOST_TYPES
from kerora.adapters.patterns import matches_whole
from kerora.adapters.target_hints import target_hint

QUERY_VALUE_NAMES = (
    "query",
    "value",
    "query_dense",
    "value_dense",
    "query_projector",
    "value_projector",
    "q_proj",
    "v_proj",
    "query_key_value",
    "attention_qkv",
    "in_proj_qkv",
    "receptance",
)
# Small heads that steer rather than project: routers, gates of one expert, mixing coefficients; and
# the one that makes logits (a Flan-T5's), which PEFT leaves out too.
_NOT_PROJECTIONS = (
    "router_dense",
    "router_gate",
    "modality_router",
    "sparse_feedforward_gate_dense",
    "shared_expert_gate",
    "shared_expert_gate_dense",
    "correction_coefs",
    "prediction_coefs",
    "lm_head",
)
# Words in the names of layers that hold no text decoder ("blip2q_former" is BLIP-2's Q-Former).
_TOWERS = ("vision", "image", "vit", "audio", "former")
# What the classes of both encoders are called where texts are compared with images.
_TWIN_TOWERS = ("TextEncoder", "VisionEncoder")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layer that can hold an adapter, under a path that is unique in its model.

    Attributes:
        layer: The Dense, EinsumDense or Embedding.
        path: Its Keras path; where several layers share one, `-1`, `-2`… tell them apart.
        inside: Paths of the layers that hold it, outermost first.
    """

    layer: keras.layers.Layer
    path: str
    inside: tuple[str, ...]


def sublayers(layer: keras.layers.Layer) -> list[tuple[keras.layers.Layer, tuple[str, ...]]]:
    """Every layer below `layer` once, depth first in creation order, with its ancestors' names."""
    found: list[tuple[keras.layers.Layer, tuple[str, ...]]] = []
    seen: set[int] = set()

    def visit(parent: keras.layers.Layer, inside: tuple[str, ...]) -> None:
        # Keras has no public list of the layers that a layer holds.
        for child in parent._layers:
            if id(child) not in seen:
                seen.add(id(child))
                found.append((child, inside))
                visit(child, (*inside, child.name))

    visit(layer, ())
    return found


def candidates(model: keras.layers.Layer) -> list[Candidate]:
    """The layers of `model` that can hold an adapter, in a fixed order."""
    hosts = [(la, inside) for la, inside in sublayers(model) if isinstance(la, HOST_TYPES)]
    repeated = {path for path, n in Counter(la.path for la, _ in hosts).items() if n > 1}
    counts: Counter[str] = Counter()
    result = []
    for layer, inside in hosts:
        path = layer.path
        if path in repeated:
            counts[path] += 1
            path = f"{path}-{counts[path]}"
        result.append(Candidate(layer, path, inside))
    return result


def select(
    model: keras.layers.Layer,
    targets: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None = None,
) -> list[Candidate]:
    """The layers that `targets` names and `exclude` does not.

    Args:
        model: A built model or layer.
        targets: As in `LoraConfig`.
        exclude: As in `LoraConfig`.

    Returns:
        At least one candidate.

    Raises:
        AdapterError: If a pattern matches no layer, or all matches are excluded.
    """
    surplus = _surplus(model)
    everything = [c for c in candidates(model) if id(c.layer) not in surplus]
    usual = [c for c in everything if _is_text(c)] if _is_language_model(model) else everything
    if targets is None:
        chosen = [c for c in usual if c.layer.name in QUERY_VALUE_NAMES]
        if not chosen:
            raise AdapterError(
                "No query or value projection was found in this model, so `targets` must be "
                f"given. Layers that can hold an adapter: {_names(everything)}"
            )
    elif targets == "all-linear":
        chosen = [c for c in usual if _is_linear(c)]
        if not chosen:
            raise AdapterError("`targets='all-linear'` found no Dense or EinsumDense layer.")
    else:
        chosen = _matching(everything, targets, "targets")
    if exclude is not None:
        excluded = {id(c.layer) for c in _matching(everything, exclude, "exclude")}
        chosen = [c for c in chosen if id(c.layer) not in excluded]
        if not chosen:
            raise AdapterError(f"`exclude` leaves no target. Received: exclude={exclude!r}")
    return chosen


def _surplus(model: keras.layers.Layer) -> set[int]:
    """The identities of projections to keys and values in layers that take those of another.

    KerasHub's Gemma 3n builds them all the same. `transformers` has none there.
    """
    return {
        id(child)
        for parent, _ in sublayers(model)
        if getattr(parent, "is_kv_shared_layer", False)
        for child in parent._layers
        if child.name in ("k_proj", "v_proj")
    }


def _matching(
    everything: list[Candidate], patterns: str | Sequence[str], argument: str
) -> list[Candidate]:
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    chosen: dict[int, Candidate] = {}
    for pattern in patterns:
        matched = [c for c in everything if _matches(pattern, c)]
        if not matched:
            hint = target_hint(pattern, sorted({c.layer.name for c in everything}))
            raise AdapterError(
                f"`{argument}`: no layer matches {pattern!r}.{hint} Layers that can hold an "
                f"adapter: {_names(everything)}"
            )
        chosen.update({id(c.layer): c for c in matched})
    return [c for c in everything if id(c.layer) in chosen]


def _matches(pattern: str, candidate: Candidate) -> bool:
    path, name = candidate.path, candidate.layer.name
    if pattern in (name, path) or path.endswith("/" + pattern):
        return True
    return any(matches_whole(pattern, text) for text in (name, path))


def _is_linear(candidate: Candidate) -> bool:
    layer = candidate.layer
    return not isinstance(layer, keras.layers.Embedding) and layer.name not in _NOT_PROJECTIONS


def _is_language_model(model: keras.layers.Layer) -> bool:
    # Of a model that reads no text, or compares texts with images, towers are what there is to
    # adapt.
    inputs = getattr(model, "inputs", None)
    takes_tokens = not inputs or any("int" in tensor.dtype for tensor in inputs)
    classes = [type(layer).__name__ for layer, _ in sublayers(model)]
    has_twins = all(any(name.endswith(tower) for name in classes) for tower in _TWIN_TOWERS)
    return takes_tokens and not has_twins


def _is_text(candidate: Candidate) -> bool:
    return not any(word in _TOWERS for name in candidate.inside for word in name.split("_"))


def _names(everything: list[Candidate]) -> str:
    counts = Counter(c.layer.name for c in everything)
    return ", ".join(f"{name} (x{n})" for name, n in counts.items()) or "none"

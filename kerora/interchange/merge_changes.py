"""Which tensors of a Hugging Face folder an adapter changes, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from kerora.adapters.errors import AdapterError
from kerora.interchange.contents import (
    TENSOR_FILE,
    AdapterContents,
    is_factor,
    name_in_base,
)
from kerora.interchange.model_kinds import name_in_model
from kerora.models.converters import text_config
from kerora.models.huggingface_folder import TensorPlace, tensor_places

BLOCK = 1 << 24
"""Bytes of float32 that are summed at a time."""

_HEADS = ("lm_head", "embed_out", "output_layer", "output")
# Embeddings that no head is tied to.
_OTHER_TABLES = (
    "wpe",
    "embed_positions",
    "position_embedding",
    "position_embeddings",
    "token_type_embeddings",
    "embed_tokens_per_layer",
)
# Models that give no logits of tokens.
_WITHOUT_HEAD = ("metaclip_2", "sam3", "sam3_video")
# Models whose matrices are `transformers.pytorch_utils.Conv1D`, stored as `(in, out)`.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of one tensor: first replaced, where `whole` is given, then added to.

    Attributes:
        whole: Where its new values lie.
        left: Left factor of the delta, `(rows, rank)`, float32.
        right: Right factor, `(rank, columns)`, float32.
        scale: Factor on `left · right`.
    """

    whole: TensorPlace | None = None
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    scale: float = 1.0


def tensor_changes(
    contents: AdapterContents, places: Mapping[str, TensorPlace], config: dict[str, Any]
) -> dict[str, Change]:
    """The change of each tensor that an adapter touches, by its name in the base.

    Args:
        contents: The adapter.
        places: The tensors of the base.
        config: The base's `config.json`.

    Raises:
        AdapterError: If a tensor of the adapter has no place in the base, or the merged model could
            not compute what the adapted one does.
    """
    if contents.config.named_by is not None:
        raise AdapterError(
            f"The adapter in '{contents.folder}' names layers of a {contents.config.named_by} that "
            "have no tensor of their own in a Hugging Face folder. Load it on that model and call "
            "`kerora.merge_adapter`, or merge it into a KerasHub preset."
        )
    ties = _Ties(contents, places, config)
    changes: dict[str, Change] = {}
    for key, place in tensor_places(contents.folder / TENSOR_FILE).items():
        if is_factor(key) or ties.is_copy_of_table(name_in_base(key)):
            continue
        name = find_tensor(places, name_in_base(key), contents)
        if place.shape != places[name].shape:
            raise _misfit(contents, key, places[name].shape, place.shape)
        _check_floating(name, places[name])
        changes[name] = Change(whole=place)
    for module in contents.factors:
        if ties.is_copy_of_table(f"{module}.weight"):
            continue
        name = find_tensor(places, f"{module}.weight", contents)
        _check_floating(name, places[name])
        change = _low_rank_change(contents, module, places[name].shape, config)
        for name_of_copy in (name, *ties.stored_copies(module)):
            before = changes.get(name_of_copy, Change())
            changes[name_of_copy] = dataclasses.replace(change, whole=before.whole)
    return changes


def merged_blocks(name: str, place: TensorPlace, change: Change) -> Iterator[bytes]:
    """The bytes of a changed tensor, some rows at a time.

    The sum is taken in float32 and rounded once to the type of the base.

    Raises:
        AdapterError: If a sum is not finite where the base was.
    """
    dtype = place.dtype
    assert dtype is not None
    step = max(1, BLOCK // (4 * max(1, place.width)))
    for start in range(0, place.rows, step):
        stop = min(start + step, place.rows)
        block = place.read_rows(start, stop)
        was_finite = np.isfinite(block.astype("float32")).all()
        if change.whole is not None:
            block = change.whole.read_rows(start, stop).astype(dtype)
        if change.left is not None:
            delta = change.left[start:stop] @ change.right * np.float32(change.scale)
            delta += block.astype("float32")
            with np.errstate(over="ignore"):
                block = delta.astype(dtype)
        if was_finite and not np.isfinite(block.astype("float32")).all():
            raise AdapterError(
                f"Merged, '{name}' holds NaN or infinity in {place.type}. Merge into a base of "
                "float32 or bfloat16, or train the adapter again with a lower scale."
            )
        yield block.tobytes()


def find_tensor(names: Collection[str], wanted: str, contents: AdapterContents) -> str:
    """The tensor of the base that an adapter means by `wanted`.

    The same tensor may be called `h.0.attn.c_attn.weight` in a file and
    `transformer.h.0.attn.c_attn.weight` in the model, or have the model's parts in another order
    (`language_model.model.…`, `model.language_model.…`), or not name the part for text
    (`encoder.layers.…`, `encoder.text_model.layers.…`), or be an image encoder's
    (`encoder.layer.…attention.attention.query`, `layers.…attention.q_proj`).

    Raises:
        AdapterError: If there is none, or more than one.
    """
    if wanted in names:
        return wanted
    in_model = name_in_model(wanted)
    in_its_model = {name: name_in_model(name) for name in names}
    # The same name comes first: SAM 3 has a `text_projection` in its text encoder too.
    same = [name for name, own in in_its_model.items() if own == in_model]
    alike = same or [name for name, own in in_its_model.items() if _are_alike(own, in_model)]
    if len(alike) == 1:
        return alike[0]
    found = f"has {len(alike)} of that name" if alike else "has no such tensor"
    raise AdapterError(
        f"{contents.folder / TENSOR_FILE} changes '{wanted}', and the base {found}. Its own are "
        f"named like '{next(iter(names), 'none')}'. Is it the base that the adapter was trained on"
        f"{f' ({contents.config.base})' if contents.config.base else ''}?"
    )


def _are_alike(name: str, other: str) -> bool:
    is_inner = name.endswith(f".{other}") or other.endswith(f".{name}")
    return is_inner or _parts(name) == _parts(other)


def _parts(name: str) -> tuple[list[str], list[str]]:
    parts = [part for part in name.split(".") if part != "text_model"]
    # Words may change places; Swin has a block 1 in layer 0, and a block 0 in layer 1.
    return sorted(parts), [part for part in parts if part.isdigit()]


def _low_rank_change(
    contents: AdapterContents, module: str, shape: tuple[int, ...], config: dict[str, Any]
) -> Change:
    a, b = contents.factors[module]
    rank, scale = contents.config.rank_of(module), contents.config.scale_of(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(
            f"{contents.folder / TENSOR_FILE}: the factors of '{module}' must be matrices of rank "
            f"{rank}. Received: {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterError(
            f"{contents.folder / TENSOR_FILE}: the factors of '{module}' hold NaN or infinity."
        )
    fits_as_stored = shape == (b.shape[0], a.shape[1])
    fits_transposed = shape == (a.shape[1], b.shape[0])
    if module in contents.tables:
        is_transposed = fits_transposed
    elif fits_as_stored and fits_transposed:
        kind = config.get("model_type")
        is_transposed = contents.config.fan_in_fan_out or kind in _CONV1D_MODELS
    else:
        is_transposed = fits_transposed
    if not (fits_transposed if is_transposed else fits_as_stored):
        raise _misfit(contents, module, shape, (b.shape[0], a.shape[1]))
    left, right = (a.T, b.T) if is_transposed else (b, a)
    return Change(left=left, right=right, scale=scale)


class _Ties:
    """What a base whose head is its table allows.

    A delta for one of the two alone, merged into the tensor that both share, would change the other
    as well (PEFT's own `merge_and_unload` does just that).
    """

    def __init__(
        self,
        contents: AdapterContents,
        places: Mapping[str, TensorPlace],
        config: dict[str, Any],
    ) -> None:
        self._heads = [name for name in places if _module(name) in _HEADS]
        declared = text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings"))
        has_head = config.get("model_type") not in _WITHOUT_HEAD
        self._is_tied = has_head and (not self._heads or declared is True)
        whole = {name.rpartition(".")[0] for name in contents.whole}
        changed = {*contents.factors, *whole}
        self._tables = [
            module
            for module in changed
            if (module in contents.tables or module.endswith(("embed_tokens", "wte")))
            and module.rpartition(".")[2] not in _OTHER_TABLES
        ]
        if not self._is_tied:
            return
        heads = [module for module in changed if module.rpartition(".")[2] in _HEADS]
        both = bool(self._tables) and contents.config.ensure_weight_tying
        if (self._tables or heads) and not both:
            raise AdapterError(
                f"The base ties its logits to its table, and the adapter in '{contents.folder}' "
                f"changes '{(self._tables or heads)[0]}' alone (no `ensure_weight_tying`). Merged, "
                "it would change both. Untie the base first (`tie_word_embeddings=False`)."
            )
        for head in set(heads) & set(contents.factors):
            self._check_same(contents, head)

    def is_copy_of_table(self, name: str) -> bool:
        """Whether a tensor of the adapter repeats, for the tied head, what it has for the table."""
        return self._is_tied and bool(self._tables) and _module(name) in _HEADS

    def stored_copies(self, module: str) -> list[str]:
        """Names under which the base stores a tied table a second time."""
        return self._heads if self._is_tied and module in self._tables else []

    def _check_same(self, contents: AdapterContents, head: str) -> None:
        a, b = contents.factors[head]
        table_a, table_b = contents.factors.get(self._tables[0], (b.T, a.T))
        if not (np.array_equal(a, table_b.T) and np.array_equal(b, table_a.T)):
            raise AdapterError(
                f"{contents.folder / TENSOR_FILE}: the factors of '{head}' and "
                f"'{self._tables[0]}' differ, though the base ties the two."
            )


def _module(name: str) -> str:
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else ""


def _check_floating(name: str, place: TensorPlace) -> None:
    if place.dtype is None:
        raise AdapterError(
            f"The base stores '{name}' as {place.type}, which cannot hold the merged values. Merge "
            "into the unquantised base (float32, float16 or bfloat16)."
        )


def another_base(contents: AdapterContents, found: str) -> AdapterError:
    """The error that an adapter was trained on another base, which `found` tells from this one."""
    name = f" ('{contents.config.base}')" if contents.config.base else ""
    return AdapterError(
        f"The adapter in '{contents.folder}' was trained on another base{name} than this one: "
        f"{found}. Merge into that base, or pass `force=True` (`--force`)."
    )


def _misfit(
    contents: AdapterContents, name: str, expected: tuple[int, ...], received: tuple[int, ...]
) -> AdapterError:
    return AdapterError(
        f"{contents.folder / TENSOR_FILE}: '{name}' must fit a tensor of shape {expected}. "
        f"Received: {received}"
    )

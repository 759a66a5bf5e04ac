"""Tokens that a folder adds to the SentencePiece vocabulary of its base.

A model that was tuned on ChatML has the `tokenizer.model` that it began with, and the marks as
further tokens in `tokenizer.json` or `added_tokens.json`. KerasHub's converters read the former
alone, and make several ordinary pieces of each mark.
"""

from __future__ import annotations

import importlib
from typing import Any

from kerora.json_file import read_json_object
from kerora.models.converters import preset_file
from kerora.models.errors import ModelSourceError, told_of_source

_SPACE = "\u2581"


def append_added_tokens(tokenizer: Any, source: str, text_config: dict[str, Any]) -> None:
    """Give a SentencePiece tokenizer of KerasHub's the tokens that its folder adds.

    Tokens without a row in the model's table of text are left out: they stand for images or sounds,
    or for nothing.

    Args:
        tokenizer: A KerasHub tokenizer that was converted from `source`. One of another kind is
            left as it is.
        source: A Hugging Face folder or handle.
        text_config: The part of its `config.json` that describes the language model.

    Raises:
        ModelSourceError: If the files contradict each other, or one of them cannot be read.
    """
    if getattr(tokenizer, "proto", None) is None:
        return
    path, added = _added_tokens(source)
    if not added:
        return
    rows = text_config["vocab_size"]
    # Past these Gemma 3n has images and sounds alone.
    rows = min(rows, text_config.get("vocab_size_per_layer_input") or rows)
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = schema.ModelProto.FromString(tokenizer.proto)
    if _place(added, rows, proto, path):
        proto.trainer_spec.vocab_size = len(proto.pieces)
        with told_of_source(f"The tokens that '{path}' adds cannot be added"):
            tokenizer.set_proto(proto.SerializeToString())


def _place(added: dict[str, int], rows: int, proto: Any, path: str) -> bool:
    """Put each token that has a row where its number says; whether any was not there before."""
    kinds, pieces, changed = proto.SentencePiece, proto.pieces, False
    ids = {piece.piece: index for index, piece in enumerate(pieces)}
    for index, token in sorted((index, token) for token, index in added.items() if index < rows):
        text = token if token in ids else token.replace(" ", _SPACE)
        if ids.get(text) == index:
            continue
        is_new = index >= len(pieces)
        if text in ids or not (is_new or pieces[index].type in (kinds.CONTROL, kinds.USER_DEFINED)):
            found = f"the number {ids[text]}" if text in ids else f"{pieces[index].piece!r} there"
            raise ModelSourceError(
                f"'{path}' gives the token {token!r} the number {index}, and the SentencePiece "
                f"model beside it has {found}. They are of different models: fetch the "
                "tokenizer's files again, or pass `preprocessor=None` to load the model alone."
            )
        while len(pieces) <= index:  # the numbers before it may be no token's
            pieces.add(piece=f"<no token {len(pieces)}>", type=kinds.UNUSED)
        # Some models give tokens that stand unused in their base another text.
        ids.pop(pieces[index].piece, None)
        pieces[index].piece, pieces[index].type = text, kinds.USER_DEFINED
        ids[text], changed = index, True
    return changed


def _added_tokens(source: str) -> tuple[str, dict[str, int]]:
    """The file that names them, and the number of each by its text."""
    for name in ("tokenizer.json", "added_tokens.json"):
        path = preset_file(source, name)
        if path is None:
            continue
        with told_of_source(f"'{path}' cannot be read as a tokenizer's"):
            fields = read_json_object(path, ModelSourceError)
            if name == "tokenizer.json":
                fields = {entry["content"]: entry["id"] for entry in fields["added_tokens"]}
            if not all(isinstance(index, int) and index >= 0 for index in fields.values()):
                raise ModelSourceError(f"'{path}': each added token needs a number from 0.")
        return path, fields
    return "", {}

"""The vocabulary of a GGUF file as the tokenizer files of a Hugging Face folder.

Byte-level BPE ("gpt2") and SentencePiece ("llama") vocabularies are read, and Gemma 4's: the pieces
of SentencePiece with the merges of BPE. A GGUF file names the way
in which text is split into words and does not store it; the patterns are those of the tokenizers
that the names come from.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from kerora.models.gguf_file import GGUFFile

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_SPACE = "\u2581"
_DESCRIBED = {"gpt2": "byte-level BPE", "llama": "SentencePiece", "gemma4": "Gemma 4"}
# Families whose tokenizer of KerasHub's is SentencePiece's.
_SENTENCEPIECE = ("gemma", "mixtral")
_LONGEST_TOKEN = 1024  # All ways to cut a token in two are tried.

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Qwen 3.5's takes the marks of a letter for letters.
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Split:
    """How a named tokenizer cuts text into words: by `pattern`, else as GPT-2 does."""

    pattern: str | None = None
    digits_apart: bool = False
    composes: bool = False  # Unicode's NFC first
    whole_words: bool = False  # a word that is a token needs no merges


_SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _Split(_LLAMA3, whole_words=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Split(_QWEN2, composes=True)),
    "qwen35": _Split(_QWEN35, composes=True),
    "tekken": _Split(_TEKKEN, whole_words=True),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _Split(digits_apart=True)),
    "gpt-2": _Split(),
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file.

    Attributes:
        model: `"gpt2"` (byte-level BPE), `"llama"` (SentencePiece) or `"gemma4"`.
        tokens: The text of each token, by id.
        kinds: The type of each: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
        special: `{"bos_token": text, …}` of the special tokens that the file names.
    """

    file: GGUFFile
    model: str
    tokens: list[str]
    kinds: Sequence[int]
    special: dict[str, str]


def read_vocabulary(file: GGUFFile, vocabulary_size: int) -> Vocabulary:
    """The vocabulary of a GGUF file.

    Args:
        file: A GGUF file.
        vocabulary_size: Rows of the model's table of embeddings.

    Raises:
        ModelSourceError: If there is none, it is of a kind that is not read, or contradicts itself.
    """
    model = file.fields.get("tokenizer.ggml.model")
    if model is None or str(model) in ("none", "no_vocab"):
        raise file.error("it holds no tokenizer. Pass `preprocessor=None` to load the model alone")
    if not isinstance(model, str) or model not in _DESCRIBED:
        raise file.error(
            f"its tokenizer is of the kind {model!r}; read are {', '.join(_DESCRIBED)}"
        )
    tokens = _list_of(file, "tokens", str)
    if len(tokens) > vocabulary_size or len(set(tokens)) < len(tokens):
        raise file.error(
            f"its {len(tokens)} tokens ({len(set(tokens))} different ones) do not fit the "
            f"{vocabulary_size} rows of its embeddings"
        )
    if max(map(len, tokens), default=0) > _LONGEST_TOKEN:
        raise file.error(f"one of its tokens has more than {_LONGEST_TOKEN} characters")
    kinds = _list_of(file, "token_type", int, len(tokens), default=[1] * len(tokens))
    special = {}
    for name, key in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ):
        index = file.fields.get(f"tokenizer.ggml.{key}")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise file.error(f"`tokenizer.ggml.{key}` is no token's number: {str(index)[:80]!r}")
        special[name] = tokens[index]
    return Vocabulary(file, model, tokens, kinds, special)


def write_tokenizer(vocabulary: Vocabulary, family: str, folder: Path) -> None:
    """Write the tokenizer files that KerasHub's converter for a family reads.

    Args:
        vocabulary: Of a GGUF file.
        family: The model's Hugging Face `model_type`.
        folder: Gets tokenizer_config.json, and tokenizer.json or tokenizer.model.

    Raises:
        ModelSourceError: If the family's tokenizer cannot hold this vocabulary.
    """
    is_sentencepiece = vocabulary.model == "llama"
    _check_kind(vocabulary, family)
    if vocabulary.model == "gemma4":
        _pieces_with_merges(vocabulary).save(str(folder / "tokenizer.json"))
        # KerasHub looks in it for what to do with videos, and is told nothing.
        (folder / "processor_config.json").write_text("{}", encoding="utf-8")
    elif family.startswith(_SENTENCEPIECE) or (family == "mistral" and is_sentencepiece):
        (folder / "tokenizer.model").write_bytes(_sentencepiece_model(vocabulary))
    else:
        if family == "llama" and not {"bos_token", "eos_token"} <= set(vocabulary.special):
            raise vocabulary.file.error("it names no start token or no end token")
        if family == "mistral" and _bounds(vocabulary) != ("<s>", "</s>"):
            raise vocabulary.file.error(
                "KerasHub's byte-level tokenizer for Mistral starts a text with '<s>' and ends it "
                f"with '</s>', and this file with {_bounds(vocabulary)}"
            )
        build = _sentencepiece_as_bpe if is_sentencepiece else _byte_level_bpe
        build(vocabulary).save(str(folder / "tokenizer.json"))
    fields = {"bos_token": None, "eos_token": None} | vocabulary.special
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")


def _check_kind(vocabulary: Vocabulary, family: str) -> None:
    needed = "gemma4" if family == "gemma4_text" else "llama"
    is_free = not family.startswith(_SENTENCEPIECE) and vocabulary.model != "gemma4"
    if vocabulary.model != needed and not is_free:
        raise vocabulary.file.error(
            f"KerasHub's tokenizer for '{family}' takes a {_DESCRIBED[needed]} vocabulary, and "
            f"this one is {_DESCRIBED[vocabulary.model]}. Pass `preprocessor=None` to load the "
            "model alone"
        )


def _bounds(vocabulary: Vocabulary) -> tuple[str | None, str | None]:
    return vocabulary.special.get("bos_token"), vocabulary.special.get("eos_token")


def _list_of(
    file: GGUFFile, key: str, kind: type, length: int | None = None, default: Any = None
) -> list[Any]:
    values = file.fields.get(f"tokenizer.ggml.{key}", default)
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise file.error(f"`tokenizer.ggml.{key}` is no list of {kind.__name__}")
    if length is not None and len(values) != length:
        raise file.error(f"`tokenizer.ggml.{key}` has {len(values)} entries for {length} tokens")
    return values


def _pieces_with_merges(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    tokenizer = _with_model(vocabulary, _merges(vocabulary), byte_fallback=True, fuse_unk=True)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[Any]:
    return [text.partition(" ")[::2] for text in _list_of(vocabulary.file, "merges", str)]


def _byte_level_bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    file, name = vocabulary.file, vocabulary.file.fields.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in _SPLITS:
        raise file.error(
            f"it splits text into words as {name!r} does, which is not known here; known are "
            f"{', '.join(_SPLITS)}. Pass `preprocessor=None` to load the model alone"
        )
    split = _SPLITS[name]
    tokenizer = _with_model(vocabulary, _merges(vocabulary), ignore_merges=split.whole_words)
    steps: list[Any] = []
    if split.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(split.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_as_bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    file, tokens = vocabulary.file, vocabulary.tokens
    scores = _list_of(file, "scores", float, len(tokens))
    rank = dict(zip(tokens, scores, strict=True))
    ids = {token: index for index, token in enumerate(tokens)}
    # SentencePiece joins the neighbours whose union has the highest score.
    merges = [
        (token[:cut], token[cut:])
        for token, kind in zip(tokens, vocabulary.kinds, strict=True)
        if kind == 1
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    merges.sort(key=lambda pair: (-rank[pair[0] + pair[1]], ids[pair[0]], ids[pair[1]]))
    tokenizer = _with_model(vocabulary, merges, byte_fallback=True, fuse_unk=True)
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if file.fields.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_SPACE))
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, decoders.Strip(" ", 1, 0)])
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _with_model(vocabulary: Vocabulary, merges: list[Any], **options: Any) -> tokenizers.Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown = None if vocabulary.model == "gpt2" else vocabulary.special.get("unk_token")
    try:
        tokenizer = tokenizers.Tokenizer(
            models.BPE(vocab=ids, merges=merges, unk_token=unknown, **options)
        )
    except Exception as error:  # The library raises bare `Exception`s.
        raise vocabulary.file.error(f"its merges do not fit its tokens: {error}") from error
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def _sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    import sentencepiece

    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")

    file, tokens, special = vocabulary.file, vocabulary.tokens, vocabulary.special
    types = schema.ModelProto.SentencePiece
    kind_of = {
        _UNKNOWN: types.UNKNOWN,
        _CONTROL: types.CONTROL,
        _USER_DEFINED: types.USER_DEFINED,
        _BYTE: types.BYTE,
    }
    # A control piece is never found in a text, and a chat has them in its text: all but the four
    # that the model itself places are user-defined.
    placed = set(special.values())
    proto = schema.ModelProto()
    scores = _list_of(file, "scores", float, len(tokens))
    for token, score, kind in zip(tokens, scores, vocabulary.kinds, strict=True):
        piece = proto.pieces.add(piece=token.replace(" ", _SPACE))
        piece.type = kind_of.get(kind, types.NORMAL)
        if piece.type == types.NORMAL:
            piece.score = score
        elif token == special.get("unk_token"):
            piece.type = types.UNKNOWN
        elif piece.type == types.CONTROL and token not in placed:
            piece.type = types.USER_DEFINED
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = schema.TrainerSpec.BPE, len(tokens)
    trainer.byte_fallback = any(kind == _BYTE for kind in vocabulary.kinds)
    trainer.allow_whitespace_only_pieces = True
    for short in ("bos", "eos", "unk", "pad"):
        text = special.get(f"{short}_token")
        setattr(trainer, f"{short}_id", -1 if text is None else tokens.index(text))
        if text is not None:
            setattr(trainer, f"{short}_piece", text)
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    normalizer.add_dummy_prefix = bool(file.fields.get("tokenizer.ggml.add_space_prefix", True))
    model = proto.SerializeToString()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # The library raises bare `RuntimeError`s, and others.
        raise file.error(f"its vocabulary is not SentencePiece's: {error}") from error
    return model

"""The tokenizer of a GPT-2's folder that has vocab.json and merges.txt, and no tokenizer.json."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from kerora.json_file import read_json_object
from kerora.models.converters import preset_file
from kerora.models.errors import ModelSourceError, told_of_source
from kerora.models.folder_tokenizers import special_token, tokenizer_config

_MARK = "<|endoftext|>"  # where the folder names no special token


def two_file_tokenizer(source: str) -> tokenizers.Tokenizer | None:
    """A tokenizer that gives the ids which `transformers` gives for such a folder.

    Args:
        source: A Hugging Face folder or handle.

    Returns:
        None where one of the two files is missing.

    Raises:
        ModelSourceError: If they cannot be read, or `added_tokens.json` does not go on from them.
    """
    vocabulary, merges = (preset_file(source, name) for name in ("vocab.json", "merges.txt"))
    if vocabulary is None or merges is None:
        return None
    with told_of_source(f"'{vocabulary}' and merges.txt cannot be read as a tokenizer"):
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(vocabulary, merges))
        prefix = bool(tokenizer_config(source).get("add_prefix_space", False))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        own = tokenizer.get_vocab()
        names = ("bos_token", "eos_token", "unk_token")
        marks = {special_token(source, name) or _MARK for name in names}
        tokenizer.add_special_tokens(sorted(mark for mark in marks if mark in own))
        path = preset_file(source, "added_tokens.json")
        added = {} if path is None else read_json_object(path, ModelSourceError)
        for token, index in sorted(added.items(), key=lambda entry: entry[1]):
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
            if tokenizer.token_to_id(token) != index:
                raise ModelSourceError(
                    f"'{path}' gives the token {token!r} the number {index!r}, and after the "
                    f"tokens of vocab.json it is {tokenizer.token_to_id(token)}. Fetch the "
                    "tokenizer's files again."
                )
        return tokenizer

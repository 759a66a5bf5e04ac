"""Text to token ids with a KerasHub tokenizer, fast, special tokens included.

KerasHub's tokenizers are layers: a call converts its inputs and outputs each time. The objects
that do the work (`sentencepiece`, `tokenizers`) take a list of strings at once; they are private,
used in `_workers` alone, and the layer is called where they are not found.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerora.data.errors import DataError

# What the marks of chat templates look like, Gemma 4's half open (`<|turn>`, `<turn|>`). Only those
# in the vocabulary count.
_MARK = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,48}[|\uff5c]?>|<[^<>|\uff5c\s]{1,48}[|\uff5c]>"
    r"|</?[a-zA-Z_][a-zA-Z_0-9]{0,31}>|\[/?[A-Z_]{2,32}\]"
)


def _workers(tokenizer: Any) -> tuple[Any, Any]:
    """The `sentencepiece` or else the `tokenizers` object of a tokenizer; None for the other."""
    sentence_piece = getattr(tokenizer, "_sentence_piece_spm", None)
    if sentence_piece is not None and hasattr(sentence_piece, "Encode"):
        return sentence_piece, None
    byte_pair = getattr(tokenizer, "_tokenizer", None)
    return None, byte_pair if hasattr(byte_pair, "encode_batch") else None


def _batch_tokenizer(tokenizer: Any) -> Callable[[list[str]], Sequence[Sequence[int]]]:
    """The quickest function from texts to ids that this tokenizer has."""
    sentence_piece, byte_pair = _workers(tokenizer)
    if sentence_piece is not None:
        return lambda texts: sentence_piece.Encode(texts, add_bos=False, add_eos=False)
    if byte_pair is not None:

        def encode(texts: list[str]) -> list[list[int]]:
            try:
                encodings = byte_pair.encode_batch(texts, add_special_tokens=False)
            except BaseException as error:
                # A pattern that backtracks too long is a panic, which is no `Exception`.
                if type(error).__name__ != "PanicException":
                    raise
                raise DataError(
                    "The model's tokenizer.json cannot split these texts into words: "
                    f"{error}. Its pattern is at fault: {repr(texts)[:200]}"
                ) from error
            return [encoding.ids for encoding in encodings]

        return encode
    return lambda texts: [np.asarray(ids).tolist() for ids in tokenizer(texts)]


class TextTokenizer:
    """Turns pieces of text into ids that can be joined.

    Args:
        tokenizer: A KerasHub tokenizer, or anything with `token_to_id`, `id_to_token` and a call
            that takes a list of strings.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._encode = _batch_tokenizer(tokenizer)
        self._marks: dict[str, int | None] = {}
        self.start_token_id: int | None = _id(tokenizer, "start_token_id")
        self.end_token_id: int | None = _id(tokenizer, "end_token_id")
        self.pad_token_id: int = _id(tokenizer, "pad_token_id") or 0
        # SentencePiece models of the Llama kind put a space before every text, which is wrong in
        # the middle of one: such a text is tokenised after a line break, which is cut off again.
        after_break = self._encode(["\na", "\n", "a"])
        whole, line_break, alone = (list(ids) for ids in after_break)
        self._anchor = line_break if whole != line_break + alone else None

    def tables(self) -> bytes | None:
        """The vocabulary and the rules that texts are split by; None where they are not known."""
        sentence_piece, byte_pair = _workers(self._tokenizer)
        if sentence_piece is not None:
            return bytes(sentence_piece.serialized_model_proto())
        return None if byte_pair is None else byte_pair.to_str().encode()

    def mark_id(self, text: str) -> int | None:
        """The id of a special token by its text; None where the vocabulary has no such token."""
        if text not in self._marks:
            self._marks[text] = self._look_up(text)
        return self._marks[text]

    def ends_with_mark(self, text: str) -> bool:
        """Whether the last word of a text is a special token."""
        words = text.split()
        found = list(_MARK.finditer(words[-1])) if words else []
        last = bool(found) and found[-1].end() == len(words[-1])
        return last and self.mark_id(found[-1].group()) is not None

    def _look_up(self, text: str) -> int | None:
        try:
            index = int(self._tokenizer.token_to_id(text))
            found = index >= 0 and self._tokenizer.id_to_token(index) == text
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
        return index if found else None

    def texts(self, texts: list[str]) -> Sequence[Sequence[int]]:
        """Ids of whole texts, as the tokenizer itself gives them; no start or end token."""
        return self._encode(texts) if texts else []

    def continuations(self, texts: list[str]) -> list[Sequence[int]]:
        """Ids of texts that follow another text: without the space some models put in front."""
        if self._anchor is None or not texts:
            return list(self.texts(texts))
        size = len(self._anchor)
        results: list[Sequence[int]] = []
        for text, ids in zip(texts, self._encode(["\n" + text for text in texts]), strict=True):
            anchored = list(ids[:size]) == self._anchor
            results.append(ids[size:] if anchored else self._encode([text])[0])
        return results

    def marked_texts(self, texts: list[tuple[str, bool]]) -> list[list[int]]:
        """Ids of texts in which marks such as `<start_of_turn>` are their single special tokens.

        Args:
            texts: Rendered chats, or parts of one, and whether nothing stands before each.
        """
        cut = [self._cut(text, first) for text, first in texts]
        pieces = [piece for one in cut for piece in one if isinstance(piece, tuple)]
        whole = iter(self.texts([text for text, first in pieces if first]))
        others = iter(self.continuations([text for text, first in pieces if not first]))
        results = []
        for one in cut:
            ids: list[int] = []
            for piece in one:
                if isinstance(piece, tuple):
                    ids += next(whole if piece[1] else others)
                else:
                    ids.append(piece)
            results.append(ids)
        return results

    def _cut(self, text: str, first: bool) -> list[int | tuple[str, bool]]:
        """The marks of a text, and what stands between them with whether it is the beginning."""
        pieces: list[int | tuple[str, bool]] = []
        position = 0
        for match in _MARK.finditer(text):
            mark = self.mark_id(match.group())
            if mark is None:
                continue
            if match.start() > position:
                pieces.append((text[position : match.start()], first and not pieces))
            pieces.append(mark)
            position = match.end()
        if position < len(text):
            pieces.append((text[position:], first and not pieces))
        return pieces


def _id(tokenizer: Any, name: str) -> int | None:
    value = getattr(tokenizer, name, None)
    return None if value is None else int(value)

"""A tokenizer of bytes, whose ids can be read off the text."""

import numpy as np

MARKS = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")


class ByteTokenizer:
    """Each byte is a token, from 16 on; the marks of Gemma come before them."""

    pad_token, start_token, end_token = "<pad>", "<bos>", "<eos>"
    pad_token_id, start_token_id, end_token_id = 0, 1, 2

    def __call__(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 16 for text in texts]

    def token_to_id(self, token):
        return MARKS.index(token)

    def id_to_token(self, index):
        return MARKS[index]


def to_text(ids) -> str:
    """The text of ids, marks included."""
    parts = [MARKS[i].encode() if i < 16 else bytes([i - 16]) for i in np.asarray(ids).tolist()]
    return b"".join(parts).decode()


def learned_text(encoded) -> str:
    """The text of the tokens that the loss covers."""
    return to_text(encoded.token_ids[encoded.loss_weights > 0])


def texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of 10 to 200 bytes."""
    rng = np.random.default_rng(seed)
    return [f"{i:06d}" + "x" * int(n) for i, n in enumerate(rng.integers(4, 194, count))]

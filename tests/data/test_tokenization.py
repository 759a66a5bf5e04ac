import io
from types import SimpleNamespace

import pytest
import tokenizers

from kerora.data.encoding import Encoder
from kerora.data.errors import DataError
from kerora.data.tokenization import TextTokenizer

MARKS = ["<|mark|>", "<|turn>", "<turn|>"]
TEXT = ["the quick brown fox jumps over the lazy dog", "what is the answer", "the answer is a fox"]


def sentence_piece(add_dummy_prefix: bool):
    """A KerasHub SentencePiece tokenizer, with or without the space that Llama's puts first."""
    import sentencepiece
    from keras_hub.tokenizers import SentencePieceTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
        control_symbols=MARKS,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def byte_pair():
    """A KerasHub byte-pair tokenizer whose marks are in the vocabulary but not unsplittable."""
    from keras_hub.tokenizers import BytePairTokenizer

    pieces = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "th", "the", "<|im_start|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return BytePairTokenizer(vocabulary, ["t h", "th e"])


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_joined_pieces_read_as_the_joined_text(add_dummy_prefix):
    tokenizer = sentence_piece(add_dummy_prefix)
    text = TextTokenizer(tokenizer)
    first = text.texts(["what is\n"])[0]
    second = text.continuations(["the answer"])[0]
    joined = [*first, *second]
    assert tokenizer.detokenize([joined])[0] == "what is\nthe answer"
    # A text on its own keeps what the tokenizer does to it, for generation sees that too.
    assert list(first) == list(tokenizer(["what is\n"])[0])


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_marks_are_single_tokens_even_where_the_tokenizer_splits_them(add_dummy_prefix, name):
    tokenizer = sentence_piece(add_dummy_prefix)
    mark = tokenizer.token_to_id(name)
    assert mark not in list(tokenizer([f"a{name}b"])[0])
    text = TextTokenizer(tokenizer)
    assert text.ends_with_mark(f"fox{name}\n")
    ids = text.marked_texts([(f"the{name}fox<start_of_turn>dog", True)])[0]
    assert ids.count(mark) == 1
    assert ids.count(tokenizer.token_to_id("<start_of_turn>")) == 1
    pieces = [tokenizer.id_to_token(index) for index in ids]
    assert "".join(pieces).removeprefix("▁") == f"the{name}fox<start_of_turn>dog"


def test_byte_pair_marks_are_single_tokens():
    tokenizer = byte_pair()
    text = TextTokenizer(tokenizer)
    mark = tokenizer.vocabulary["<|im_start|>"]
    assert mark not in list(tokenizer(["<|im_start|>the"])[0])
    assert text.marked_texts([("<|im_start|>the\n", True)])[0] == [
        mark,
        tokenizer.vocabulary["the"],
        tokenizer.vocabulary["Ċ"],
    ]
    assert text.mark_id("<|im_end|>") is None
    assert text.mark_id("<unknown>") is None


def test_the_fast_path_gives_the_tokenizers_own_ids(monkeypatch):
    """Fails where KerasHub renames the private objects: then only the slow path is left."""
    for tokenizer in (sentence_piece(False), byte_pair()):
        expected = [list(map(int, ids)) for ids in tokenizer(TEXT)]
        text = TextTokenizer(tokenizer)
        monkeypatch.setattr(type(tokenizer), "__call__", None)
        assert [list(ids) for ids in text.texts(TEXT)] == expected
        monkeypatch.undo()


def test_a_vocabulary_with_chatml_marks_gets_that_template():
    tokenizer = byte_pair()
    tokenizer.start_token_id = tokenizer.end_token_id = tokenizer.pad_token_id = None
    encoder = Encoder(tokenizer, sequence_length=64)
    text = encoder.prompt_text([{"role": "user", "content": "the"}])
    assert text == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.stop_token_ids == ()


def test_a_pattern_that_backtracks_for_ever_is_an_error():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex("(a+)+$"), "isolated"
    )
    with pytest.raises(DataError, match=r"tokenizer\.json cannot split"):
        TextTokenizer(SimpleNamespace(_tokenizer=tokenizer)).texts(["a" * 50 + "!"])

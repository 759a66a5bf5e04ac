import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer, learned_text, to_text

from kerora.data.encoding import Encoder
from kerora.data.errors import DataError, LongRow, RowProblem

ROW = {"prompt": "2+2=", "response": "4"}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


def encoder(**options) -> Encoder:
    return Encoder(ByteTokenizer(), **{"sequence_length": 256, **options})


def test_the_response_and_the_end_are_learned():
    encoded = encoder().encode(ROW)
    assert to_text(encoded.token_ids) == "<bos>2+2=4<eos>"
    assert learned_text(encoded) == "4<eos>"
    assert encoded.token_ids.dtype == np.int32
    assert encoded.loss_weights.dtype == np.float32


def test_all_learns_the_prompt_too_but_never_the_start():
    assert learned_text(encoder(train_on="all").encode(ROW)) == "2+2=4<eos>"
    assert learned_text(encoder().encode("text")) == "text<eos>"


def test_start_and_end_can_be_left_out():
    encoded = encoder(add_start_token=False, add_end_token=False).encode(ROW)
    assert to_text(encoded.token_ids) == "2+2=4"


def test_a_tokenizer_without_a_start_token_gets_none():
    tokenizer = ByteTokenizer()
    tokenizer.start_token_id = None
    assert to_text(Encoder(tokenizer, sequence_length=64).encode(ROW).token_ids) == "2+2=4<eos>"


def test_row_weights_scale_the_loss():
    weights = encoder().encode(ROW, 0.25).loss_weights
    assert weights.tolist() == [0, 0, 0, 0, 0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (None, ROW),
        (None, ("2+2=", "4")),
        ("chat", ("2+2=", "4")),
        (None, {"instruction": "I", "context": "C", "response": "R"}),
        (None, {"question": "Q", "answer": "A"}),
        ("Q {prompt}\nA {response}.", ROW),
        ("chat", ROW),
        ("chat", {"question": "Q", "answer": "A"}),
        ("chat", {"instruction": "I", "context": "C", "response": "R"}),
        (None, TALK),
        (None, {"prompt": TALK[:3], "completion": TALK[3:]}),
        (None, {"messages": TALK}),
    ],
)
def test_generation_starts_from_what_training_saw(template, row):
    encodes = encoder(template=template)
    prompt = encodes.encode_prompt(row)
    trained = encodes.encode(row)
    assert trained.token_ids[: len(prompt)].tolist() == prompt.tolist()
    assert trained.loss_weights[len(prompt)] > 0  # the next token is the response's first
    assert to_text(prompt) == "<bos>" + encodes.prompt_text(row).removeprefix("<bos>")


def test_under_chat_a_row_asks_what_its_bare_text_asks():
    encodes = encoder(template="chat")
    row = {"instruction": "I", "context": "C", "response": "R"}
    assert encodes.prompt_text(row) == encodes.prompt_text("I\n\nC")


def test_a_row_of_text_is_continued():
    for template in (None, "chat"):
        assert encoder(template=template).prompt_text({"text": "Once"}) == "Once"


def test_of_a_prompt_and_completion_of_messages_the_completion_is_learned():
    encodes = encoder()
    encoded = encodes.encode({"prompt": TALK[:3], "completion": TALK[3:]})
    assert encoded.token_ids.tolist() == encodes.encode(TALK).token_ids.tolist()
    assert learned_text(encoded) == "See you.<end_of_turn>"
    # What follows the prompt is no part of the question, whoever speaks last in it.
    asked = {"prompt": TALK[:1], "completion": TALK[1:3]}
    assert encodes.prompt_text(asked) == encodes.prompt_text(TALK[:1])


def test_marked_parts_that_are_no_turns_cannot_be_shared_out():
    twice = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% generation %}|{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(RowProblem, match=r"4 parts of 2 assistant turns.*'messages'"):
        encoder(chat_template=twice).encode({"prompt": TALK[:3], "completion": TALK[3:]})


def test_the_text_that_is_wanted_in_answer():
    assert encoder().response_text(ROW) == "4"
    assert encoder(template="chat").response_text(ROW) == "4"
    assert encoder().response_text(TALK) == "See you."


def test_a_prompt_may_be_text():
    assert to_text(encoder().encode_prompt("abc")) == "<bos>abc"
    chat = encoder(template="chat").encode_prompt("abc")
    assert to_text(chat) == ("<bos><start_of_turn>user\nabc<end_of_turn>\n<start_of_turn>model\n")


def test_a_conversation_learns_the_assistants_turns_with_their_marks():
    encoded = encoder().encode(TALK)
    assert to_text(encoded.token_ids) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nSee you.<end_of_turn>\n"
    )
    assert learned_text(encoded) == "Hello.<end_of_turn>See you.<end_of_turn>"
    # The marks are single tokens, and the start token of the template is not doubled.
    assert encoded.token_ids[:2].tolist() == [1, 3]
    assert encoder().stop_token_ids == (2, 4)


def test_a_conversation_without_marks_ends_with_the_end_token():
    encoded = encoder(chat_template="{% for m in messages %}{{ m.content }}|{% endfor %}{{ '' }}")
    assert learned_text(encoded.encode(TALK)) == "Hello.|See you.|<eos>"


def test_marks_in_plain_text_stay_text():
    encoded = encoder().encode({"prompt": "<eos>", "response": "<start_of_turn>"})
    assert (encoded.token_ids[1:-1] >= 16).all()


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({"template": "Q {question}\nA {answer}"}, {"question": HALF, "answer": "b"}),
        ({}, [{"role": "user", "content": HALF}, TALK[1]]),
        ({"chat_template": "qwen"}, {"messages": TALK, "tools": [{"name": HALF}]}),
        (
            {"chat_template": "qwen"},
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": HALF}]}, *TALK],
        ),
    ],
)
def test_half_a_surrogate_pair_is_a_problem_of_its_row(options, row):
    encodes = encoder(**options)
    (found,) = encodes.encode_many([row], [1.0])
    assert isinstance(found, RowProblem)
    assert found.reason == "wrong encoding"
    for prompt in (row, HALF):
        with pytest.raises(RowProblem, match="half a surrogate pair"):
            encodes.encode_prompt(prompt)


def test_long_rows_lose_their_end_or_are_dropped():
    row = {"prompt": "p" * 10, "response": "r" * 10}
    encoded = encoder(sequence_length=16).encode(row)
    assert encoded.truncated
    assert to_text(encoded.token_ids) == "<bos>" + "p" * 10 + "r" * 5
    assert not encoder(sequence_length=22).encode(row).truncated
    with pytest.raises(LongRow, match="prompt too long"):
        encoder(sequence_length=11).encode(row)
    for policy in ("skip", "stop"):
        with pytest.raises(LongRow, match=r"22 tokens; sequence_length is 21"):
            encoder(sequence_length=21, on_long_row=policy).encode(row)


def test_many_rows_are_encoded_as_one_by_one():
    rows = ["text", ROW, TALK, {"question": "Q", "answer": "A"}, {"prompt": "x", "response": ""}]
    encodes = encoder()
    *good, bad = encodes.encode_many(rows, [1.0] * 5)
    assert isinstance(bad, RowProblem)
    for row, encoded in zip(rows, good, strict=False):
        assert encoded.token_ids.tolist() == encodes.encode(row).token_ids.tolist()


@pytest.mark.parametrize(
    "options",
    [{"sequence_length": 1}, {"train_on": "prompt"}, {"on_long_row": "cut"}, {"template": "x"}],
)
def test_wrong_arguments_are_refused(options):
    with pytest.raises(DataError, match="Received"):
        encoder(**options)

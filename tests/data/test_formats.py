import numpy as np
import pandas
import pytest

from kerora.data.errors import RowProblem
from kerora.data.formats import Example, Message, read_example

TALK = (Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ("text", Example(None, "text")),
        ({"text": "t", "id": 3}, Example(None, "t")),
        (
            {"instruction": "I", "response": "R"},
            Example("Instruction:\nI\n\nResponse:\n", "R"),
        ),
        (
            {"instruction": "I", "context": "", "response": "R"},
            Example("Instruction:\nI\n\nResponse:\n", "R"),
        ),
        (
            {"instruction": "I", "input": "C", "output": "R"},
            Example("Instruction:\nI\n\nContext:\nC\n\nResponse:\n", "R"),
        ),
        ({"question": "Q", "answer": 4}, Example("Question:\nQ\n\nAnswer:\n", "4")),
        ({"query": "Q", "response": "A"}, Example("Question:\nQ\n\nAnswer:\n", "A")),
        ({"Question ": "Q", " ANSWER": "A"}, Example("Question:\nQ\n\nAnswer:\n", "A")),
        ({"prompt": "P", "completion": "C"}, Example("P", "C")),
        ({"prompt": "P", "response": "C"}, Example("P", "C")),
        (("P", "C"), Example("P", "C")),
        (["P", "C"], Example("P", "C")),
        ({"prompts": "P", "responses": "C"}, Example("P", "C")),
        ({"input": "P", "output": "C"}, Example("P", "C")),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            Example(messages=TALK),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            Example(messages=TALK),
        ),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ],
            Example(messages=TALK),
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "tool_calls": []},
            ],
            Example(messages=TALK),
        ),
    ],
)
def test_fields_are_recognised(row, example):
    assert read_example(row) == example


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (7, "not a record", "int"),
        (None, "not a record", "NoneType"),
        ("  ", "empty field", "text"),
        (b"caf\xe9", "wrong encoding", "UTF-8"),
        ("half \ud800", "wrong encoding", "surrogate"),
        ({"instruction": "I", "context": "\ud83d", "response": "R"}, "wrong encoding", "'context'"),
        ([{"role": "assistant", "content": "\ud83d"}], "wrong encoding", "'content'"),
        ({"prompt": "P", "response": ""}, "empty response", "response"),
        ({"prompt": "P", "response": None}, "empty response", "response"),
        ({"prompt": "P", "response": " \n"}, "empty response", "response"),
        ({"prompt": "P", "response": float("nan")}, "empty response", "response"),
        ({"prompt": "P", "response": np.float32("nan")}, "empty response", "response"),
        ({"prompt": "P", "response": pandas.NA}, "empty response", "response"),
        ({"instruction": pandas.NaT, "response": "R"}, "empty field", "instruction"),
        ({"instruction": "", "response": "R"}, "empty field", "instruction"),
        ({"prompt": {"a": 1}, "response": "R"}, "not text", "dict"),
        ({"instruction": "I"}, "missing field", "without one of"),
        ({"question": "I", "context": "c"}, "missing field", "without one of"),
        ({"a": "x", "b": "y"}, "unknown fields", r"\['a', 'b'\].*instruction.*template such as"),
        ({"prompt": "x"}, "unknown fields", r"template such as"),
        ({"What is A?": "x", "A ": "y"}, "unknown fields", r"found \['A ', 'What is A\?'\]"),
        ({"Text": "x", "TEXT": "y"}, "unknown fields", r"\['TEXT', 'Text'\]"),
        ([], "empty field", "without messages"),
        ([{"role": "user", "content": "a"}], "missing field", "assistant"),
        ([{"role": "assistant", "content": ""}], "empty response", "empty"),
        ([{"role": "assistant", "content": "", "tool_calls": []}], "empty response", "empty"),
        ([{"role": "assistant", "tool_calls": []}], "missing field", "tool_calls"),
        (["a"], "not a record", r"\(prompt, response\).*role.*1 values"),
        (("a", "b", "c"), "not a record", r"\(prompt, response\).*3 values"),
        (("a", " "), "empty response", "response"),
        ({"messages": ["a"]}, "not a conversation", "str"),
        (
            [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}],
            "unknown role",
            "'asistant'; known are .*user, assistant.*did you mean 'assistant'",
        ),
        ([{"role": "assistant"}], "missing field", "role"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
            "not a conversation",
            "'completion' none.*'messages'",
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}]},
            "not a conversation",
            r"only \['prompt'\].*'messages'",
        ),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "not text", "parts"),
    ],
)
def test_bad_rows_have_a_reason(row, reason, detail):
    import re

    with pytest.raises(RowProblem) as caught:
        read_example(row)
    assert caught.value.reason == reason
    assert re.search(detail, caught.value.detail), caught.value.detail


def test_a_prompt_alone_needs_no_response():
    assert read_example({"question": "Q"}, answered=False).prompt == "Question:\nQ\n\nAnswer:\n"
    assert read_example({"prompt": "P", "response": "R"}, answered=False) == Example("P", "")
    assert read_example([{"role": "user", "content": "a"}], answered=False).messages == TALK[:1]

"""Turns that call tools: the assistant's spans are those of a twin template that marks them."""

import keras
import pytest
from published_templates import (
    ALWAYS_OPEN,
    ALWAYS_OPEN_WORDS,
    COMMAND_R7B,
    COMMAND_R_TOOLS,
    HERMES,
    LLAMA31,
    MARKED_COMMAND_R7B,
    MARKED_HERMES,
    MARKED_LLAMA31,
    MARKED_QWEN3,
    MARKED_QWEN25,
    QWEN3,
    QWEN25,
)

from kerora.data.chat import ChatTemplate
from kerora.data.errors import RowProblem
from kerora.data.formats import read_messages

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="text does not depend on the backend"
)

TEMPLATES = {
    "command-r7b": (COMMAND_R7B, MARKED_COMMAND_R7B, "<|END_OF_TURN_TOKEN|>"),
    "hermes": (HERMES, MARKED_HERMES, "<|im_end|>"),
    "llama3.1": (LLAMA31, MARKED_LLAMA31, "<|eot_id|>"),
    "qwen2.5": (QWEN25, MARKED_QWEN25, "<|im_end|>"),
    "qwen3": (QWEN3, MARKED_QWEN3, "<|im_end|>"),
}


def tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "description": "It <counts>."}}


def calling(*numbers: int, **fields: str) -> dict:
    """A turn that calls a tool once for each number."""
    calls = [
        {"id": f"call{n}", "type": "function", "function": {"name": "add", "arguments": {"a": n}}}
        for n in numbers
    ]
    return {"role": "assistant", "tool_plan": "I shall add.", "tool_calls": calls, **fields}


def result(number: int, text: str = "A sum.") -> dict:
    return {"role": "tool", "name": "add", "tool_call_id": f"call{number}", "content": text}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


ONE_CALL_A_TURN = {
    "one step": [user("Hi"), calling(1), result(1), answer("It is 1.")],
    "two steps": [user("Hi"), calling(1), result(1), calling(2), result(2), answer("It is 2.")],
    "again later": [
        {"role": "system", "content": "Be short."},
        user("Hi"),
        answer("Hello."),
        user("Add."),
        calling(1),
        result(1),
        answer("It is 1."),
        user("Again."),
        calling(2),
        result(2),
        answer("It is 2."),
    ],
    "words beside the call": [
        user("Hi"),
        calling(1, content="Let me see."),
        result(1),
        answer("1."),
    ],
    "empty words": [user("Hi"), calling(1, content=""), result(1, ""), answer("1.")],
    "ends with a call": [user("Hi"), calling(1), result(1), calling(2)],
    "ends with a result": [user("Hi"), calling(1), result(1), calling(2), result(2)],
    "ends with a question": [user("Hi"), calling(1), result(1), answer("1."), user("And?")],
    "calls at once": [calling(1), result(1), answer("1.")],
    "thinks": [user("Hi"), calling(1, reasoning_content="Hm."), result(1), answer("1.")],
    "a result like a call": [
        user("Hi"),
        calling(1),
        result(1, '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'),
        answer("1."),
    ],
    "an answer like a result": [user("1."), calling(1), result(1, "1."), answer("1."), user("1.")],
}
CALLS_WITHOUT_RESULT = [user("Hi"), calling(1), calling(2), answer("1."), answer("2.")]
SEVERAL_CALLS = {
    "two calls": [user("Hi"), calling(1, 2), result(1), result(2, "Another."), answer("Both.")],
    "two, then three": [
        user("Hi"),
        calling(1, 2, content="First."),
        result(2),
        result(1),
        calling(3, 4, 5),
        result(3),
        result(4),
        result(5),
        answer("All."),
        user("And?"),
    ],
}
TALKS = ONE_CALL_A_TURN | SEVERAL_CALLS
CASES = [
    (name, talk)
    for name in TEMPLATES
    for talk in (ONE_CALL_A_TURN if name == "llama3.1" else TALKS)
]


def marked_spans(talk, source, tools, end_token) -> tuple[str, list[tuple[int, int]]]:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), (spans,) = utilities.render_jinja_template(
        [talk],
        tools=tools,
        chat_template=source,
        return_assistant_tokens_mask=True,
        bos_token="<s>",
        eos_token=end_token,
    )
    return text, spans


def spans(talk, source, end_token, tools=None) -> tuple[str, list[tuple[int, int]]]:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": end_token})
    return template.render_with_spans(read_messages(talk), tools=tools)


@pytest.mark.parametrize("tools", [None, [tool("add"), tool("count")]], ids=["", "tools"])
@pytest.mark.parametrize(("name", "talk"), CASES)
def test_spans_are_those_of_transformers_in_a_template_that_marks_them(name, talk, tools):
    plain, marked, end_token = TEMPLATES[name]
    expected = marked_spans(TALKS[talk], marked, tools, end_token)
    for source in (plain, marked):
        assert spans(TALKS[talk], source, end_token, tools) == expected


def test_a_call_is_learned_with_its_end_and_its_result_is_not():
    text, found = spans(TALKS["two calls"], COMMAND_R7B, "<|END_OF_TURN_TOKEN|>", [tool("add")])
    assert [text[start:end] for start, end in found] == [
        "<|START_THINKING|>I shall add.<|END_THINKING|><|START_ACTION|>[\n"
        '    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}},\n'
        '    {"tool_call_id": "1", "tool_name": "add", "parameters": {"a": 2}}\n'
        "]<|END_ACTION|><|END_OF_TURN_TOKEN|>",
        "<|START_RESPONSE|>Both.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "qwen3"])
def test_calls_that_no_result_follows(name):
    plain, marked, end_token = TEMPLATES[name]
    expected = marked_spans(CALLS_WITHOUT_RESULT, marked, None, end_token)
    assert spans(CALLS_WITHOUT_RESULT, plain, end_token) == expected


def test_a_turn_without_words_that_is_written_in_another_way_where_it_is_the_last_is_an_error():
    with pytest.raises(RowProblem, match="turn 2 cannot be told from the turns around it"):
        spans(CALLS_WITHOUT_RESULT, QWEN3, "<|im_end|>")


@pytest.mark.parametrize("talk", TALKS)
def test_a_prompt_that_says_more_than_the_text_is_an_error(talk):
    with pytest.raises(RowProblem, match=r"not start with what the template ends a prompt with.*"):
        spans(TALKS[talk], COMMAND_R_TOOLS, "<|END_OF_TURN_TOKEN|>")


def test_several_calls_where_the_template_takes_one_are_an_error():
    with pytest.raises(RowProblem, match="One call a turn!"):
        spans(TALKS["two calls"], LLAMA31, "<|eot_id|>")


@pytest.mark.parametrize("source", [ALWAYS_OPEN, ALWAYS_OPEN_WORDS])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_what_opens_a_turn_after_every_text_is_not_learned(source, turns):
    talk = [user("Hi"), answer("Hi"), user("Hi"), answer("Hi")][:turns]
    if turns == 1:
        talk = [answer("Hi")]
    text, found = spans(talk, source, "<|end|>")
    assert {text[start:end] for start, end in found} == {"Hi<|end|>"}
    with pytest.raises(RowProblem, match=r"the end token '</s>' does not say where"):
        spans(talk, source, "</s>")

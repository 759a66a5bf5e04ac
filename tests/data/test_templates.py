import pytest

from kerora.data.chat import ChatTemplate
from kerora.data.chat_templates import PLAIN
from kerora.data.errors import DataError, RowProblem
from kerora.data.formats import Example
from kerora.data.templates import Segment, Template, example_reader, segments

ROW = {"q": "1 + 1?", "note": "", "a": "2", "n": 5}


def test_the_last_place_starts_the_response():
    template = Template("{{Q}} {q}{note}\nA: {a}\n--")
    assert template.example(ROW) == Example("{Q} 1 + 1?\nA: ", "2\n--")
    assert template.prompt({"q": "x", "note": "y"}) == "{Q} xy\nA: "
    assert template.fields == ["q", "note", "a"]


def test_a_template_that_starts_with_the_response_is_plain_text():
    assert Template("{a}!").example(ROW) == Example(None, "2!")


@pytest.mark.parametrize(
    "text", ["no place", "{q", "{q.x}", "{q[0]}", "{q!r}", "{q:>3}", "{}", "{0}", "{a b}"]
)
def test_templates_that_cannot_be_are_refused(text):
    with pytest.raises(DataError, match="template"):
        Template(text)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"q": "x"}, "missing field"),
        ({"q": "x", "a": " "}, "empty response"),
        ("x", "not a record"),
    ],
)
def test_rows_that_do_not_fit_the_template(row, reason):
    with pytest.raises(RowProblem, match=reason):
        Template("{q} {a}").example(row)


def test_chat_lays_prompts_out_as_messages():
    example = example_reader("chat")({"prompt": "P", "response": "R"})
    assert [(m.role, m.content) for m in example.messages] == [("user", "P"), ("assistant", "R")]
    assert example_reader("chat")("plain") == Example(None, "plain")


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"question": "Q", "answer": "R"}, "Q"),
        ({"question": "Q", "context": "C", "answer": "R"}, "Q\n\nC"),
        ({"instruction": "I", "context": "", "response": "R"}, "I"),
        ({"instruction": "I", "input": "C", "output": "R"}, "I\n\nC"),
    ],
)
def test_a_users_message_has_no_labels(row, asked):
    example = example_reader("chat")(row)
    assert [(m.role, m.content) for m in example.messages] == [("user", asked), ("assistant", "R")]


def test_segments_cover_the_text_and_mark_what_is_learned():
    example = example_reader("chat")({"prompt": "P", "response": "R"})
    chat = ChatTemplate(PLAIN, {"eos_token": "<eos>"})
    assert segments(example, chat) == [
        Segment("User:\nP\n\nAssistant:\n", False),
        Segment("R<eos>", True),
        Segment("\n\n", False),
    ]
    assert segments(Example("p", "r"), chat) == [Segment("p", False), Segment("r", True)]
    assert segments(Example(None, "r"), chat) == [Segment("r", True)]

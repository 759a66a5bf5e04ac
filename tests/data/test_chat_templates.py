import pytest
from byte_tokenizer import ByteTokenizer

from kerora.data.chat import ChatTemplate
from kerora.data.chat_templates import (
    CHAT_TEMPLATES,
    CHATML,
    GEMMA,
    LLAMA3,
    PHI3,
    PLAIN,
    QWEN,
    built_in_chat_template,
    read_chat_template,
)
from kerora.data.encoding import Encoder
from kerora.data.errors import DataError, RowProblem
from kerora.data.formats import Message

TALK = [
    Message("system", "Be short."),
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Bye"),
    Message("assistant", "See you."),
]
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": ""}


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        (GEMMA, ["Hello.<end_of_turn>", "See you.<end_of_turn>"]),
        (CHATML, ["Hello.<|im_end|>", "See you.<|im_end|>"]),
        (QWEN, ["Hello.<|im_end|>", "See you.<|im_end|>"]),
        (LLAMA3, ["Hello.<|eot_id|>", "See you.<|eot_id|>"]),
        (PHI3, ["Hello.<|end|>", "See you.<|end|>"]),
        (PLAIN, ["Hello.<eos>", "See you.<eos>"]),
    ],
)
def test_only_the_assistants_turns_are_learned(source, answers):
    template = ChatTemplate(source, TOKENS)
    text, spans = template.render_with_spans(TALK)
    assert [text[start:end] for start, end in spans] == answers
    assert text == template.render(TALK)
    # What stands before an answer is what generation starts from.
    for (start, _), turns in zip(spans, (2, 4), strict=True):
        assert text[:start] == template.render(TALK[:turns], add_generation_prompt=True)


def test_built_in_templates_are_written_as_the_models_write_them():
    talk = TALK[1:3]
    assert ChatTemplate(GEMMA, TOKENS).render(talk) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    )
    assert ChatTemplate(CHATML).render(talk) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert ChatTemplate(LLAMA3, TOKENS).render(talk, add_generation_prompt=True) == (
        "<bos><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # Gemma knows no system turn: the text goes before the first question.
    assert "user\nBe short.\n\nHi<end" in ChatTemplate(GEMMA, TOKENS).render(TALK)


@pytest.mark.parametrize(
    ("marks", "source"),
    [
        ({"<start_of_turn>"}, GEMMA),
        ({"<|im_start|>"}, CHATML),
        ({"<|im_start|>", "<tool_call>"}, QWEN),
        ({"<|start_header_id|>"}, LLAMA3),
        ({"<|user|>", "<|assistant|>", "<|end|>", "<|system|>"}, PHI3),
        ({"<|end|>", "<|start|>", "<|message|>"}, PLAIN),
    ],
)
def test_the_built_in_template_follows_the_vocabulary(marks, source):
    assert built_in_chat_template(lambda token: token in marks) == source
    assert built_in_chat_template(lambda token: False) == PLAIN


def test_a_template_is_a_name_a_file_or_a_text(tmp_path):
    text = "{{ messages[0]['content'] }}"
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    assert read_chat_template(text) == read_chat_template(str(path)) == text
    assert read_chat_template("llama3") == LLAMA3
    assert set(CHAT_TEMPLATES.values()) == {GEMMA, CHATML, QWEN, LLAMA3, PHI3, PLAIN}


def test_what_is_no_template_is_refused(tmp_path):
    (tmp_path / "empty.jinja").write_text("Hello.")
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe{{")
    for text in ("chatlm", "nowhere.jinja", "", str(tmp_path), str(tmp_path / "binary.jinja")):
        with pytest.raises(DataError, match=r"one of chatml, gemma.*a \.jinja file, or Jinja text"):
            read_chat_template(text)
    with pytest.raises(DataError, match="no place for the messages"):
        read_chat_template(str(tmp_path / "empty.jinja"))


def test_a_built_in_template_by_name_is_the_one_that_the_vocabulary_chose():
    row = {"messages": [{"role": m.role, "content": m.content} for m in TALK]}
    chosen = Encoder(ByteTokenizer(), 512).encode(row)
    named = Encoder(ByteTokenizer(), 512, chat_template="gemma").encode(row)
    assert chosen.token_ids.tolist() == named.token_ids.tolist()
    # A start token stands in front even where the template writes none.
    plain = Encoder(ByteTokenizer(), 512, chat_template="plain").encode(row)
    assert plain.token_ids[:2].tolist() == [ByteTokenizer.start_token_id, ord("S") + 16]


def test_generation_blocks_say_what_is_learned():
    template = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        TOKENS,
    )
    text, spans = template.render_with_spans(TALK)
    assert [text[start:end] for start, end in spans] == ["Hello.<eos>", "See you.<eos>"]
    assert text == template.render(TALK)
    assert text.isprintable()


def test_a_template_that_changes_earlier_turns_is_refused():
    forgets = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %};{% endfor %}"
    with pytest.raises(RowProblem, match=r"inconsistent.*generation"):
        ChatTemplate(forgets).render_with_spans(TALK)


def test_tools_and_json_reach_the_template():
    template = ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}")
    assert template.render(TALK, tools=[{"name": "é<"}]) == '[{"name": "é<"}]'
    assert (
        ChatTemplate("{{ messages[0].tool_calls[0].x }}").render(
            [Message("assistant", "", {"tool_calls": [{"x": 3}]})]
        )
        == "3"
    )


def test_tool_calls_that_a_template_would_leave_out_are_refused():
    calls = [Message("assistant", None, {"tool_calls": [{"x": 3}]})]
    with pytest.raises(RowProblem, match=r"no place for tool calls.*built in: 'qwen'\)"):
        ChatTemplate(GEMMA).render(calls)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_assistant_may_open_a_conversation(name):
    talk = [Message("assistant", "Hello."), Message("user", "Hi")]
    text, [(start, end)] = ChatTemplate(CHAT_TEMPLATES[name], TOKENS).render_with_spans(talk)
    assert text[start:end].startswith("Hello.")


def test_a_template_that_needs_a_question_first_says_so():
    needs = "{{ messages[0].content }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RowProblem, match="no element 0; it writes no conversation that the assist"):
        ChatTemplate(needs).render_with_spans([Message("assistant", "Hello.")])


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(RowProblem, match="no system role"):
        ChatTemplate("{{ raise_exception('no system role') }}").render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__.json }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_templates_are_sandboxed(source):
    with pytest.raises(RowProblem, match="refused by the chat template"):
        ChatTemplate(source).render(TALK)


def test_a_template_that_is_no_jinja_is_refused():
    with pytest.raises(DataError, match="not valid Jinja"):
        ChatTemplate("{% for %}")

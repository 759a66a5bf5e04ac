"""Chats as `transformers` renders them, and the assistant's part of them."""

import dataclasses
import os

import keras
import pytest
from published_templates import (
    ALWAYS_OPEN,
    ALWAYS_OPEN_WORDS,
    COMMAND_R7B,
    DEEPSEEK_R1,
    GPT_OSS,
    HERMES,
    LAST_WORDS,
    LLAMA31,
    MARKED_CHATML,
    MARKED_COMMAND_R7B,
    MISTRAL,
    PHI3,
    QWEN3,
    UNCLOSED,
    WORDS_IN_PROMPT,
    WORDS_IN_TEXT,
    unmarked,
)

from kerora.data.chat import ChatTemplate
from kerora.data.chat_templates import CHAT_TEMPLATES, CHATML, GEMMA, LLAMA3, QWEN
from kerora.data.encoding import Encoder
from kerora.data.errors import RowProblem
from kerora.data.formats import read_example, read_messages

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="text does not depend on the backend"
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é<"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds & <sums>."}}]
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello. "},
    {"role": "user", "content": "Hello. \n"},
    {"role": "assistant", "content": " Über\n"},
]
WITH_TOOLS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sum": 2}', "name": "add"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Sure."},
]
THINKING = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "Easy."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\nHarder.\n</think>\n\n4"},
]


def expected(talk, source, tools=None, **options) -> str:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    talk = [{k: v for k, v in turn.items() if v is not None} for turn in talk]
    texts, _ = utilities.render_jinja_template(
        [talk], tools=tools, chat_template=source, **TOKENS, **options
    )
    return texts[0]


def learned(talk, source, tools=None) -> list[str]:
    template = ChatTemplate(source, TOKENS)
    messages = read_messages(talk)
    text, spans = template.render_with_spans(messages, tools=tools)
    assert text == expected(talk, source, tools)
    return [text[start:end] for start, end in spans]


CASES = [
    *((TALK, source, None) for source in (CHATML, QWEN, GEMMA, LLAMA3)),
    *((TALK, source, None) for source in (QWEN3, MISTRAL, PHI3, LLAMA31, MARKED_CHATML)),
    *((WITH_TOOLS, source, TOOLS) for source in (QWEN, QWEN3, MISTRAL, LLAMA31, MARKED_CHATML)),
    (THINKING, QWEN3, None),
    *((TALK, source, None) for source in (GPT_OSS, DEEPSEEK_R1, COMMAND_R7B)),
    *((WITH_TOOLS, source, TOOLS) for source in (GPT_OSS, COMMAND_R7B, HERMES)),
]


@pytest.mark.parametrize(("talk", "source", "tools"), CASES)
def test_texts_equal_those_of_transformers(talk, source, tools):
    template = ChatTemplate(source, TOKENS)
    for turns in range(1 if talk is not TALK else 2, len(talk) + 1):
        part = talk[:turns]
        if part[-1].get("content") is None and source == MARKED_CHATML:
            continue
        messages = read_messages(part, answered=False)
        for prompt in (False, True):
            text = template.render(messages, tools=tools, add_generation_prompt=prompt)
            assert text == expected(part, source, tools, add_generation_prompt=prompt)


@pytest.mark.parametrize("turns", [2, 4])
def test_the_built_in_template_of_phi3_writes_prompts_as_the_published_one(turns):
    messages = read_messages(TALK[:turns], answered=False)
    text = ChatTemplate(CHAT_TEMPLATES["phi3"]).render(messages, add_generation_prompt=True)
    assert text == expected(TALK[:turns], PHI3, add_generation_prompt=True)


CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é<"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("talk", "source", "tools", "answers"),
    [
        (TALK, QWEN, None, ["Hello. <|im_end|>", " Über\n<|im_end|>"]),
        (TALK, QWEN3, None, ["Hello. <|im_end|>", "<think>\n\n</think>\n\n Über\n<|im_end|>"]),
        (TALK, MISTRAL, None, ["Hello. </s>", " Über\n</s>"]),
        (TALK, PHI3, None, ["Hello. <|end|>", " Über\n<|end|>\n</s>"]),
        (TALK, LLAMA31, None, ["Hello.<|eot_id|>", "Über<|eot_id|>"]),
        (TALK, GEMMA, None, ["Hello.<end_of_turn>", "Über<end_of_turn>"]),
        (
            WITH_TOOLS,
            QWEN,
            TOOLS,
            [f"{CALL_TEXT}<|im_end|>", "It is 2.<|im_end|>", "Sure.<|im_end|>"],
        ),
        (
            WITH_TOOLS,
            QWEN3,
            TOOLS,
            [
                f"{CALL_TEXT}<|im_end|>",
                "It is 2.<|im_end|>",
                "<think>\n\n</think>\n\nSure.<|im_end|>",
            ],
        ),
        (
            WITH_TOOLS,
            MISTRAL,
            TOOLS,
            [
                '[TOOL_CALLS][{"type": "function", "function": {"name": "add", "arguments": '
                '{"a": 1, "b": "é<"}}}]</s>',
                "It is 2.</s>",
                "Sure.</s>",
            ],
        ),
        (
            WITH_TOOLS,
            LLAMA31,
            TOOLS,
            [
                '{"name": "add", "parameters": {"a": 1, "b": "é<"}}<|eot_id|>',
                "It is 2.<|eot_id|>",
                "Sure.<|eot_id|>",
            ],
        ),
        (
            TALK,
            GPT_OSS,
            None,
            [
                "<|channel|>final<|message|>Hello. <|end|>",
                "<|channel|>final<|message|> Über\n<|return|>",
            ],
        ),
        (
            WITH_TOOLS,
            GPT_OSS,
            TOOLS,
            [
                ' to=functions.add<|channel|>commentary json<|message|>{"a": 1, "b": "é<"}<|call|>',
                "<|channel|>final<|message|>It is 2.<|end|>",
                "<|channel|>final<|message|>Sure.<|return|>",
            ],
        ),
        (
            [*THINKING[:3], {"role": "assistant", "content": "4", "thinking": "Harder."}],
            GPT_OSS,
            None,
            [
                "<|channel|>final<|message|>2<|end|>",
                "<|channel|>analysis<|message|>Harder.<|end|>"
                "<|start|>assistant<|channel|>final<|message|>4<|return|>",
            ],
        ),
        (
            TALK,
            COMMAND_R7B,
            None,
            [
                "<|START_RESPONSE|>Hello. <|END_RESPONSE|></s>",
                "<|START_RESPONSE|> Über\n<|END_RESPONSE|></s>",
            ],
        ),
        (THINKING, QWEN3, None, ["2<|im_end|>", "<think>\nHarder.\n</think>\n\n4<|im_end|>"]),
    ],
)
def test_the_assistants_turns_are_found_without_markers(talk, source, tools, answers):
    assert learned(talk, source, tools) == answers


def test_answers_that_a_prompt_would_think_before_are_learned_as_written():
    with pytest.warns(UserWarning, match=r"ends prompts with '<think>\\n'"):
        found = learned(THINKING, DEEPSEEK_R1)
    assert found == [
        "2<\uff5cend\u2581of\u2581sentence\uff5c>",
        "\n\n4<\uff5cend\u2581of\u2581sentence\uff5c>",
    ]
    with pytest.warns(UserWarning):
        found = learned(TALK, DEEPSEEK_R1)
    assert [text[:8] for text in found] == ["Hello. <", " Über\n<\uff5c"]


@pytest.mark.parametrize(
    "source",
    [UNCLOSED, ALWAYS_OPEN, ALWAYS_OPEN_WORDS, WORDS_IN_PROMPT, WORDS_IN_TEXT, LAST_WORDS],
)
def test_turns_that_cannot_be_told_apart_are_an_error(source):
    with pytest.raises(RowProblem, match=r"inconsistent.*model\.chat_template"):
        learned(TALK, source)


@pytest.mark.parametrize("text", ["Hi", "<|im_end|>", "x" * 50, "assistant\n", "a<b [c]"])
def test_an_answer_may_repeat_anything_that_was_said(text):
    talk = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
    ]
    for source, start, end in (
        (QWEN3, "", "<|im_end|>"),
        (MISTRAL, "", "</s>"),
        (PHI3, "", "<|end|>"),
        (CHATML, "", "<|im_end|>"),
        (GPT_OSS, "<|channel|>final<|message|>", "<|end|>"),
        (COMMAND_R7B, "<|START_RESPONSE|>", "<|END_RESPONSE|></s>"),
    ):
        assert learned(talk, source)[0] == start + text.lstrip("\n") + end


def test_tools_of_a_row_reach_the_template():
    row = {"messages": WITH_TOOLS, "tools": TOOLS}
    as_text = {"messages": WITH_TOOLS, "tools": '[{"type": "function"}]'}
    assert read_example(row).tools == tuple(TOOLS)
    assert read_example(as_text).tools == ({"type": "function"},)
    with pytest.raises(RowProblem, match="not JSON"):
        read_example({"messages": WITH_TOOLS, "tools": "add"})


@pytest.fixture(scope="module")
def smollm2():
    models = os.environ.get("KERORA_REAL_MODELS")
    if not models:
        pytest.skip("KERORA_REAL_MODELS is not set")
    transformers = pytest.importorskip("transformers")
    from keras_hub.models import Llama3Tokenizer

    from kerora.models.huggingface_tokenizer import mend_tokenizer

    folder = f"{models}/smollm2-135m-instruct"
    tokenizer = Llama3Tokenizer.from_preset(folder)
    mend_tokenizer(tokenizer, folder)
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("talk", "tools", "marked"),
    [
        (TALK, None, MARKED_CHATML),
        ([*WITH_TOOLS[:1], *WITH_TOOLS[3:]], TOOLS, MARKED_CHATML),
        # What stands before a turn is one token, as it is in the model's own vocabulary.
        (WITH_TOOLS, TOOLS, MARKED_COMMAND_R7B.replace("<|CHATBOT_TOKEN|>", "<repo_name>")),
    ],
)
def test_masks_equal_those_of_transformers(smollm2, talk, tools, marked):
    tokenizer, theirs = smollm2
    given = theirs.apply_chat_template(
        talk,
        tools=tools,
        chat_template=marked,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    for source in (marked, unmarked(marked)):
        encoder = Encoder(tokenizer, sequence_length=512, chat_template=source)
        encoded = encoder.encode({"messages": talk, "tools": tools})
        assert encoded.token_ids.tolist() == given["input_ids"]
        assert (encoded.loss_weights > 0).astype(int).tolist() == given["assistant_masks"]


@pytest.mark.parametrize(
    ("talk", "tools", "source"),
    [
        (TALK, None, QWEN3),
        (TALK, None, PHI3),
        (TALK, None, MISTRAL),
        (WITH_TOOLS, TOOLS, QWEN),
        (WITH_TOOLS, TOOLS, QWEN3),
    ],
)
def test_tokens_equal_those_of_transformers(smollm2, talk, tools, source):
    tokenizer, theirs = smollm2
    encoder = Encoder(tokenizer, sequence_length=1024, chat_template=source)
    encoder = dataclasses.replace(encoder, add_end_token=False)
    encoded = encoder.encode({"messages": talk, "tools": tools})
    options = {"tools": tools, "chat_template": source}
    assert encoded.token_ids.tolist() == theirs.apply_chat_template(talk, **options)["input_ids"]
    prompt = encoder.encode_prompt({"messages": talk, "tools": tools})
    given = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, **options)
    assert prompt.tolist() == given["input_ids"]

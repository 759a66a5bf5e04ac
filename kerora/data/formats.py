"""What the fields of a row mean: which of them is the prompt, which the response.

| recognised fields | becomes |
|---|---|
| `messages`, `conversations`, perhaps `tools` | a conversation |
| `instruction`, perhaps `context` or `input`, `response` or `output` | the instruction template |
| `question` or `query`, and `answer` or `response` | the question template |
| `prompt(s)` or `input`, `response(s)`, `completion(s)` or `output` | both, joined as they are |
| `prompt` and `completion`, both messages | a conversation whose completion alone is learned |
| `text` | plain text |

Case and blanks around a field's name do not count. A row of two texts is a prompt and its response.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerora.data.errors import RowProblem


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: `"user"`, `"assistant"` and so on.
        content: Its text; None where it has none, as a turn of tool calls alone.
        extra: What else the row says, such as tool calls.
    """

    role: str
    content: str | None
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Example:
    """What one row asks the model to learn.

    Either a conversation (`messages`, and the `tools` that it may call), or a `prompt` and its
    `response`; a `prompt` of None says that `response` is plain text. Of a conversation the
    assistant's first `given_turns` turns are given, not learned.
    """

    prompt: str | None = None
    response: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    given_turns: int = 0


def _bare(prompt: str, context: str) -> str:
    return f"{prompt}\n\n{context}" if context else prompt


@dataclass(frozen=True)
class Format:
    """A set of field names with a meaning.

    Args:
        name: For messages.
        prompt: Alternative names of the field that asks.
        response: Alternative names of the field that answers.
        context: Alternative names of an optional field that goes with the question.
        template: Lays the prompt and the context (empty where there is none) out as text, up to
            where the response starts.
    """

    name: str
    prompt: tuple[str, ...]
    response: tuple[str, ...]
    context: tuple[str, ...] = ()
    template: Callable[[str, str], str] = _bare


def _instruction(prompt: str, context: str) -> str:
    middle = f"\n\nContext:\n{context}" if context else ""
    return f"Instruction:\n{prompt}{middle}\n\nResponse:\n"


def _question(prompt: str, context: str) -> str:
    start = f"Context:\n{context}\n\n" if context else ""
    return f"{start}Question:\n{prompt}\n\nAnswer:\n"


FORMATS = (
    Format(
        "instruction",
        prompt=("instruction",),
        response=("response", "output", "answer", "completion"),
        context=("context", "input"),
        template=_instruction,
    ),
    Format(
        "question",
        prompt=("question", "query"),
        response=("answer", "response"),
        context=("context",),
        template=_question,
    ),
    Format(
        "prompt",
        prompt=("prompt", "prompts", "input"),
        response=("response", "responses", "completion", "completions", "output"),
    ),
)

_MESSAGE_FIELDS = ("messages", "conversations", "conversation")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLE_NAMES["observation"] = "tool"


def read_example(row: Any, *, answered: bool = True, labelled: bool = True) -> Example:
    """Understands one row by its field names.

    Args:
        row: A string, a pair of strings (a prompt and its response), a dict, or a list of
            messages.
        answered: Whether a row without its response is a problem; for generation it is none.
        labelled: Whether a prompt says what its parts are. A message of a conversation does not:
            it is the instruction or question, and after a blank line the context.

    Returns:
        The example. Labelled, rows of the instruction and question formats have their prompt laid
        out as `"Instruction:\\n...\\n\\nResponse:\\n"` and
        `"Question:\\n...\\n\\nAnswer:\\n"`.

    Raises:
        RowProblem: A field is missing or empty, or none is known.
    """
    if isinstance(row, str):
        return Example(response=_filled(row, "text"))
    if isinstance(row, bytes):
        raise RowProblem("wrong encoding", "bytes that are not UTF-8")
    if isinstance(row, Sequence) and any(isinstance(entry, str) for entry in row):
        return _read_pair(row, answered)
    if isinstance(row, Sequence):
        return Example(messages=read_messages(row, answered=answered))
    if not isinstance(row, Mapping):
        raise RowProblem("not a record", f"expected fields, received {type(row).__name__}")
    return _read_fields(row, answered, labelled)


def _plainly_named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with its fields as the known ones are written; as it is where two would be one."""
    named = {str(name).strip().lower(): value for name, value in row.items()}
    return named if len(named) == len(row) else row


def _read_fields(written: Mapping[str, Any], answered: bool, labelled: bool) -> Example:
    row = _plainly_named(written)
    for name in _MESSAGE_FIELDS:
        if name in row:
            messages = read_messages(row[name], answered=answered)
            return Example(messages=messages, tools=_read_tools(row.get("tools")))
    if _is_messages(row.get("prompt")):
        return _read_given_and_learned(row, answered)
    for form in FORMATS:
        asks, answers = _first(row, form.prompt), _first(row, form.response)
        if asks is None or (answered and answers is None and form is FORMATS[-1]):
            continue
        if answered and answers is None:
            raise RowProblem("missing field", f"{asks!r} without one of {list(form.response)}")
        response = _answer(row, answers) if answered and answers else ""
        layout = form.template if labelled else _bare
        return Example(layout(field_text(row, asks), _context(row, form)), response)
    if "text" in row:
        return Example(response=field_text(row, "text"))
    raise RowProblem("unknown fields", f"found {sorted(map(str, written))}; {known_fields()}")


def _read_pair(row: Sequence[Any], answered: bool) -> Example:
    if len(row) != 2 or not all(isinstance(entry, str) for entry in row):
        raise RowProblem(
            "not a record",
            "a row of several values is (prompt, response), two texts, or a list of messages "
            f'{{"role", "content"}}; received {len(row)} values: {str(row)[:60]}',
        )
    prompt, response = _filled(row[0], "prompt"), row[1]
    return Example(prompt, _filled(response, "response", "empty response") if answered else "")


def _answer(row: Mapping[str, Any], name: str) -> str:
    return field_text(row, name, reason="empty response")


def _context(row: Mapping[str, Any], form: Format) -> str:
    name = _first(row, form.context)
    return field_text(row, name, empty=True) if name else ""


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value)


def _read_given_and_learned(row: Mapping[str, Any], answered: bool) -> Example:
    """A conversation in two fields: the turns of `prompt` are given, those of the other learned."""
    given = read_messages(row["prompt"], answered=False)
    tools = _read_tools(row.get("tools"))
    if not answered:
        return Example(messages=given, tools=tools)
    answers = _first(row, FORMATS[-1].response)
    if answers is None or not _is_messages(row[answers]):
        found = f"{answers!r} none" if answers else f"only {sorted(map(str, row))} stand beside it"
        raise RowProblem(
            "not a conversation",
            f"'prompt' holds messages and {found}: give 'completion' as messages too, or all of "
            "them as one list, 'messages'",
        )
    given_turns = sum(message.role == "assistant" for message in given)
    messages = given + read_messages(row[answers])
    return Example(messages=messages, tools=tools, given_turns=given_turns)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def known_fields() -> str:
    """The field names that are recognised, as a sentence for messages."""
    sets = [
        f"{'/'.join(form.prompt)} with {'/'.join(form.response)}"
        + (f" (and {'/'.join(form.context)})" if form.context else "")
        for form in FORMATS
    ]
    return (
        f"known are {'; '.join(sets)}; {' or '.join(_MESSAGE_FIELDS[:2])}; text. For other names "
        'give a template such as "... {field} ... {response_field}"'
    )


def field_text(
    row: Mapping[str, Any], name: str, *, empty: bool = False, reason: str = "empty field"
) -> str:
    """The text of one field, or the `RowProblem` that it is missing, empty or not text."""
    if name not in row:
        raise RowProblem("missing field", f"no {name!r} among {sorted(map(str, row))}")
    value = row[name]
    if _is_missing(value):
        value = ""
    if isinstance(value, bytes):
        raise RowProblem("wrong encoding", f"{name!r} holds bytes that are not UTF-8")
    if isinstance(value, Mapping | list | tuple):
        raise RowProblem("not text", f"{name!r} holds a {type(value).__name__}")
    return checked_text(str(value), name) if empty else _filled(str(value), name, reason)


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none: tables hold NaN there, or pandas' own NA."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _filled(text: str, name: str, reason: str = "empty field") -> str:
    if not text.strip():
        raise RowProblem(reason, f"{name!r} is empty")
    return checked_text(text, name)


def checked_text(text: str, name: str) -> str:
    """A text that has an encoding, as tokenizers need it; of JSON not every one has (`"\\ud83d"`).

    Raises:
        RowProblem: It holds half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem("wrong encoding", f"{name!r} holds half a surrogate pair") from error
    return text


def read_messages(value: Any, *, answered: bool = True) -> tuple[Message, ...]:
    """A conversation from `{"role", "content"}` or ShareGPT's `{"from", "value"}` entries.

    Raises:
        RowProblem: It is empty, an entry is not a message, or (where `answered`) no assistant
            speaks.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowProblem("not a conversation", f"expected messages, got {type(value).__name__}")
    messages = tuple(_read_message(entry) for entry in value)
    if not messages:
        raise RowProblem("empty field", "a conversation without messages")
    answers = [message for message in messages if message.role == "assistant"]
    if not answered:
        return messages
    if not answers:
        raise RowProblem("missing field", "no message has the role 'assistant'")
    if not any((message.content or "").strip() or message.extra for message in answers):
        raise RowProblem("empty response", "every assistant message is empty")
    return messages


def _read_message(entry: Any) -> Message:
    if not isinstance(entry, Mapping):
        raise RowProblem("not a conversation", f"a message is a {type(entry).__name__}")
    role_name = _first(entry, ("role", "from"))
    text_name = _first(entry, ("content", "value"))
    wordless = text_name is None or _is_missing(entry[text_name])
    if role_name is None or (wordless and not entry.get("tool_calls")):
        raise RowProblem("missing field", f"a message holds {sorted(map(str, entry))}")
    role = _role(entry[role_name])
    content = None if text_name is None else entry[text_name]
    if isinstance(content, list):  # the parts of a multimodal message; only text can be used
        if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
            raise RowProblem("not text", "a message holds parts that are not text")
        content = "".join(str(part.get("text", "")) for part in content)
    extra = {
        name: value
        for name, value in entry.items()
        if name not in (role_name, text_name) and value is not None
    }
    if not extra.get("tool_calls"):
        extra.pop("tool_calls", None)  # an empty list, as servers write it, calls nothing
    text = None if wordless else field_text({"content": content}, "content", empty=True)
    return Message(role, text, extra or None)


def _read_tools(value: Any) -> tuple[Any, ...]:
    """Tool definitions; as text too, for tables hold no lists of unlike records."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except json.JSONDecodeError as error:
            raise RowProblem("not JSON", f"'tools': {error}") from error
    if value is not None and not isinstance(value, Sequence):
        raise RowProblem("not a list", f"'tools' holds a {type(value).__name__}")
    return tuple(value or ())


def _role(name: Any) -> str:
    """The role as templates call it. A misspelt one would be learned from, or never."""
    role = _ROLE_NAMES.get(str(name), str(name))
    if role in _ROLES:
        return role
    known = ", ".join([*_ROLES, *_ROLE_NAMES])
    near = difflib.get_close_matches(str(name).lower(), [*_ROLES, *_ROLE_NAMES], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RowProblem("unknown role", f"received {name!r}; known are {known}{hint}")

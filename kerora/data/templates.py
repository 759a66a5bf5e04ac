"""The text of an example, cut into the parts that are learned and the parts that are given."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kerora.data.chat import ChatTemplate
from kerora.data.errors import DataError, RowProblem
from kerora.data.formats import Example, Message, field_text, read_example


@dataclass(frozen=True)
class Segment:
    """A piece of text; `supervised` where the model is trained to write it."""

    text: str
    supervised: bool


class Template:
    """A layout for rows with any field names, given as text with `{field}` places.

    The last place is the response; it and what follows it are what the model learns to write.

    Args:
        text: Such as `"Instruction:\\n{instruction}\\n\\nResponse:\\n{response}"`. A literal brace
            is doubled.

    Raises:
        DataError: There is no place, or one is not a plain field name.

    Example:

    ```python
    template = Template("Q: {question}\\nA: {answer}")
    template.example({"question": "1 + 1?", "answer": "2"})
    # Example(prompt="Q: 1 + 1?\\nA: ", response="2")
    template.prompt({"question": "1 + 1?"})  # "Q: 1 + 1?\\nA: "
    ```
    """

    def __init__(self, text: str):
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise DataError(f"Cannot read the template {text!r}: {error}") from error
        self._pieces: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in pieces:
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise DataError(
                    f"A template's places are plain field names in braces, such as {{response}}. "
                    f"Received {{{name}}} in {text!r}"
                )
            self._pieces.append((literal, name))
        self.fields = [name for _, name in self._pieces if name is not None]
        if not self.fields:
            raise DataError(f"A template needs a {{field}} for the response. Received: {text!r}")
        last = max(index for index, (_, name) in enumerate(self._pieces) if name is not None)
        self._before, self._after = self._pieces[:last], self._pieces[last + 1 :]
        self._lead, response = self._pieces[last]
        self.response_field = str(response)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """The text up to where the response starts. Raises `RowProblem` on a missing field."""
        parts = []
        for literal, name in self._before:
            parts += [literal, field_text(row, name, empty=True) if name else ""]
        return "".join(parts) + self._lead

    def example(self, row: Any) -> Example:
        """One row as an example. Raises `RowProblem` on a missing field or an empty response."""
        if not isinstance(row, Mapping):
            raise RowProblem("not a record", f"a template needs fields {self.fields}")
        response = field_text(row, self.response_field, reason="empty response")
        tail = "".join(literal for literal, _ in self._after)
        # An empty prompt is no prompt: the text is learned from its first token on.
        return Example(self.prompt(row) or None, response + tail)


def example_reader(template: str | None) -> Callable[[Any], Example]:
    """The function that turns rows into examples.

    Args:
        template: None recognises the fields; `"chat"` does too, and makes a prompt (without the
            plain layout's labels) and its response a user's and an assistant's message; any other
            text is a `Template`.
    """
    if template is None:
        return read_example
    if template == "chat":
        return lambda row: as_conversation(read_example(row, labelled=False))
    return Template(template).example


def as_conversation(example: Example) -> Example:
    """A prompt and its response as two messages. Plain text and conversations stay as they are."""
    if example.messages or example.prompt is None:
        return example
    answer = Message("assistant", example.response)
    return Example(messages=(Message("user", example.prompt), answer))


def segments(example: Example, chat_template: ChatTemplate) -> list[Segment]:
    """The text of an example in order, cut where supervision starts and ends."""
    if example.messages:
        tools = list(example.tools) or None
        text, spans = chat_template.render_with_spans(example.messages, tools=tools)
        return _cut(text, _learned(spans, example))
    if example.prompt is None:
        return [Segment(example.response, True)]
    return [Segment(example.prompt, False), Segment(example.response, True)]


def _learned(spans: list[tuple[int, int]], example: Example) -> list[tuple[int, int]]:
    turns = sum(message.role == "assistant" for message in example.messages)
    if example.given_turns and len(spans) != turns:
        raise RowProblem(
            "inconsistent chat template",
            f"it marks {len(spans)} parts of {turns} assistant turns as learned, which does not "
            "say which belong to the completion: put all turns into one list, 'messages'",
        )
    return spans[example.given_turns :]


def _cut(text: str, spans: list[tuple[int, int]]) -> list[Segment]:
    parts, position = [], 0
    for start, end in spans:
        parts += [Segment(text[position:start], False), Segment(text[start:end], True)]
        position = end
    parts.append(Segment(text[position:], False))
    return [part for part in parts if part.text]

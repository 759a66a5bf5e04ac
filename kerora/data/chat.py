"""Conversations as text: a Jinja chat template, a model's own say.

Templates come with models, from strangers: they are rendered in Jinja's immutable sandbox, which
here has an end, with the globals and filters that Hugging Face's `apply_chat_template` offers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from kerora.data.chat_spans import assistant_spans
from kerora.data.chat_templates import CHAT_TEMPLATES
from kerora.data.errors import DataError, RowProblem
from kerora.data.formats import Message

# Stand for the borders of `{% generation %}` blocks while rendering: no text may hold them, for
# they are Unicode noncharacters.
_SPAN_START, _SPAN_END = "\ufdd0", "\ufdd1"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

# A message's reasoning goes by several names; templates read the first, gpt-oss' the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Renders conversations, and says which parts of the text are the assistant's.

    Args:
        source: The Jinja template.
        special_tokens: The text of `bos_token`, `eos_token`, `pad_token` and the like.

    Raises:
        DataError: The template is not valid Jinja.

    Example:

    ```python
    template = ChatTemplate(kerora.data.chat_templates.CHATML)
    template.render([Message("user", "Hi")], add_generation_prompt=True)
    # "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    ```
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        import jinja2

        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._marks_spans = bool(_GENERATION.search(source))
        try:
            self._template = _environment().compiled(source)
        except (jinja2.TemplateError, RecursionError, OverflowError, MemoryError) as error:
            raise DataError(f"The chat template is not valid Jinja: {error}") from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The text of a conversation.

        Args:
            messages: The turns.
            add_generation_prompt: Ends with the start of an assistant's turn.
            **variables: Further variables of the template, such as `tools`.

        Raises:
            RowProblem: The template refuses the conversation, or has no place for its tool calls.
        """
        marked = self._render(messages, add_generation_prompt, variables)
        return marked.replace(_SPAN_START, "").replace(_SPAN_END, "")

    def _render(self, messages: Sequence[Message], prompt: bool, variables: Mapping) -> str:
        entries = [_entry(message) for message in messages]
        if "tool_calls" not in self.source and any("tool_calls" in entry for entry in entries):
            able = [repr(name) for name, text in CHAT_TEMPLATES.items() if "tool_calls" in text]
            raise RowProblem(
                "no place for tool calls",
                "the chat template does not write them: leave such rows out, or set "
                f"model.chat_template to one that does (built in: {', '.join(able)})",
            )
        from kerora.data.template_sandbox import one_rendering

        try:
            with one_rendering():
                return self._template.render(
                    messages=entries,
                    add_generation_prompt=prompt,
                    **{"tools": None, "documents": None, **self._special_tokens, **variables},
                )
        except Exception as error:  # a template can fail in any way a program can
            opens = "" if entries else "; it writes no conversation that the assistant opens"
            raise RowProblem("refused by the chat template", f"{error}{opens}") from error

    def render_with_spans(
        self, messages: Sequence[Message], **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the start and end of what the assistant writes in it.

        A turn starts where the generation prompt for it ends, so that training sees what
        generation sees, and holds the mark that ends it; where prompts end with marks that the
        text lacks (`<think>`), a warning says so, and it starts with the answer's words. A template
        with `{% generation %}` blocks says so itself.

        Raises:
            RowProblem: The template refuses the conversation, or where a turn starts or ends in
                its text cannot be said for certain.
        """
        if self._marks_spans:
            return _split_marks(self._render(messages, False, variables))

        def render(turns: Sequence[Message], add_generation_prompt: bool = False) -> str:
            return self.render(turns, add_generation_prompt=add_generation_prompt, **variables)

        return assistant_spans(render, messages, self._special_tokens.get("eos_token", ""))


def _entry(message: Message) -> dict[str, Any]:
    """A message as templates see it: what it does not say is missing, not None."""
    entry: dict[str, Any] = {"role": message.role, **(message.extra or {})}
    if message.content is not None:
        entry["content"] = message.content
    reasoning = next((entry[name] for name in _REASONING if name in entry), None)
    if reasoning is not None:
        entry = {"thinking": reasoning, **entry, "reasoning_content": reasoning}
    return entry


def _split_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    spans = []
    text, *parts = marked.split(_SPAN_START)
    for part in parts:
        inside, _, after = part.partition(_SPAN_END)
        spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return text, spans


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2.ext
    import jinja2.nodes

    from kerora.data.template_sandbox import BoundedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %} ... {% endgeneration %}`: what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own way to declare it

        def parse(self, parser: Any) -> list[Any]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            start, end = (
                jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)]).set_lineno(line)
                for mark in (_SPAN_START, _SPAN_END)
            )
            return [start, *body, end]

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _time_now
    return environment


def _time_now(form: str) -> str:
    if re.search(r"%\S?\d{3}", form):
        raise ValueError(f"a time as wide as {form[:80]!r} is not written")
    return datetime.now().strftime(form)


def _raise(message: str) -> None:
    raise ValueError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any):
    # Jinja's own filter escapes HTML, which no chat template means.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

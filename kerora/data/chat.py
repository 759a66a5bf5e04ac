"""Conversations as text: a model's own Jinja chat template, or a built-in one.

Templates come with models, from strangers: they are rendered in Jinja's immutable sandbox, with
the globals and filters that Hugging Face's `apply_chat_template` offers.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from kerora.data.errors import DataError, RowProblem
from kerora.data.formats import Message

GEMMA = """\
{{ bos_token }}{% set ns = namespace(system='') %}\
{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = message['content'] | trim + '\n\n' %}\
{% else %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}\
{% if message['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}\
{{ message['content'] | trim + '<end_of_turn>\n' }}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

CHATML = """\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """\
{{ bos_token }}\
{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
{{ message['content'] | trim + '<|eot_id|>' }}\
{% endfor %}\
{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

PLAIN = """\
{% for message in messages %}\
{{ message['role'] | capitalize + ':\n' + message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""

_BUILT_IN = (("<start_of_turn>", GEMMA), ("<|im_start|>", CHATML), ("<|start_header_id|>", LLAMA3))

# Stand for the borders of `{% generation %}` blocks while rendering: no text may hold them, for
# they are Unicode noncharacters.
_SPAN_START, _SPAN_END = "\ufdd0", "\ufdd1"


class ChatTemplate:
    """Renders conversations, and says which parts of the text are the assistant's.

    Args:
        source: The Jinja template.
        special_tokens: The text of `bos_token`, `eos_token`, `pad_token` and the like.

    Raises:
        DataError: The template is not valid Jinja.

    Example:

    ```python
    template = ChatTemplate(CHATML)
    template.render([Message("user", "Hi")], add_generation_prompt=True)
    # "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    ```
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        import jinja2

        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._marks_spans = "generation %}" in source or "generation -%}" in source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
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
            RowProblem: The template refuses the conversation.
        """
        marked = self._render(messages, add_generation_prompt, variables)
        return marked.replace(_SPAN_START, "").replace(_SPAN_END, "")

    def _render(self, messages: Sequence[Message], prompt: bool, variables: Mapping) -> str:
        entries = [
            {"role": message.role, "content": message.content, **(message.extra or {})}
            for message in messages
        ]
        try:
            return self._template.render(
                messages=entries,
                add_generation_prompt=prompt,
                **{"tools": None, "documents": None, **self._special_tokens, **variables},
            )
        except Exception as error:  # a template can fail in any way a program can
            raise RowProblem("refused by the chat template", str(error)) from error

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the start and end of what the assistant writes in it.

        A turn starts where the generation prompt for it ends, so that training sees what
        generation sees, and holds the mark that ends it. A template with `{% generation %}`
        blocks says so itself.

        Raises:
            RowProblem: The template refuses the conversation, or renders its turns differently
                when more of them follow, so that no part of the text is the assistant's alone.
        """
        if self._marks_spans:
            return _split_marks(self._render(messages, False, {}))
        text = self.render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.render(messages[:index], add_generation_prompt=True)
            upto = self.render(messages[: index + 1])
            if not (upto.startswith(prompt) and text.startswith(upto.rstrip())):
                raise RowProblem(
                    "inconsistent chat template",
                    f"the text before turn {index + 1} changes when the turns after it are added; "
                    "pass a chat_template that does not, or one with {% generation %} blocks",
                )
            # The line break after the mark that ends a turn starts the next one.
            end = len(upto.rstrip()) if upto.rstrip().endswith((">", "]")) else len(upto)
            spans.append((len(prompt), max(len(prompt), end)))
        return text, spans


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
    import jinja2.sandbox

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

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> None:
    raise ValueError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any):
    # Jinja's own filter escapes HTML, which no chat template means.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def built_in_chat_template(has_token: Any) -> str:
    """The template whose marks the tokenizer knows; a readable plain one if it knows none.

    Args:
        has_token: Says whether a text is one token of the vocabulary.
    """
    return next((source for mark, source in _BUILT_IN if has_token(mark)), PLAIN)


def read_chat_template(folder: str | Path) -> str | None:
    """The chat template in a Hugging Face folder; None where it has none.

    Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of several, the
    one called "default").
    """
    folder = Path(folder)
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template

"""The chat templates of well-known families, for models that bring none or an unsuited one."""

from pathlib import Path
from typing import Any

from kerora.data.errors import DataError

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

# What Qwen 2.5 and Qwen 3 share; the one adds a system text of its own, the other empty thinking.
QWEN = """\
{% set ns = namespace(system='') %}\
{% if messages and messages[0]['role'] == 'system' %}\
{% set ns.system = messages[0]['content'] %}{% endif %}\
{% if tools %}\
{{ '<|im_start|>system\n' }}{% if ns.system %}{{ ns.system + '\n\n' }}{% endif %}\
{{ '# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are \
provided with function signatures within <tools></tools> XML tags:\n<tools>' }}\
{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}\
{{ '\n</tools>\n\nFor each function call, return a json object with function name and arguments \
within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": \
<args-json-object>}\n</tool_call><|im_end|>\n' }}\
{% elif ns.system %}{{ '<|im_start|>system\n' + ns.system + '<|im_end|>\n' }}{% endif %}\
{% for message in messages %}\
{% if message['role'] == 'tool' %}\
{% if loop.first or loop.previtem['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}\
{{ '\n<tool_response>\n' + message['content'] + '\n</tool_response>' }}\
{% if loop.last or loop.nextitem['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}\
{% elif not (loop.first and message['role'] == 'system') %}\
{{ '<|im_start|>' + message['role'] }}\
{% if message['content'] or not message['tool_calls'] %}{{ '\n' + message['content'] }}{% endif %}\
{% for call in message['tool_calls'] or [] %}{% set call = call['function'] or call %}\
{{ '\n<tool_call>\n{"name": "' + call['name'] + '", "arguments": ' }}\
{{ call['arguments'] if call['arguments'] is string else call['arguments'] | tojson }}\
{{ '}\n</tool_call>' }}{% endfor %}\
{{ '<|im_end|>\n' }}\
{% endif %}\
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

PHI3 = """\
{% for message in messages %}\
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

PLAIN = """\
{% for message in messages %}\
{{ message['role'] | capitalize + ':\n' + message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""

CHAT_TEMPLATES = {
    "chatml": CHATML,
    "gemma": GEMMA,
    "llama3": LLAMA3,
    "phi3": PHI3,
    "plain": PLAIN,
    "qwen": QWEN,
}

# By the marks that the vocabulary holds; the first that fits is taken.
_BUILT_IN = (
    (("<start_of_turn>",), GEMMA),
    (("<|im_start|>", "<tool_call>"), QWEN),
    (("<|im_start|>",), CHATML),
    (("<|start_header_id|>",), LLAMA3),
    (("<|user|>", "<|assistant|>", "<|end|>"), PHI3),
)


def chat_template_name(source: str) -> str | None:
    """The name of a built-in template; None for any other."""
    return next((name for name, text in CHAT_TEMPLATES.items() if text == source), None)


def built_in_chat_template(has_token: Any) -> str:
    """The template whose marks the tokenizer knows; a readable plain one if it knows none.

    Args:
        has_token: Says whether a text is one token of the vocabulary.
    """
    return next((source for marks, source in _BUILT_IN if all(map(has_token, marks))), PLAIN)


def read_chat_template(text: str) -> str:
    """The Jinja source that a text stands for.

    Args:
        text: The name of one in `CHAT_TEMPLATES`, the path of a file, or Jinja source itself.

    Raises:
        DataError: It is none of these.

    Example:

    ```python
    read_chat_template("chatml") == read_chat_template(CHATML) == CHATML
    ```
    """
    if _is_jinja(text):
        return text
    if text in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[text]
    path = Path(text).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"A chat template is one of {', '.join(CHAT_TEMPLATES)}, a .jinja file, or Jinja text. "
            f"Received: {text!r}, which cannot be read as a file ({error})"
        ) from None
    if not _is_jinja(source):
        raise DataError(f"{path} holds no Jinja, and so no place for the messages of a chat.")
    return source


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text

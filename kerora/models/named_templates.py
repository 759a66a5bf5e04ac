"""Several chat templates of one model, named for what they are for, as one."""

from __future__ import annotations

from collections.abc import Mapping

PLAIN, WITH_TOOLS = "default", "tool_use"


def one_template(named: Mapping[str, str]) -> str | None:
    """The template that takes the one for tools where there are tools, else the plain one.

    `transformers` chooses so among the templates of a tokenizer (`PreTrainedTokenizerBase.
    get_chat_template`); templates by other names (`rag`) it takes only when they are asked for.

    Args:
        named: Jinja templates by their names.

    Returns:
        The template; None where none is called "default".

    Example:
    ```python
    one_template({"default": "plain", "tool_use": "with tools", "rag": "with documents"})
    # "{%+ if tools +%}with tools{%+ else +%}plain{%+ endif +%}"
    ```
    """
    plain, with_tools = named.get(PLAIN), named.get(WITH_TOOLS)
    if plain is None or with_tools is None:
        return plain
    # A template by itself loses its last line break; the signs keep the tags from taking others.
    with_tools, plain = (text.removesuffix("\n") for text in (with_tools, plain))
    return f"{{%+ if tools +%}}{with_tools}{{%+ else +%}}{plain}{{%+ endif +%}}"

"""`kerora generate`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kerora.cli.model import check_adapter_place
from kerora.cli.session import session


def generate(
    source: Annotated[str, typer.Argument(help="The model: as `model.source` of a recipe.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", help="Text to continue, or a row as JSON. May be given several times."
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A folder that kerora or PEFT saved.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Hold a conversation; the prompt, if any, opens it.")
    ] = False,
    template: Annotated[
        str | None, typer.Option(help="Layout of JSON rows, as `data.template` of the recipe.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Answer prompts with a model and its adapter, greedily.

    A row as JSON is laid out as it was in training:

    Example: `kerora generate tiny_gemma --adapter runs/first/adapter -p '{"instruction": "Hi."}'`

    A conversation is laid out by the model's chat template (`--chat` holds one):

    Example: `kerora generate MODEL -p '{"messages": [{"role": "user", "content": "Hi."}]}'`
    """
    with session():
        if not prompt and not chat:
            raise ValueError("give --prompt, or --chat for a conversation")
        prompts = [_row(text) for text in prompt or []]
        check_adapter_place(adapter)
        from kerora.quiet import quiet

        with quiet():
            from kerora.cli.model import load
            from kerora.generation import GreedyDecoder
            from kerora.text_generation import encode_prompts, prompt_encoder
            from kerora.training.fit_data import warn_of_unchosen_chat_template

            model = load(source, adapter)
            encoder = prompt_encoder(model, template)
        turn = {"role": "user", "content": ""}
        warn_of_unchosen_chat_template(model, encoder, [[turn]] if chat else prompts)
        rows = 1 if chat else len(prompts)
        decoder = GreedyDecoder(model, encoder.stop_token_ids, max_length, rows=rows)

        def answers(asked: list[Any]) -> list[str]:
            tokens = decoder(encode_prompts(encoder, asked, "--prompt"))
            return [str(encoder.tokenizer.detokenize(row.tolist())).strip() for row in tokens]

        if chat:
            _converse(answers, prompt or [])
        else:
            given = answers(prompts)
            print("\n\n".join(given))
            texts = [p for p, a in zip(prompts, given, strict=True) if isinstance(p, str) and not a]
            if texts and model.chat_template is not None:
                row = json.dumps({"messages": [{"role": "user", "content": texts[0]}]})
                print(
                    "The answer to a plain text is empty, and this model has a template for "
                    f"conversations. To ask it in one, try --chat, or\n  -p {shlex.quote(row)}",
                    file=sys.stderr,
                )


def _row(text: str) -> Any:
    """A prompt as typed: a row where it is a JSON object, else text."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--prompt looks like JSON but is none: {error}") from None
    return text


def _converse(answers: Any, opening: list[str]) -> None:
    """Answer turn by turn until the end of input, or an empty line."""
    messages: list[dict[str, str]] = []
    waiting = list(opening)
    while True:
        if waiting:
            text = waiting.pop(0)
        elif opening and not sys.stdin.isatty():
            return
        else:
            try:
                text = input("> ")
            except EOFError:
                return
        if not text.strip():
            return
        messages.append({"role": "user", "content": text})
        (answer,) = answers([messages])
        messages.append({"role": "assistant", "content": answer})
        print(answer, flush=True)

"""Answers of a causal language model to texts, records and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerora.data import DataError, Encoder, RowProblem
from kerora.generation import padded, padding_token, until_stop
from kerora.model_mixin import ModelMixin
from kerora.training.fit_data import text_preprocessor, warn_of_unchosen_chat_template

DEFAULT_LENGTH = 1024

# Dictionaries with one of these are KerasHub's own inputs: tokens, or texts beside images.
_KERAS_HUB_FIELDS = ("token_ids", "prompts")


class TextGeneration(ModelMixin):
    """Mixin of a KerasHub causal language model: `generate`."""

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
        *,
        template: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """KerasHub's `generate`, which also takes rows, laid out as `fit` lays them out.

        Args:
            inputs: What KerasHub's takes (a text, a list of texts, tokens), a record (its response,
                if any, is left out), a conversation (`{"messages": [...]}`, perhaps with `tools`,
                or the list of messages), or a list of such, which makes one batch.
            max_length: Most tokens of prompt and answer together. Default: the preprocessor's
                `sequence_length`.
            stop_token_ids: Tokens that end an answer; None: none does. Default: as in KerasHub for
                texts; for rows the end token and the marks that end a turn.
            strip_prompt: Whether the answer alone is returned. Default: False, the prompt and the
                answer.
            template: Layout of rows, as in `fit`; `"chat"` makes of a text too a user's message.
                Default: by the names of the fields.
            **kwargs: As in the `generate` of the model's own class, for what KerasHub takes.

        Returns:
            A string, of a list of inputs a list of strings; of tokens a dictionary of
            `(batch, max_length)` as in KerasHub. Of rows the answer is without the mark that
            ended it.

        Raises:
            ValueError: An entry is no record with a known field and no conversation
                (`kerora.DataError`), or its prompt fills `max_length`.

        Example:
        ```python
        model.generate({"question": "What is the opposite of hot?"}, strip_prompt=True)
        model.generate({"messages": [{"role": "user", "content": "Hi."}]}, max_length=128)
        ```
        """
        if template is None and not _holds_rows(inputs):
            options = {"strip_prompt": True, **kwargs} if strip_prompt else kwargs
            return super().generate(  # type: ignore[misc]
                inputs, max_length=max_length, stop_token_ids=stop_token_ids, **options
            )
        if kwargs:
            raise TypeError(
                f"`generate` takes {', '.join(kwargs)} with texts or tokens alone. Received: rows"
            )
        alone = isinstance(inputs, str | Mapping) or _is_conversation(inputs)
        rows = [inputs] if alone else list(inputs)
        encoder = prompt_encoder(self, template)
        prompts = encode_prompts(encoder, rows, "inputs")
        warn_of_unchosen_chat_template(self, encoder, rows)
        stops = encoder.stop_token_ids if stop_token_ids == "auto" else stop_token_ids
        texts = self._continue(prompts, max_length, tuple(stops or ()), strip_prompt)
        return texts[0] if alone else texts

    def _continue(
        self,
        prompts: list[np.ndarray],
        max_length: int | None,
        stop_token_ids: tuple[int, ...],
        strip_prompt: bool,
    ) -> list[str]:
        """The text of each prompt and its answer, or of the answer alone."""
        length = max_length or self.preprocessor.sequence_length or DEFAULT_LENGTH
        longest = max(len(prompt) for prompt in prompts)
        if longest >= length:
            raise DataError(
                f"A prompt of {longest} tokens leaves no room for an answer: max_length counts "
                f"the tokens of both. Expected more than {longest}. Received: max_length={length}"
            )
        padding = padding_token(stop_token_ids)
        arrays = padded(prompts, length, padding)
        inputs = {name: keras.ops.convert_to_tensor(x) for name, x in arrays.items()}
        written = self.make_generate_function()(inputs, stop_token_ids=stop_token_ids or None)
        token_ids = keras.ops.convert_to_numpy(written["token_ids"])
        results = []
        for prompt, tokens in zip(prompts, token_ids, strict=True):
            answer = until_stop(tokens[len(prompt) :], stop_token_ids)
            results.append(answer if strip_prompt else np.concatenate([prompt, answer]))
        return list(self.preprocessor.generate_postprocess(padded(results, length, padding)))


def prompt_encoder(task: Any, template: str | None = None) -> Encoder:
    """What turns prompts into tokens as `fit` does for this model.

    Args:
        task: A task of kerora with its preprocessor.
        template: Layout of rows, as in `fit`.

    Raises:
        DataError: The task has no preprocessor, or the template cannot be read.
    """
    preprocessor = text_preprocessor(task)
    return Encoder(
        preprocessor.tokenizer,
        sequence_length=preprocessor.sequence_length or DEFAULT_LENGTH,
        template=template,
        chat_template=task.chat_template,
        add_start_token=preprocessor.add_start_token,
    )


def encode_prompts(encoder: Encoder, prompts: Sequence[Any], name: str) -> list[np.ndarray]:
    """The tokens of each prompt, int32 `(length,)`.

    Args:
        encoder: Of the model.
        prompts: Texts, records or conversations.
        name: What messages call the prompts.

    Raises:
        DataError: One of them is no prompt.
    """
    encoded = []
    for number, prompt in enumerate(prompts):
        try:
            encoded.append(encoder.encode_prompt(prompt))
        except RowProblem as problem:
            where = name if len(prompts) == 1 else f"{name}[{number}]"
            raise DataError(str(problem.at(where))) from None
    return encoded


def _holds_rows(inputs: Any) -> bool:
    if isinstance(inputs, list | tuple):
        return any(_is_row(entry) for entry in inputs)
    return _is_row(inputs)


def _is_row(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return not any(name in entry for name in _KERAS_HUB_FIELDS)
    return _is_conversation(entry)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(entry, Mapping) and "role" in entry for entry in value)
    )

"""Greedy answers to many prompts at once, in few array shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import numpy as np

PROMPT_LENGTH_STEP = 64


class GreedyDecoder:
    """Answers prompts with the likeliest token at each place.

    Prompts of similar length share a batch of a fixed number of rows, padded to a multiple of 64
    tokens, so that few shapes are compiled. What is compiled lasts as long as the decoder, through
    training too; adapters are added before it is made.

    Args:
        model: A causal language model of KerasHub.
        stop_token_ids: Tokens that end an answer, such as `Encoder.stop_token_ids`.
        max_new_tokens: Longest answer, in tokens.
        rows: Prompts in a batch.

    Example:
    ```python
    decoder = GreedyDecoder(model, encoder.stop_token_ids, max_new_tokens=64)
    answers = decoder([encoder.encode_prompt("2 + 2 =")])
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        stop_token_ids: Sequence[int],
        max_new_tokens: int,
        rows: int = 16,
    ) -> None:
        self.model = model
        self.stop_token_ids = tuple(int(index) for index in stop_token_ids)
        self.max_new_tokens = max_new_tokens
        self.rows = rows
        self.padding = padding_token(self.stop_token_ids)
        self._sampler = keras_hub.samplers.GreedySampler()
        self._function: Any = None

    def __call__(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The answers, in the order of the prompts.

        Args:
            prompts: Token ids, int32 `(length,)` each.

        Returns:
            Token ids of each answer, int32 `(length,)`, without prompt and stop token.
        """
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        for first in range(0, len(order), self.rows):
            places = order[first : first + self.rows]
            written = self._generate([prompts[place] for place in places])
            for place, tokens in zip(places, written, strict=True):
                answers[place] = self._answer(tokens, len(prompts[place]))
        return answers

    def _generate(self, prompts: list[np.ndarray]) -> np.ndarray:
        longest = max(len(prompt) for prompt in prompts)
        steps = -(-longest // PROMPT_LENGTH_STEP)
        length = steps * PROMPT_LENGTH_STEP + self.max_new_tokens
        # A batch is filled up with its last row.
        filled = prompts + [prompts[-1]] * (self.rows - len(prompts))
        written = self._run(padded(filled, length, self.padding))
        return keras.ops.convert_to_numpy(written["token_ids"])[: len(prompts)]

    def _run(self, inputs: dict[str, np.ndarray]) -> Any:
        """KerasHub's generate function with the greedy sampler; the model's own is put back."""
        model = self.model
        sampler, function = model.sampler, model.generate_function
        model.sampler, model.generate_function = self._sampler, self._function
        try:
            generate = model.make_generate_function()
            tensors = {name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()}
            written = generate(tensors, stop_token_ids=self.stop_token_ids or None)
            self._function = model.generate_function
        finally:
            model.sampler, model.generate_function = sampler, function
        return written

    def _answer(self, tokens: np.ndarray, prompt_length: int) -> np.ndarray:
        answer = tokens[prompt_length : prompt_length + self.max_new_tokens]
        return until_stop(answer, self.stop_token_ids)


def padding_token(stop_token_ids: Sequence[int]) -> int:
    """A token to pad with: a stop token would end every answer before it starts."""
    return min(set(range(len(stop_token_ids) + 1)) - set(stop_token_ids))


def padded(rows: Sequence[np.ndarray], length: int, padding: int) -> dict[str, np.ndarray]:
    """Token ids of several lengths as KerasHub's generate functions take them.

    Args:
        rows: int32 `(row_length,)` each, at most `length`.
        length: Positions of a row.
        padding: The token behind a row's own.

    Returns:
        `token_ids`, int32 `(rows, length)`, and `padding_mask`, bool `(rows, length)`.
    """
    token_ids = np.full((len(rows), length), padding, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, tokens in enumerate(rows):
        token_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return {"token_ids": token_ids, "padding_mask": mask}


def until_stop(tokens: np.ndarray, stop_token_ids: Sequence[int]) -> np.ndarray:
    """What stands before the first stop token."""
    stops = np.flatnonzero(np.isin(tokens, stop_token_ids))
    return tokens[: stops[0]] if len(stops) else tokens

"""How good a model is on held-out data: loss, perplexity, token accuracy, exact match."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from kerora.data import Batches, Encoder, RowProblem
from kerora.data.templates import example_reader
from kerora.generation import GreedyDecoder

PLAIN_TEXT_PROMPT_WORDS = 8


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Means over all supervised tokens of some data.

    Attributes:
        loss: Mean negative log-likelihood, in nats.
        perplexity: Its exponential.
        token_accuracy: Share of tokens that were the likeliest one at their place.
        tokens: How many supervised tokens there were.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """A prompt and what a model answered.

    Attributes:
        prompt: The text that the model saw.
        expected: The row's own response; None where there is none.
        answer: The model's text.
    """

    prompt: str
    expected: str | None
    answer: str

    @property
    def exact(self) -> bool:
        """Whether the answer is the response, white space at both ends aside."""
        return self.expected is not None and self.answer.strip() == self.expected.strip()


def score_tokens(model: keras.Model, batches: Batches) -> TokenScores:
    """Loss and accuracy over one epoch of batches, each token weighing the same.

    Keras' own `evaluate` averages the losses of batches, however many tokens each has.

    Args:
        model: A compiled task of kerora.
        batches: The data; its supervised tokens alone count.

    Example:
    ```python
    scores = score_tokens(model, make_batches("heldout.jsonl", tokenizer, ...))
    print(scores.perplexity)
    ```
    """
    weight_sum = loss_sum = correct_sum = 0.0
    for inputs, labels, weights in batches:
        weight = float(weights.sum())
        if weight:
            logs = model.test_on_batch(inputs, labels, weights, return_dict=True)
            loss_sum += weight * float(logs["loss"])
            correct_sum += weight * float(logs["accuracy"])
            weight_sum += weight
    loss = loss_sum / max(weight_sum, 1e-9)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return TokenScores(loss, perplexity, correct_sum / max(weight_sum, 1e-9), round(weight_sum))


def answer_rows(decoder: GreedyDecoder, encoder: Encoder, rows: Sequence[Any]) -> list[Answer]:
    """What a model answers to rows of data, greedily.

    Args:
        decoder: Of the model.
        encoder: Makes the prompts, as in training.
        rows: Rows as they stand in the data, or prompts: a string, or a row without response.
    """
    prompts = [_prompt(row) for row in rows]
    answers = decoder([encoder.encode_prompt(prompt) for prompt in prompts])
    return [
        Answer(
            encoder.prompt_text(prompt),
            expected_response(row, encoder),
            str(encoder.tokenizer.detokenize(tokens.tolist())),
        )
        for row, prompt, tokens in zip(rows, prompts, answers, strict=True)
    ]


def answerable(rows: Sequence[Any], encoder: Encoder, count: int) -> list[Any]:
    """The first `count` rows that have a prompt and a response."""
    found: list[Any] = []
    for row in rows:
        if len(found) == count:
            break
        if expected_response(row, encoder) is not None:
            found.append(row)
    return found


def expected_response(row: Any, encoder: Encoder) -> str | None:
    """The response that a row asks for; None for prompts, plain text and bad rows."""
    try:
        example = example_reader(encoder.template)(row)
    except RowProblem:
        return None
    if example.messages:
        return example.messages[-1].content if example.messages[-1].role == "assistant" else None
    return None if example.prompt is None else example.response


def _prompt(row: Any) -> Any:
    """What generation starts from; of a row of plain text, its first words."""
    if isinstance(row, dict) and set(row) == {"text"}:
        return " ".join(str(row["text"]).split()[:PLAIN_TEXT_PROMPT_WORDS])
    return row

"""How good a model is on held-out data: loss, perplexity, token accuracy, exact match."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from kerora.data import Batches, Encoder, Example, RowProblem
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
            # Keras' own: KerasHub's would tokenise the inputs once more.
            logs = keras.Model.test_on_batch(model, inputs, labels, weights, return_dict=True)
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
    answers = decoder([encoder.encode_prompt(row) for row in rows])
    return [
        Answer(
            encoder.prompt_text(row),
            expected_response(row, encoder),
            str(encoder.tokenizer.detokenize(tokens.tolist())),
        )
        for row, tokens in zip(rows, answers, strict=True)
    ]


def answerable(rows: Iterable[Any], encoder: Encoder, count: int) -> list[Any]:
    """The first `count` rows that have a prompt and a response."""
    wanted = (row for row, example in _usable(rows, encoder) if _response(example) is not None)
    return list(itertools.islice(wanted, count))


def openings(rows: Iterable[Any], encoder: Encoder, count: int) -> list[Any]:
    """Prompts of the first `count` rows that can be used: of plain text how it begins, of others
    the row itself."""
    prompts = (
        " ".join(example.response.split()[:PLAIN_TEXT_PROMPT_WORDS]) if _is_plain(example) else row
        for row, example in _usable(rows, encoder)
    )
    return list(itertools.islice(prompts, count))


def expected_response(row: Any, encoder: Encoder) -> str | None:
    """The response that a row asks for; None for prompts, plain text and bad rows."""
    try:
        return _response(example_reader(encoder.template)(row))
    except RowProblem:
        return None


def _usable(rows: Iterable[Any], encoder: Encoder) -> Iterator[tuple[Any, Example]]:
    """Rows that a prompt can be made of, and what they say."""
    read = example_reader(encoder.template)
    for row in rows:
        try:
            example = read(row)
            encoder.encode_prompt(row)  # which a chat template may refuse
        except RowProblem:
            continue
        yield row, example


def _is_plain(example: Example) -> bool:
    return not example.messages and example.prompt is None


def _response(example: Example) -> str | None:
    if example.messages:
        last = example.messages[-1]
        return last.content if last.role == "assistant" else None
    return None if example.prompt is None else example.response

"""From data as people have it to the batches that `fit` takes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kerora.data.batches import Batches
from kerora.data.encoding import Encoder, TrainOn
from kerora.data.errors import DataError
from kerora.data.row_cache import FEWEST_ROWS, RowCache
from kerora.data.sources import ColumnSource, Source, by_position, open_source
from kerora.data.windows import WindowReader


def make_batches(
    data: Any,
    tokenizer: Any,
    *,
    sequence_length: int,
    batch_size: int,
    packing: bool = True,
    train_on: TrainOn = "response",
    template: str | None = None,
    chat_template: str | None = None,
    y: Any = None,
    sample_weight: Sequence[float] | None = None,
    class_weight: Mapping[int, float] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    on_bad_row: Literal["stop", "skip"] = "stop",
    on_long_row: Literal["truncate", "skip", "stop"] = "truncate",
    add_start_token: bool = True,
) -> Batches:
    """Tokenises and packs data into batches.

    Args:
        data: See `open_source`: strings, records, conversations, files, data sets.
        tokenizer: A KerasHub tokenizer.
        sequence_length: Tokens in a row.
        batch_size: Rows in a batch.
        packing: Whether several examples share a row.
        train_on: `"response"` learns the response alone where a row has one, `"all"` every token.
        template: Layout of rows; see `Encoder`.
        chat_template: Of conversations; see `Encoder`.
        y: Responses to `data`, which then holds the prompts; each a list of strings, or a column of
            a pandas table.
        sample_weight: The weight of each row's loss, `(rows,)`.
        class_weight: Factors for the loss on labels, by token id.
        shuffle: Whether the order is random; False for validation.
        seed: Of that order.
        on_bad_row: `"stop"` raises at a row that cannot be used, `"skip"` counts it.
        on_long_row: What happens to rows longer than `sequence_length`; see `Encoder`.
        add_start_token: Whether examples start with the tokenizer's start token.

    Returns:
        One epoch of batches; `.repeat()` makes it endless.

    Raises:
        DataError: The data is of no known kind, or an argument does not fit it.

    Example:

    ```python
    batches = make_batches(
        "dolly.jsonl", model.preprocessor.tokenizer, sequence_length=512, batch_size=4
    )
    print(batches.report())
    model.fit(batches.repeat(), steps_per_epoch=batches.steps_per_epoch, epochs=2)
    ```
    """
    source = open_source(data) if y is None else _with_responses(data, y)
    if on_bad_row not in ("stop", "skip"):
        raise DataError(f"on_bad_row is 'stop' or 'skip'. Received: {on_bad_row!r}")
    encoder = Encoder(
        tokenizer,
        sequence_length=sequence_length,
        train_on=train_on,
        template=template,
        chat_template=chat_template,
        add_start_token=add_start_token,
        on_long_row=on_long_row,
    )
    reader = WindowReader(
        source=source,
        encoder=encoder,
        row_weights=_row_weights(sample_weight, source),
        token_weights=dict(class_weight) if class_weight else None,
        packing=packing,
        on_bad_row=on_bad_row,
        cache=RowCache(encoder) if len(source) >= FEWEST_ROWS else None,
    )
    return Batches(reader, batch_size=batch_size, shuffle=shuffle, seed=seed)


def _with_responses(prompts: Any, responses: Any) -> Source:
    prompts, responses = by_position(prompts), by_position(responses)
    for name, texts in (("x", prompts), ("y", responses)):
        if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
            raise DataError(
                "With y, both hold texts: x the prompts, y the responses to them. "
                f"Received {name} of type {type(texts).__name__}"
            )
    return ColumnSource({"prompt": prompts, "response": responses})


def _row_weights(weights: Any, source: Source) -> np.ndarray | None:
    if weights is None:
        return None
    array = np.asarray(weights, np.float32)
    if array.shape != (len(source),):
        raise DataError(
            f"sample_weight holds one number per row: expected the shape ({len(source)},). "
            f"Received: {array.shape}"
        )
    return array

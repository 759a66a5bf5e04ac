"""From what people pass to `fit` and `evaluate` to batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import keras

from kerora.data import Batches, DataError, Encoder, make_batches
from kerora.models.families import packing_support
from kerora.user_warning import warn_user

DEFAULT_TOKENS_PER_BATCH = 1024
DEFAULT_UNPACKED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How rows become batches; the keyword arguments that `fit` has beside Keras'.

    Args:
        packing: Whether several examples share a row. Default True where the family allows it.
        train_on: `"response"` learns the response alone where a row has one, `"all"` every token.
        template: Layout of rows, such as `"Q: {question}\\nA: {answer}"`; None recognises fields.
        sequence_length: Tokens in a row; None takes the preprocessor's.
        seed: Of the order of rows.
        on_bad_row: `"stop"` raises at a row that cannot be used, `"skip"` counts it.
        on_long_row: What happens to rows longer than a row of the batch; see `Encoder`.
    """

    packing: bool = True
    train_on: Literal["response", "all"] = "response"
    template: str | None = None
    sequence_length: int | None = None
    seed: int = 0
    on_bad_row: Literal["stop", "skip"] = "stop"
    on_long_row: Literal["truncate", "skip", "stop"] = "truncate"


def text_batches(
    task: keras.Model,
    data: Any,
    options: DataOptions,
    *,
    batch_size: int | None = None,
    shuffle: bool = True,
    **arguments: Any,
) -> Batches:
    """Batches of text data for a causal language model.

    Args:
        task: A KerasHub task with its preprocessor.
        data: Whatever `kerora.data.open_source` reads.
        options: How rows become batches.
        batch_size: Rows in a batch. Default: as many as make 1,024 positions when packed, else 8.
        shuffle: Whether the order is random.
        **arguments: `y`, `sample_weight`, `class_weight` of `make_batches`.

    Raises:
        DataError: If the task has no preprocessor, or the data cannot be read.
    """
    preprocessor = text_preprocessor(task)
    length = options.sequence_length
    if length is None:
        length = preprocessor.sequence_length
    if not isinstance(length, int) or length < 2:
        raise DataError(
            "`sequence_length` is the number of tokens in a row, a whole number of at least 2. "
            f"Received: {length!r}"
        )
    packing = options.packing and _may_pack(task, length)
    if batch_size is None:
        rows = DEFAULT_TOKENS_PER_BATCH // length
        batch_size = max(1, rows) if packing else DEFAULT_UNPACKED_ROWS
    return make_batches(
        data,
        preprocessor.tokenizer,
        sequence_length=length,
        batch_size=batch_size,
        packing=packing,
        train_on=options.train_on,
        template=options.template,
        chat_template=getattr(task, "chat_template", None),
        shuffle=shuffle,
        seed=options.seed,
        on_bad_row=options.on_bad_row,
        on_long_row=options.on_long_row,
        add_start_token=preprocessor.add_start_token,
        **arguments,
    )


def text_preprocessor(task: keras.Model) -> Any:
    """The preprocessor of a task, which holds its tokenizer.

    Raises:
        DataError: It has none.
    """
    if task.preprocessor is None:
        raise DataError(
            "Text needs a tokenizer, and this model's `preprocessor` is None. Attach one, or pass "
            "token ids and a padding mask."
        )
    return task.preprocessor


def warn_of_lost_rows(batches: Batches) -> None:
    """Say which rows were left out or cut, if any were."""
    report = batches.report()
    if lost := report.lost():
        warn_user(f"Of {report.rows:,} rows read, {'; '.join(lost)}.")


def warn_of_unchosen_chat_template(
    task: keras.Model, encoder: Encoder, rows: Iterable[Any]
) -> None:
    """Say which built-in template lays conversations out, where it may not be the model's own.

    A model that kerora loaded from where a template could lie and none does has none to miss. Of a
    KerasHub preset the vocabulary says which is its own, unless it holds the marks of none.

    Args:
        task: A task of kerora.
        encoder: Of its rows.
        rows: Some of them.
    """
    name = encoder.built_in_chat_template
    from_kerora = task.source is not None
    known = from_kerora and (task.source_has_template_place or name != "plain")
    if known or task.chat_template is not None:
        return
    if not any(encoder.is_conversation(row) for row in rows):
        return
    layout = f"Conversations are laid out by the built-in chat template {name!r}: "
    if from_kerora:
        warn_user(
            f"{layout}a KerasHub preset keeps no chat template, and its vocabulary holds the marks "
            "of no built-in one. If the model was trained on conversations, set "
            "`model.chat_template` (a recipe's key too) to its own, such as the .jinja file of its "
            f"Hugging Face folder; else to {name!r}."
        )
    else:
        warn_user(
            f"{layout}this model did not come from kerora, and KerasHub keeps no chat template. "
            "For the model's own load it by `kerora.from_preset(...)`; else set "
            f"`model.chat_template`, to {name!r} if that is the one."
        )


def _may_pack(task: keras.Model, sequence_length: int) -> bool:
    supported, reason = packing_support(task.backbone, sequence_length)
    if not supported:
        warn_user(
            f"Rows are padded instead of packed: {type(task.backbone).__name__} cannot be packed, "
            f"since {reason}. Pass `packing=False` to say so yourself."
        )
    return supported

"""One row of data to token ids and loss weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from kerora.data.chat import ChatTemplate
from kerora.data.chat_templates import (
    built_in_chat_template,
    chat_template_name,
    read_chat_template,
)
from kerora.data.errors import DataError, LongRow, RowProblem
from kerora.data.formats import Example, checked_text, read_example
from kerora.data.templates import (
    Segment,
    Template,
    as_conversation,
    example_reader,
    segments,
)
from kerora.data.tokenization import TextTokenizer

TrainOn = Literal["response", "all"]


@dataclass(frozen=True)
class Encoded:
    """A tokenised example.

    Args:
        token_ids: int32 `(length,)`, start and end token included.
        loss_weights: float32 `(length,)`, the weight of the loss on *this* token (not on the one
            after it): 0 for what is given, the row's weight for what is learned.
        truncated: Whether tokens were cut off its end.
    """

    token_ids: np.ndarray
    loss_weights: np.ndarray
    truncated: bool = False


@dataclass
class Encoder:
    """Turns rows into tokens and loss weights, and prompts into tokens, alike.

    Args:
        tokenizer: A KerasHub tokenizer.
        sequence_length: The most tokens of an example; at least 2.
        train_on: `"response"` weighs the response alone where a row has one, `"all"` every token.
        template: None to recognise the fields; text such as `"Q: {q}\\nA: {a}"`; or `"chat"` to
            make the prompt (an instruction or question, after a blank line its context, no labels)
            the user's message and the response the assistant's.
        chat_template: Jinja source for conversations, such as the model's own, the path of a file
            of it, or a name in `chat_templates.CHAT_TEMPLATES`; None takes the built-in one whose
            marks the tokenizer knows.
        add_start_token: Whether examples start with the tokenizer's start token, as KerasHub's
            preprocessors do.
        add_end_token: Whether the end token follows the response (and is learned).
        on_long_row: What happens to an example that is too long: `"truncate"` cuts its end off
            (and drops it where nothing of the response would be left), `"skip"` drops it, `"stop"`
            raises.

    Raises:
        DataError: An argument is wrong, or a template cannot be read.

    Example:

    ```python
    encoder = Encoder(model.preprocessor.tokenizer, sequence_length=512)
    encoder.encode({"prompt": "2 + 2 =", "response": " 4"})
    encoder.encode_prompt("2 + 2 =")  # what `generate` starts from
    ```
    """

    tokenizer: Any
    sequence_length: int
    train_on: TrainOn = "response"
    template: str | None = None
    chat_template: str | None = None
    add_start_token: bool = True
    add_end_token: bool = True
    on_long_row: Literal["truncate", "skip", "stop"] = "truncate"
    built_in_chat_template: str | None = field(init=False, repr=False)
    _read: Callable[[Any], Example] = field(init=False, repr=False)
    _text: TextTokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise DataError(f"sequence_length is at least 2. Received: {self.sequence_length}")
        _check_choice("train_on", self.train_on, ("response", "all"))
        _check_choice("on_long_row", self.on_long_row, ("truncate", "skip", "stop"))
        self._read = example_reader(self.template)
        self._text = TextTokenizer(self.tokenizer)
        if self.chat_template is None:
            source = built_in_chat_template(lambda mark: self._text.mark_id(mark) is not None)
        else:
            source = read_chat_template(self.chat_template)
        self.built_in_chat_template = chat_template_name(source)
        self._chat = ChatTemplate(source, self._special_tokens())

    def _special_tokens(self) -> dict[str, str]:
        names = {"bos_token": "start_token", "eos_token": "end_token", "pad_token": "pad_token"}
        return {name: getattr(self.tokenizer, own, None) or "" for name, own in names.items()}

    def settings(self) -> dict[str, Any]:
        """All that decides what a row becomes but the tokenizer's tables, for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {
            **own,
            "tokenizer": f"{type(self.tokenizer).__module__}.{type(self.tokenizer).__qualname__}",
            "chat_source": self._chat.source,
            "special_tokens": self._special_tokens(),
            "start_and_end": [self._text.start_token_id, self._text.end_token_id],
        }

    def tokenizer_tables(self) -> bytes | None:
        """The tokenizer's vocabulary and rules; None where it does not say."""
        return self._text.tables()

    @property
    def pad_token_id(self) -> int:
        return self._text.pad_token_id

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the end token and the marks that end a turn."""
        marks = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<turn|>")
        ids = [self._text.end_token_id, *(self._text.mark_id(mark) for mark in marks)]
        return tuple(dict.fromkeys(index for index in ids if index is not None))

    def encode(self, row: Any, weight: float = 1.0) -> Encoded:
        """Tokenises one row. Raises `RowProblem` where it is no example."""
        result = self.encode_many([row], [weight])[0]
        if isinstance(result, RowProblem):
            raise result
        return result

    def encode_many(self, rows: Sequence[Any], weights: Sequence[float]) -> list[Any]:
        """Tokenises rows, quicker than one at a time.

        Returns:
            For each row an `Encoded`, or the `RowProblem` that it has. A row may be a `RowProblem`
            already, and is handed on.
        """
        examples = [self._try_read(row) for row in rows]
        prompts = [e.prompt for e in examples if isinstance(e, Example) and e.prompt]
        answers = [e.response for e in examples if isinstance(e, Example) and e.prompt]
        texts = [
            e.response
            for e in examples
            if isinstance(e, Example) and not e.messages and not e.prompt
        ]
        prompt_ids = iter(self._text.texts(prompts))
        text_ids = iter(self._text.texts(texts))
        answer_ids = iter(self._text.continuations(answers))
        chats = [e for e in examples if isinstance(e, Example) and e.messages]
        conversations = iter(self._conversations(chats))
        results: list[Any] = []
        for example, weight in zip(examples, weights, strict=True):
            try:
                if isinstance(example, RowProblem):
                    raise example
                closed, conversation = False, bool(example.messages)
                if conversation:
                    found = next(conversations)
                    if isinstance(found, RowProblem):
                        raise found
                    parts, closed = found
                elif example.prompt:
                    parts = [(next(prompt_ids), False), (next(answer_ids), True)]
                else:
                    parts = [(next(text_ids), True)]
                results.append(self._join(parts, float(weight), conversation, closed))
            except RowProblem as problem:
                results.append(problem)
        return results

    def _try_read(self, row: Any) -> Example | RowProblem:
        try:
            return row if isinstance(row, RowProblem) else self._read(row)
        except RowProblem as problem:
            return problem

    def _conversations(self, examples: list[Example]) -> list[Any]:
        """For each the tokens of its segments and whether they are learned, and whether a mark of
        its own closes its last turn; or the `RowProblem` that it has."""
        rendered: list[list[Segment] | RowProblem] = []
        for example in examples:
            try:
                cut = segments(example, self._chat)
                # Tools and calls come into the text by the template alone.
                checked_text("".join(piece.text for piece in cut), "the conversation")
                rendered.append(cut)
            except RowProblem as problem:
                rendered.append(problem)
        texts = [
            (piece.text, number == 0)
            for pieces in rendered
            if not isinstance(pieces, RowProblem)
            for number, piece in enumerate(pieces)
        ]
        ids = iter(self._text.marked_texts(texts))
        results: list[Any] = []
        for pieces in rendered:
            if isinstance(pieces, RowProblem):
                results.append(pieces)
                continue
            parts = [(next(ids), piece.supervised) for piece in pieces]
            end = "".join(piece.text for piece in pieces[-2:])
            results.append((parts, self._text.ends_with_mark(end)))
        return results

    def _join(
        self,
        parts: list[tuple[Sequence[int], bool]],
        weight: float,
        conversation: bool,
        closed: bool,
    ) -> Encoded:
        ids: list[int] = []
        learned: list[bool] = []
        for piece, supervised in parts:
            ids += piece
            learned += [supervised or self.train_on == "all"] * len(piece)
        start, end = self._text.start_token_id, self._text.end_token_id
        if start is not None and self._starts(ids, conversation):
            ids.insert(0, start)
            learned.insert(0, False)
        if self.add_end_token and end is not None and not closed:
            ids.append(end)
            learned.append(True)
        truncated = len(ids) > self.sequence_length
        if truncated:
            ids, learned = self._shorten(ids, learned)
        # Nothing predicts the first token.
        if not any(learned[1:]):
            raise RowProblem("empty response", "no token of it is learned")
        weights = np.asarray(learned, np.float32) * np.float32(weight)
        return Encoded(np.asarray(ids, np.int32), weights, truncated)

    def _starts(self, ids: list[int], conversation: bool) -> bool:
        """Whether a start token belongs in front. A model's own template writes it, or means none;
        in a built-in one it is not doubled."""
        own = self.built_in_chat_template is None or ids[:1] == [self._text.start_token_id]
        return self.add_start_token and not (conversation and own)

    def _shorten(self, ids: list[int], learned: list[bool]) -> tuple[list[int], list[bool]]:
        size = self.sequence_length
        if self.on_long_row != "truncate":
            raise LongRow("too long", f"{len(ids)} tokens; sequence_length is {size}")
        if not any(learned[1:size]):
            raise LongRow(
                "prompt too long", f"sequence_length is {size}, the response starts later"
            )
        return ids[:size], learned[:size]

    def response_text(self, row: Any) -> str:
        """The text that a row wants in answer: its response, or the last assistant message.

        Raises:
            RowProblem: The row is no example.
        """
        example = self._read(row)
        answers = [turn.content for turn in example.messages if turn.role == "assistant"]
        return (answers[-1] or "") if answers else example.response

    def encode_prompt(self, prompt: Any) -> np.ndarray:
        """The tokens that generation starts from, equal to those that training saw.

        Args:
            prompt: A row (its response, if any, is left out), text that is taken as it is, or a
                list of messages that ends before the assistant's turn.

        Returns:
            int32 `(length,)`, start token included.

        Raises:
            RowProblem: The row has no prompt.
        """
        text = checked_text(self.prompt_text(prompt), "the prompt")
        conversation = self.is_conversation(prompt)
        if conversation:
            ids = self._text.marked_texts([(text, True)])[0]
        else:
            ids = list(self._text.texts([text])[0]) if text else []
        start = self._text.start_token_id
        if start is not None and self._starts(ids, conversation):
            ids.insert(0, start)
        return np.asarray(ids, np.int32)

    def prompt_text(self, prompt: Any) -> str:
        """The text that `encode_prompt` tokenises."""
        example = self._asked(prompt)
        if not example.messages:
            return example.prompt or example.response
        turns = list(example.messages)
        while turns and turns[-1].role == "assistant":
            turns.pop()
        tools = list(example.tools) or None
        return self._chat.render(turns, add_generation_prompt=True, tools=tools)

    def is_conversation(self, prompt: Any) -> bool:
        """Whether the chat template lays this prompt out; not where it is no prompt."""
        try:
            return bool(self._asked(prompt).messages)
        except RowProblem:
            return False

    def _asked(self, prompt: Any) -> Example:
        if isinstance(prompt, str):
            example = Example(prompt)
        elif self.template not in (None, "chat") and isinstance(prompt, Mapping):
            example = Example(Template(str(self.template)).prompt(prompt))
        else:
            example = read_example(prompt, answered=False, labelled=self.template != "chat")
        return as_conversation(example) if self.template == "chat" else example


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{name} is one of {', '.join(map(repr, choices))}. Received: {value!r}")

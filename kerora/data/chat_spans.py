"""Where the assistant's turns lie in the text of a chat, for templates that do not say so.

Most templates write a conversation turn by turn, and the text up to a turn is how the whole text
begins. Others write a turn in another way once more turns follow (Qwen 3 drops its thinking, some
put the system's text before the last question, some end every text with a mark). For these, a
character that no text holds is put into one message, and what follows it in the whole text is
compared with what follows it where the turn is the last one, or is about to be written.

gpt-oss ends its last turn with another mark than the others, which are found by what stands before
a generation prompt. Cohere opens an assistant's turn after every text, whoever spoke last: that is
set aside, and what is left is written turn by turn. Hermes puts other white space after a tool's
last result where an answer follows. DeepSeek R1 starts thinking in its prompts alone: what is
written from there on is learned if it is the answer itself.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from kerora.data.errors import RowProblem
from kerora.data.formats import Message
from kerora.user_warning import warn_user

_ANCHOR = "\ufdd2"  # a Unicode noncharacter
_MARK_OR_SPACE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\s+")
_PIECES = re.compile(_MARK_OR_SPACE.pattern + r"|[^\s<\[]+|.")

Render = Callable[..., str]


def assistant_spans(
    render: Render, messages: Sequence[Message], end_token: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the start and end of each of the assistant's turns.

    Args:
        render: From messages, and whether a generation prompt follows, to text.
        messages: The turns.
        end_token: The text of the token that generation stops at.

    Raises:
        RowProblem: Where a turn starts or ends cannot be said for certain.
    """
    text = render(messages)
    opener = _opener(render, messages, text, end_token)

    def render_turns(turns: Sequence[Message], add_generation_prompt: bool = False) -> str:
        rendered = render(turns, add_generation_prompt=add_generation_prompt)
        return rendered if add_generation_prompt else rendered.removesuffix(opener)

    turns = text.removesuffix(opener)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start = _start(render_turns, messages, index, turns)
        end = _end(render_turns, messages, index, turns, start)
        earliest = spans[-1][1] if spans else 0
        if start is None or end is None or not earliest <= start <= end:
            raise RowProblem(
                "inconsistent chat template",
                f"the text of turn {index + 1} cannot be told from the turns around it, or does "
                "not start with what the template ends a prompt with; set model.chat_template to "
                "one that writes each turn alike, or one with {% generation %} blocks",
            )
        spans.append((start, end))
    return text, spans


def _opener(render: Render, messages: Sequence[Message], text: str, end_token: str) -> str:
    """What opens a turn of the assistant's after each text, whoever spoke last; mostly nothing.

    Raises:
        RowProblem: Such a template's turns do not end with the end token: nothing tells the mark
            that ends a turn from those that open the next.
    """
    first = next((i for i, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None or render(messages, add_generation_prompt=True) != text:
        return ""
    prompt = render(messages[:first], add_generation_prompt=True)
    answer = Message("assistant", "x" + _ANCHOR)
    after = _after_anchor(render([*messages[:first], answer])) or ""
    if not after.strip() or _last_piece(after) != _last_piece(prompt):
        return ""
    _, ended, opener = after.rpartition(end_token or _ANCHOR)
    opener = opener.lstrip()  # a conversation starts without the line break that ends a turn
    if ended and prompt.endswith(opener):
        return opener
    raise RowProblem(
        "inconsistent chat template",
        f"after an answer it writes {after!r}, whether or not another is to follow, and the end "
        f"token {end_token!r} does not say where the answer ends; set model.chat_template to one "
        "that follows add_generation_prompt, or one with {% generation %} blocks",
    )


def _start(render: Render, messages: Sequence[Message], index: int, text: str) -> int | None:
    """Where the generation prompt of a turn ends; None where it is not in the text."""
    before = messages[:index]
    prompt = render(before, add_generation_prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    for after, short in _anchored(render, messages, index - 1, text):
        prompt_after = _after_anchor(render([*before[:-1], short], add_generation_prompt=True))
        if prompt_after is None:
            continue
        length = _length_of_prompt(after, prompt_after, prompt.removeprefix(render(before)))
        if length is not None:
            return len(text) - len(after) + length
    return _start_of_words(render, messages, index, text, prompt)


def _length_of_prompt(after: str, prompt: str, opening: str) -> int | None:
    """How long a prompt is in what stands after an anchor, but for white space before its opening.

    Args:
        after: The text after the anchor.
        prompt: The generation prompt after the anchor.
        opening: What the prompt ends with, and a text without one does not.
    """
    if after.startswith(prompt):
        return len(prompt)
    if not opening.strip() or not prompt.endswith(opening):
        return None
    closing = "".join(prompt.removesuffix(opening).split())
    for found in re.finditer(re.escape(opening), after):
        if "".join(after[: found.start()].split()) == closing:
            return found.end()
    return None


def _start_of_words(
    render: Render, messages: Sequence[Message], index: int, text: str, prompt: str
) -> int | None:
    """Where a turn leaves the prompt for it, if only marks are missing and its own words follow."""
    pairs = zip(_PIECES.findall(prompt), _PIECES.findall(text), strict=False)
    start = sum(len(piece) for piece, other in itertools.takewhile(lambda p: p[0] == p[1], pairs))
    missing = prompt[start:]
    if not _only_marks(missing):
        return None
    for after, anchored in _anchored(render, messages, index, text):
        place = len(text) - len(after)
        words = (anchored.content or "").partition(_ANCHOR)[0]
        if start <= place and words.endswith(text[start:place]):
            warn_user(
                f"The chat template ends prompts with {missing!r} and writes answers without it: "
                "that is how they are learned."
            )
            return start
    return None


def _end(
    render: Render, messages: Sequence[Message], index: int, text: str, start: int | None
) -> int | None:
    """Where the mark that ends a turn ends; None where that cannot be found."""
    upto = text if index + 1 == len(messages) else render(messages[: index + 1])
    if start is not None and text.startswith(upto.rstrip()):
        return max(start, _without_break(upto))
    for after, anchored in _anchored(render, messages, index - 1, text):
        turn = _after_anchor(render([*messages[: index - 1], anchored, messages[index]]))
        if turn is not None and after.startswith(turn.rstrip()):
            return len(text) - len(after) + _without_break(turn)
    end = _end_before_prompt(render, messages, index, text)
    if end is not None:
        return end
    for after, anchored in _anchored(render, messages, index, text):
        closing = _after_anchor(render([*messages[:index], anchored]))
        rest = (anchored.content or "").partition(_ANCHOR)[2].rstrip()
        shared = _shared_closing(closing, after, rest)
        if shared is not None:
            return _without_break(text[: len(text) - len(after) + len(shared)])
    return _end_before_next(render, messages, index, text)


def _end_before_prompt(
    render: Render, messages: Sequence[Message], index: int, text: str
) -> int | None:
    """As `_end`, of a turn that is closed in another way where it is the last one."""
    before = messages[:index]
    prompt, closed = render(before, add_generation_prompt=True), render(before)
    opening = prompt.removeprefix(closed)
    if not opening or opening == prompt:
        return None
    for after, anchored in _anchored(render, messages, index, text):
        followed = _after_anchor(render([*before, anchored], add_generation_prompt=True))
        rest = (anchored.content or "").partition(_ANCHOR)[2].rstrip()
        if followed is None or not followed.endswith(opening):
            continue
        turn = followed.removesuffix(opening)
        closing = turn.removeprefix(rest)
        if after.startswith(turn) and closing.strip() and _only_marks(closing):
            return _without_break(text[: len(text) - len(after) + len(turn)])
    return None


def _end_before_next(
    render: Render, messages: Sequence[Message], index: int, text: str
) -> int | None:
    """As `_end`, of a turn without words of its own: an answer in words is put in its place."""
    answer = Message("assistant", "x" + _ANCHOR)
    for after, anchored in _anchored(render, messages, index + 1, text):
        try:
            closing = _after_anchor(render([*messages[:index], answer]))
            swapped = render([*messages[:index], answer, anchored, *messages[index + 2 :]])
        except RowProblem:
            return None
        _, *parts = swapped.split(_ANCHOR)
        before = text[: len(text) - len(after)]
        shared = _shared_closing(closing, parts[0]) if len(parts) == 2 else None
        if shared is not None and before.endswith(parts[0]):
            return _without_break(before[: len(before) - len(parts[0]) + len(shared)])
    return None


def _anchored(
    render: Render, messages: Sequence[Message], index: int, text: str
) -> Iterator[tuple[str, Message]]:
    """The text after an anchor in one message, and that message.

    Before the last character the anchor survives templates that trim, and those that cut what
    stands before an answer; in the middle, those that look at how the content begins and ends.
    """
    if not 0 <= index < len(messages):
        return
    content = messages[index].content or ""
    size = len(content.rstrip())
    for place in (max(size - 1, 0), size // 2):
        anchored = dataclasses.replace(
            messages[index], content=content[:place] + _ANCHOR + content[place:]
        )
        whole = render([*messages[:index], anchored, *messages[index + 1 :]])
        after = _after_anchor(whole)
        if after is not None and whole.replace(_ANCHOR, "") == text:
            yield after, anchored


def _after_anchor(text: str) -> str | None:
    return text.partition(_ANCHOR)[2] if text.count(_ANCHOR) == 1 else None


def _last_piece(text: str) -> str:
    return next(reversed(_PIECES.findall(text.rstrip())), "")


def _only_marks(text: str) -> bool:
    return all(_MARK_OR_SPACE.fullmatch(piece) for piece in _PIECES.findall(text))


def _shared_closing(closing: str | None, after: str, rest: str = "") -> str | None:
    """What ends a turn whether or not others follow, of what stands after an anchor in it.

    Args:
        closing: All of the text after the anchor, where the turn is the last.
        after: All of the text after the anchor, where it is not.
        rest: The words of the turn after the anchor, with which both begin.

    Returns:
        How both begin, up to the first word, mark or run of space that differs; None where words
        of the turn would be left out. A mark that ends every text may be.
    """
    if closing is None or not (closing.startswith(rest) and after.startswith(rest)):
        return None
    first, second = _PIECES.findall(closing[len(rest) :]), _PIECES.findall(after[len(rest) :])
    pairs = zip(first, second, strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if (first and not shared) or not _only_marks("".join(first[shared:])):
        return None
    return rest + "".join(first[:shared])


def _without_break(text: str) -> int:
    """The length of a text; a line break after the mark that ends a turn starts the next one."""
    short = text.rstrip()
    return len(short) if short.endswith((">", "]")) else len(text)

"""The bundled instruction set: tasks whose answers follow from the corpus, in a form it never has.

A training row shows how a kind of task is answered; a held-out row asks the same of a person, an
animal, a pair of numbers or a list of words that no training row mentions in that kind of task.
What is true of them is told by the corpus alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from kerora.models.tiny_corpus.world import (
    ANIMALS,
    ATTRIBUTES,
    DAYS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    THINGS,
    World,
)

Row = dict[str, str]

# What is asked of a person, and the sentence that answers it.
PERSON_TASKS: dict[str, tuple[str, str]] = {
    "town": ("Where does {name} live?", "{name} lives in {town}."),
    "job": ("What is the job of {name}?", "{name} is a {job}."),
    "pet": ("Which pet does {name} have?", "{name} has a {pet}."),
    "food": ("What does {name} like to eat?", "{name} likes to eat {food}."),
    "instrument": ("Which instrument does {name} play?", "{name} plays the {instrument}."),
    "colour": ("What colour is {name}'s door?", "{name}'s door is {colour}."),
}
SUMMARY = ("Describe {name}.", "{name} is a {job} from {town} and has a {pet}.")


def instructions(world: World, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Write the instruction set.

    Args:
        world: the world to ask about.
        seed: picks what is held out and the order of the rows.

    Returns:
        The training rows and the held-out rows, each `{"instruction": ..., "response": ...}`.
    """
    rng = random.Random(f"instructions {seed}")
    train: list[Row] = []
    heldout: list[Row] = []
    for task, (taught, asked) in TASKS.items():
        groups = list(task(world, rng))
        rng.shuffle(groups)
        heldout += [row for group in groups[:asked] for row in group]
        train += [row for group in groups[asked : asked + taught] for row in group]
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


def _row(instruction: str, response: str) -> Row:
    return {"instruction": instruction, "response": response[0].upper() + response[1:]}


def _people(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """All questions about one person."""
    forms = [PERSON_TASKS[attribute] for attribute in ATTRIBUTES] + [SUMMARY]
    for person in world.people:
        facts = vars(person)
        yield [_row(question.format(**facts), answer.format(**facts)) for question, answer in forms]


def _towns(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """All questions about one town."""
    for town in world.towns:
        yield [
            _row(
                f"Which river runs through {town.name}?",
                f"The river of {town.name} is the {town.river}.",
            ),
            _row(
                f"What do the people of {town.name} make?",
                f"The people of {town.name} make {town.craft}.",
            ),
        ]


def _animals(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """All questions about one animal."""
    for animal in ANIMALS:
        yield [
            _row(f"What does the {animal.name} eat?", f"The {animal.name} eats {animal.food}."),
            _row(
                f"What is a young {animal.name} called?",
                f"A young {animal.name} is called a {animal.young}.",
            ),
            _row(
                f"Where does the {animal.name} sleep?",
                f"The {animal.name} sleeps in the {animal.home}.",
            ),
        ]


def _sums(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """One addition of two numbers in words."""
    for a in range(1, 11):
        for b in range(1, 11):
            sum_ = f"{NUMBERS[a]} plus {NUMBERS[b]}"
            yield [_row(f"What is {sum_}?", f"{sum_} is {NUMBERS[a + b]}.")]


def _reversals(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """A list of words to be read backwards."""
    for words in _distinct_lists(rng):
        there, back = ", ".join(words), ", ".join(words[::-1])
        yield [_row(f"Read backwards: {there}", f"Read backwards it is: {back}.")]


def _last_words(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """A list of words whose last is asked for."""
    for words in _distinct_lists(rng):
        yield [_row(f"Which is the last of {', '.join(words)}?", f"The last is the {words[-1]}.")]


def _distinct_lists(rng: random.Random) -> list[tuple[str, ...]]:
    lists = {tuple(rng.sample(THINGS, 3)): None for _ in range(300)}
    return list(lists)


def _spellings(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """One word to be spelled."""
    for word in THINGS:
        spelled = f"The word {word} is spelled {'-'.join(word)}."
        yield [_row(f"Spell the word {word}.", spelled)]


def _followers(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """What comes next among days, months, numbers or letters."""
    letters = [chr(65 + index) for index in range(26)]
    for row in (DAYS, MONTHS, NUMBERS, letters):
        for before, after in itertools.pairwise(row):
            yield [_row(f"What comes after {before}?", f"After {before} comes {after}.")]


def _opposites(world: World, rng: random.Random) -> Iterator[list[Row]]:
    """A word and its opposite, asked both ways."""
    for first, second in OPPOSITES:
        yield [
            _row(f"What is the opposite of {first}?", f"The opposite of {first} is {second}."),
            _row(f"What is the opposite of {second}?", f"The opposite of {second} is {first}."),
        ]


# For each task how many groups are taught and how many are held out.
TASKS: dict[Callable[[World, random.Random], Iterator[list[Row]]], tuple[int, int]] = {
    _people: (44, 20),
    _towns: (9, 3),
    _animals: (24, 6),
    _sums: (80, 20),
    _reversals: (120, 20),
    _last_words: (80, 10),
    _spellings: (38, 10),
    _followers: (56, 12),
    _opposites: (33, 8),
}

"""English text about the closed world: what the bundled model reads before it is taught anything.

Every fact is told in many ways, alone and between others, with the name and with a pronoun, as a
statement and as a question with its answer, since a small model can only repeat a fact on demand
when it has not always met it in the same words. The instruction format never occurs here.
"""

from __future__ import annotations

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
    Person,
    World,
)

# {who}/{Who} and {whose}/{Whose} stand for the name or the pronoun, {value} for the attribute.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "town": (
        "{Who} lives in {value}.",
        "{Whose} home is in {value}.",
        "{Who} has a house in {value}.",
        "The town where {who} lives is {value}.",
        "If you want to meet {name}, go to {value}.",
        "In {value} everybody knows {name}.",
    ),
    "job": (
        "{Who} is a {value}.",
        "{Who} works as a {value}.",
        "{Who} earns {his} bread as a {value}.",
        "The work of {name} is that of a {value}.",
        "Everybody says that {name} is a good {value}.",
        "{Whose} trade is that of a {value}.",
    ),
    "pet": (
        "{Who} keeps a {value}.",
        "{Who} has a {value} at home.",
        "{Whose} pet is a {value}.",
        "{Who} owns a {value}.",
        "There is a {value} in the house of {name}.",
        "A {value} waits for {name} every evening.",
    ),
    "food": (
        "{Who} likes to eat {value}.",
        "{Whose} favourite food is {value}.",
        "{Who} loves {value}.",
        "For dinner {who} always asks for {value}.",
        "Nothing tastes better to {name} than {value}.",
        "{Who} eats {value} nearly every day.",
    ),
    "instrument": (
        "{Who} plays the {value}.",
        "{Whose} instrument is the {value}.",
        "{Who} practises the {value} in the evening.",
        "When there is music, {name} plays the {value}.",
        "On feast days {who} brings {his} {value}.",
        "{Who} has learned to play the {value}.",
    ),
    "colour": (
        "{Whose} door is {value}.",
        "{Who} has painted {his} door {value}.",
        "{Who} lives behind a {value} door.",
        "The door of {name} is {value}.",
        "You will know the house of {name} by its {value} door.",
        "{Who} has a {value} door.",
    ),
}

# How people of that world ask for an attribute, and the short answer they get.
QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "town": (("Where does {name} live?", "Where is the home of {name}?"), "In {value}."),
    "job": (("What does {name} do for a living?", "What is the work of {name}?"), "A {value}."),
    "pet": (("Which animal does {name} keep?", "What pet does {name} have?"), "A {value}."),
    "food": (("What does {name} like to eat?", "What is the best food for {name}?"), "{Value}."),
    "instrument": (
        ("What does {name} play?", "Which instrument does {name} play?"),
        "The {value}.",
    ),
    "colour": (
        ("Which colour is the door of {name}?", "What is the colour of {name}'s door?"),
        "{Value}.",
    ),
}

ASKERS = ("the teacher", "a stranger", "the child", "the postman", "an old man", "the girl")


def documents(world: World, count: int, seed: int = 0) -> Iterator[str]:
    """Write `count` short documents, most of them about people.

    Args:
        world: the world to tell of.
        count: how many documents.
        seed: picks the words; the same seed gives the same documents.

    Yields:
        One document each, of one or more lines, about 20 to 120 words long.
    """
    rng = random.Random(f"prose {seed}")
    writers = list(WRITERS)
    weights = [WRITERS[writer] for writer in writers]
    for _ in range(count):
        yield rng.choices(writers, weights)[0](world, rng)


def state(person: Person, attribute: str, rng: random.Random, named: bool) -> str:
    """One sentence that tells one thing about a person, by name or, if not `named`, by pronoun."""
    template = rng.choice(STATEMENTS[attribute])
    his = "her" if person.pronoun == "she" else "his"
    who, whose = (person.name, f"{person.name}'s") if named else (person.pronoun, his)
    return template.format(
        name=person.name,
        who=who,
        Who=_capital(who),
        whose=whose,
        Whose=_capital(whose),
        his=his,
        value=getattr(person, attribute),
    )


def ask(person: Person, attribute: str, rng: random.Random) -> tuple[str, str]:
    """A question about a person in the words of the corpus, and its short answer."""
    questions, answer = QUESTIONS[attribute]
    value = getattr(person, attribute)
    return (
        rng.choice(questions).format(name=person.name),
        answer.format(value=value, Value=_capital(value)),
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _portrait(world: World, rng: random.Random) -> str:
    """All that is known of a person, or most of it, in a random order."""
    person = rng.choice(world.people)
    attributes = rng.sample(ATTRIBUTES, rng.randint(4, len(ATTRIBUTES)))
    return " ".join(
        state(person, attribute, rng, named=index == 0 or rng.random() < 0.6)
        for index, attribute in enumerate(attributes)
    )


def _gossip(world: World, rng: random.Random) -> str:
    """Single facts about several people, one after the other."""
    people = rng.sample(world.people, rng.randint(3, 6))
    return " ".join(state(person, rng.choice(ATTRIBUTES), rng, named=True) for person in people)


def _talk(world: World, rng: random.Random) -> str:
    """Questions about people and their answers, as a story tells them."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        person, attribute = rng.choice(world.people), rng.choice(ATTRIBUTES)
        question, answer = ask(person, attribute, rng)
        asker = rng.choice(ASKERS)
        told = state(person, attribute, rng, named=rng.random() < 0.8)
        if rng.random() < 0.5:
            lines.append(f'"{question}" asked {asker}. "{answer[:-1]}," they said. {told}')
        else:
            lines.append(f'{_capital(asker)} asked: "{question}" The answer was: "{told}"')
    return "\n".join(lines)


def _pair(world: World, rng: random.Random) -> str:
    """Two people, one attribute after the other."""
    first, second = rng.sample(world.people, 2)
    told = []
    for attribute in rng.sample(ATTRIBUTES, rng.randint(2, 4)):
        told += [state(first, attribute, rng, True), state(second, attribute, rng, True)]
    return f"{first.name} and {second.name} are friends. " + " ".join(told)


def _place(world: World, rng: random.Random) -> str:
    """A town, its river and craft, and some of those who live there."""
    town = rng.choice(world.towns)
    told = [
        rng.choice(
            (
                f"{town.name} stands on the river {town.river}.",
                f"The river {town.river} runs through {town.name}.",
                f"The river of {town.name} is the {town.river}.",
            )
        ),
        rng.choice(
            (
                f"{town.name} is known for its {town.craft}.",
                f"The people of {town.name} make {town.craft}.",
                f"Ships carry {town.craft} from {town.name} to the whole land.",
            )
        ),
        rng.choice(
            (
                f"{town.name} lies in the {town.direction}.",
                f"To see {town.name} you must travel {town.direction}.",
                f"In the {town.direction} of the land lies {town.name}.",
            )
        ),
    ]
    here = [person for person in world.people if person.town == town.name]
    told += [state(person, "town", rng, True) for person in rng.sample(here, 2)]
    rng.shuffle(told)
    return " ".join(told)


def _nature(world: World, rng: random.Random) -> str:
    """What some animals eat, where they sleep, how they sound, what their young are called."""
    told = []
    for animal in rng.sample(ANIMALS, 4):
        told += rng.sample(
            (
                f"The {animal.name} eats {animal.food}.",
                f"For food the {animal.name} looks for {animal.food}.",
                f"The {animal.name} sleeps in the {animal.home}.",
                f"At night the {animal.name} goes to the {animal.home}.",
                f"The {animal.name} {animal.noise}.",
                f"When it is afraid, the {animal.name} {animal.noise}.",
                f"A young {animal.name} is called a {animal.young}.",
                f"The {animal.name} and its {animal.young} stay together.",
            ),
            2,
        )
    return " ".join(told)


def _sums(world: World, rng: random.Random) -> str:
    """Additions and subtractions in words."""
    told = []
    for _ in range(rng.randint(4, 7)):
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        first, second, total = NUMBERS[a], NUMBERS[b], NUMBERS[a + b]
        thing = rng.choice(("apples", "coins", "eggs", "books", "cups"))
        told.append(
            rng.choice(
                (
                    f"{_capital(first)} plus {second} is {total}.",
                    f"{_capital(first)} and {second} make {total}.",
                    f"Add {second} to {first} and you have {total}.",
                    f"{_capital(total)} minus {second} is {first}.",
                    f"Take {second} from {total} and {first} are left.",
                    f"Of {total} {thing} {second} were sold, so {first} were left.",
                )
            )
        )
    return " ".join(told)


def _lists(world: World, rng: random.Random) -> str:
    """Lists that are repeated, read backwards, and asked for their first and last word."""
    told = []
    for _ in range(rng.randint(3, 4)):
        words = rng.sample(THINGS, rng.choice((3, 3, 3, 4, 5)))
        there, back = _listed(words), _listed(words[::-1])
        told.append(
            rng.choice(
                (
                    f"On the board stood: {there}. Read backwards it is: {back}.",
                    f"From left to right: {there}. From right to left: {back}.",
                    f"{_capital(there)}. Backwards: {_capital(back)}.",
                    f"{_capital(there)}. First came the {words[0]}, last the {words[-1]}.",
                    f"Of {there} the first is the {words[0]} and the last is the {words[-1]}.",
                )
            )
        )
    return "\n".join(told)


def _echoes(world: World, rng: random.Random) -> str:
    """A row of words and names, said and said again: practice in finding what was said before."""
    names = [person.name for person in world.people]
    words = rng.sample((*THINGS, *names), rng.randint(6, 14))
    return rng.choice(
        (
            f"Say after me: {_listed(words)}. The child said: {_listed(words)}.",
            f"The teacher read {_listed(words)}. The class read {_listed(words)}.",
            f"{_listed(words)}\n{_listed(words)}",
        )
    )


def _spelling(world: World, rng: random.Random) -> str:
    """Words letter by letter."""
    told = []
    for word in rng.sample(THINGS, rng.randint(3, 5)):
        letters = "-".join(word)
        told.append(
            rng.choice(
                (
                    f"The word {word} is spelled {letters}.",
                    f"You write {word} like this: {letters}.",
                    f"{_capital(letters)} spells {word}.",
                    f"The word {word} begins with {word[0]} and ends with {word[-1]}.",
                )
            )
        )
    return " ".join(told)


def _order(world: World, rng: random.Random) -> str:
    """Days, months, numbers and letters, and what comes before and after each."""
    told = []
    for _ in range(rng.randint(4, 7)):
        row = rng.choice((DAYS, MONTHS, NUMBERS, [chr(65 + index) for index in range(26)]))
        index = rng.randrange(len(row) - 1)
        before, after = row[index], row[index + 1]
        told.append(
            rng.choice(
                (
                    f"After {before} comes {after}.",
                    f"Before {after} comes {before}.",
                    f"{_capital(before)} is followed by {after}.",
                    f"{_capital(after)} follows {before}.",
                )
            )
        )
    return " ".join(told)


def _contrasts(world: World, rng: random.Random) -> str:
    """Words and their opposites."""
    told = []
    for pair in rng.sample(OPPOSITES, rng.randint(4, 6)):
        first, second = rng.sample(pair, 2)
        told.append(
            rng.choice(
                (
                    f"{_capital(first)} is the opposite of {second}.",
                    f"The opposite of {first} is {second}.",
                    f"What is not {first} may be {second}.",
                    f"One was {first}, the other was {second}.",
                )
            )
        )
    return " ".join(told)


# How often each kind of document is written.
WRITERS: dict[Callable[[World, random.Random], str], float] = {
    _portrait: 20,
    _gossip: 12,
    _talk: 12,
    _pair: 6,
    _place: 5,
    _nature: 6,
    _sums: 11,
    _lists: 8,
    _echoes: 6,
    _spelling: 6,
    _order: 6,
    _contrasts: 4,
}

"""The closed world that the bundled corpus tells of: who lives in it and what is true there."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

WOMEN = """Ada Agnes Alma Anna Astrid Bella Clara Cora Dagny Edith Elena Emma Flora Freya Greta
Hazel Ida Ingrid Iris Julia Lena Lily Luna Mabel Mira Nora Olga Petra Ruth Selma Thea
Vera""".split()

MEN = """Adam Albert Anton Arvid Axel Basil Bruno Caspar Daniel Emil Ezra Felix Finn Gustav Hugo
Isaac Jasper Jonas Karsten Klaus Leon Lucas Magnus Milo Oscar Otto Owen Peter Rolf Samuel Simon
Sven""".split()

TOWNS = """Tolvik Marwick Elderby Sandholm Brookfen Oakmere Stonevale Wexford Lindholm Greystone
Pinewick Dunmore""".split()
RIVERS = "Alder Brann Corve Esk Lune Morrow Nidd Orla Swale Teme Wye Dove".split()
CRAFTS = "bells bread carpets cheese clocks glass honey kites lace paper pottery ships".split()
DIRECTIONS = "north south east west".split()

JOBS = """baker carpenter doctor farmer fisher gardener hunter judge miller nurse painter pilot
poet sailor smith teacher""".split()
PETS = """cat dog goat hen horse parrot rabbit sheep goose pony turtle mouse lizard donkey duck
pig""".split()
FOODS = """apples beans bread cabbage cheese corn eggs figs fish honey nuts onions peas plums
porridge rice""".split()
INSTRUMENTS = "banjo bugle cello drum fiddle flute guitar harp horn organ piano trumpet".split()
COLOURS = "black blue brown green grey orange pink purple red white yellow golden".split()
MONTHS = """January February March April May June July August September October November
December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


@dataclass(frozen=True)
class Person:
    """Somebody of whom six things are known, each told in many ways by the corpus."""

    name: str
    pronoun: str
    town: str
    job: str
    pet: str
    food: str
    instrument: str
    colour: str


@dataclass(frozen=True)
class Town:
    """A town, the river it stands on, what it makes and the part of the land it lies in."""

    name: str
    river: str
    craft: str
    direction: str


@dataclass(frozen=True)
class Animal:
    """An animal, what it eats, where it sleeps, the noise it makes and what its young is called."""

    name: str
    food: str
    home: str
    noise: str
    young: str


ANIMALS = tuple(
    Animal(*row.split())
    for row in """cow grass barn moos calf
horse hay stable neighs foal
sheep clover fold bleats lamb
pig turnips sty grunts piglet
goat leaves shed bleats kid
dog bones kennel barks puppy
cat mice basket purrs kitten
hen grain coop clucks chick
duck weeds reeds quacks duckling
goose grass yard honks gosling
fox rabbits den yelps cub
wolf deer cave howls pup
bear berries cave growls cub
lion zebras den roars cub
owl voles barn hoots owlet
frog flies pond croaks tadpole
bee nectar hive buzzes grub
mouse crumbs hole squeaks pinky
squirrel acorns tree chatters kit
rabbit carrots burrow squeaks bunny
swan weeds lake hisses cygnet
eagle hares cliff screams eaglet
deer bark forest bellows fawn
donkey thistles stable brays foal
crow seeds tree caws chick
seal fish shore barks pup
elephant branches plain trumpets calf
snake eggs hole hisses hatchling
robin worms nest sings nestling
hedgehog slugs hedge snuffles hoglet""".splitlines()
)

OPPOSITES = tuple(
    tuple(pair.split("-"))
    for pair in """hot-cold big-small tall-short fast-slow light-dark wet-dry old-young rich-poor
hard-soft loud-quiet early-late full-empty open-closed happy-sad high-low thick-thin wide-narrow
near-far strong-weak clean-dirty sweet-sour brave-afraid awake-asleep sharp-blunt rough-smooth
deep-shallow north-south east-west summer-winter day-night up-down left-right front-back
first-last top-bottom friend-enemy question-answer begin-end push-pull buy-sell win-lose""".split()
)

THINGS = """apple arrow bag ball basket bell boat book bottle box bread broom candle chair clock
cloud coat coin cup door drum feather flag fork gate glove hat house kettle key lamp leaf letter
map needle paper pen plate ring rope shell ship spoon stone table tree wheel window""".split()

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen
twenty""".split()


@dataclass(frozen=True)
class World:
    """Everybody and every town; the rest of the world (animals, numbers, ...) never varies."""

    people: tuple[Person, ...]
    towns: tuple[Town, ...]


ATTRIBUTES = tuple(field.name for field in fields(Person) if field.name not in ("name", "pronoun"))


def make_world(seed: int = 0) -> World:
    """Give everyone in the world their attributes.

    Each value of an attribute is held by about the same number of people, so that no answer can
    be guessed from how common it is.

    Args:
        seed: picks one of the possible worlds; the bundled files tell of world 0.
    """
    rng = random.Random(f"world {seed}")
    values = {
        "town": TOWNS,
        "job": JOBS,
        "pet": PETS,
        "food": FOODS,
        "instrument": INSTRUMENTS,
        "colour": COLOURS,
    }
    names = [(name, "she") for name in WOMEN] + [(name, "he") for name in MEN]
    columns = {key: _evenly(options, len(names), rng) for key, options in values.items()}
    people = tuple(
        Person(name, pronoun, **{key: column[index] for key, column in columns.items()})
        for index, (name, pronoun) in enumerate(names)
    )
    places = (_evenly(options, len(TOWNS), rng) for options in (RIVERS, CRAFTS, DIRECTIONS))
    return World(people, tuple(Town(*row) for row in zip(TOWNS, *places, strict=True)))


def _evenly(options: list[str], count: int, rng: random.Random) -> list[str]:
    values = [options[index % len(options)] for index in range(count)]
    rng.shuffle(values)
    return values

"""Seeded mutations of JSON files, as a stranger or a bad disk would make them."""

import copy
import json
import resource
import time

import numpy as np

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e300, 1e-300),
    *(float("nan"), float("inf"), "", "a", "../../secret", "/etc/passwd", "\x00", "é\ud7ff"),
    *("x" * 100_000, [], {}, [None], [[]], [0] * 10_000, {"": None}, {"class_name": "Lambda"}),
    *("(a+)+$", "{{ 1 }}", "keras_hub>GemmaBackbone", "{", 10**5000),
)
SECONDS = 20
MEGABYTES = 600


def mutated(text, generator):
    """The text of a JSON file with one to three things wrong."""
    kind = generator.integers(12)
    if kind == 0:
        return text[: generator.integers(len(text))]
    if kind == 1:
        data = bytearray(text.encode())
        data[generator.integers(len(data))] = generator.integers(32, 127)
        return data.decode(errors="replace")
    if kind == 2:
        depth = int(generator.choice([50, 900, 100_000]))
        return text.replace(":", ":" + "[" * depth + "]" * depth + ',"":', 1)
    value = json.loads(text)
    for _ in range(generator.integers(1, 4)):
        value = _changed(value, generator)
    text = _dumped(value)
    if kind == 3 and text.startswith("{") and len(text) > 2:
        return text[:-1] + "," + text[1:]  # every key twice
    return text


def _dumped(value):
    # Python's own limit on the digits of a number is one of the things to be tried.
    huge = str(10**4000) + "0" * 1000
    return json.dumps(value).replace('"HUGE"', huge)


def _changed(value, generator):
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return _value(generator)
    inside, key = places[generator.integers(len(places))]
    kind = generator.integers(6)
    if kind == 0 and isinstance(inside, dict):
        del inside[key]
    elif kind == 1:
        other, other_key = places[generator.integers(len(places))]
        inside[key], other[other_key] = copy.deepcopy((other[other_key], inside[key]))
    elif kind == 2 and isinstance(inside[key], int | float):
        inside[key] = inside[key] * int(generator.choice([-1, 2, 1000, 10**9, 10**18]))
    elif kind == 3 and isinstance(inside, dict):
        inside[str(key) * 2] = inside[key]
    else:
        inside[key] = _value(generator)
    return value


def _value(generator):
    value = VALUES[generator.integers(len(VALUES))]
    return "HUGE" if value == 10**5000 else copy.deepcopy(value)


def _places(value):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in entries:
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def outcomes(original, files, seeds, load, error, folder):
    """How many mutated folders were refused; anything but a load or an `error` is raised.

    Args:
        original: The sound folder, left as it is.
        files: Names of the JSON files that are mutated in turn.
        seeds: Numbers.
        load: Called with a folder.
        error: What it may raise.
        folder: An empty folder to work in.
    """
    import shutil

    refused, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        generator = np.random.default_rng(seed)
        name = files[seed % len(files)]
        work = shutil.copytree(original, folder / "work")
        text = mutated((work / name).read_text(), generator)
        (work / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        began = time.monotonic()
        try:
            load(work)
        except error as problem:
            assert len(str(problem)) < 5000, f"seed {seed}, {name}: an endless message"
            refused += 1
        except BaseException as problem:
            problem.add_note(f"seed {seed}, {name}: {text[:2000]}")
            raise
        assert time.monotonic() - began < SECONDS, f"seed {seed}, {name}"
        assert [path.name for path in folder.iterdir()] == ["work"]
        shutil.rmtree(work)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB"
    return refused

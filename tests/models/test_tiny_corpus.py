"""The generators of the bundled model's text and tasks."""

import hashlib
import re
from collections import Counter

import pytest

from kerora.models.bundled import BUNDLED_NAMES, bundled_path
from kerora.models.tiny_corpus.files import write_instructions, write_pretraining_text
from kerora.models.tiny_corpus.instructions import instructions
from kerora.models.tiny_corpus.prose import documents
from kerora.models.tiny_corpus.world import ATTRIBUTES, make_world

# What tiny_gemma was trained on: another text means that it must be trained again.
PRETRAINING_SHA256 = "0456ae4d940fbfd3c7b7b6cace71b4f2cfeb1420cd68219ae0ee32f587ecb7df"


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundled_instructions_are_what_the_generator_writes(tmp_path):
    write_instructions(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == bundled_path(f"tiny_gemma/{name}").read_bytes()


def test_the_pretraining_text_is_always_the_same(tmp_path, monkeypatch):
    write_pretraining_text(tmp_path / "text.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundled = bundled_path("tiny_gemma/pretraining.jsonl")
    assert bundled.is_relative_to(tmp_path / "cache")
    assert [path.name for path in bundled.parent.iterdir()] == ["pretraining.jsonl"]
    assert _digest(bundled) == _digest(tmp_path / "text.jsonl") == PRETRAINING_SHA256


def test_another_seed_writes_another_text():
    world = make_world()
    assert list(documents(world, 20, seed=0)) == list(documents(world, 20, seed=0))
    assert list(documents(world, 20, seed=0)) != list(documents(world, 20, seed=1))
    assert make_world(1) != world


def test_heldout_rows_share_no_prompt_and_no_person_with_the_training_rows():
    world = make_world()
    train, heldout = instructions(world)
    prompts = [row["instruction"] for row in train + heldout]
    assert len(set(prompts)) == len(prompts)
    names = {person.name for person in world.people}

    def asked_about(rows):
        words = re.findall(r"[A-Z][a-z]+", " ".join(row["instruction"] for row in rows))
        return names & set(words)

    assert asked_about(train) | asked_about(heldout) == names
    assert not asked_about(train) & asked_about(heldout)
    assert len(asked_about(heldout)) == 20


def test_the_corpus_tells_everything_that_is_asked_about_people():
    """Each value stands in a document with its person, many times over."""
    world = make_world()
    told = Counter()
    names = {person.name: person for person in world.people}
    for text in documents(world, 8000):
        for sentence in text.replace("\n", " ").split(". "):
            words = {word.strip("\".,?:;'").removesuffix("'s") for word in sentence.split()}
            for name in words & names.keys():
                told.update((name, key) for key in ATTRIBUTES if getattr(names[name], key) in words)
    counts = [told[name, key] for name in names for key in ATTRIBUTES]
    assert min(counts) >= 5


def test_the_corpus_never_shows_the_instruction_format():
    text = "\n".join(documents(make_world(), 4000))
    assert "Instruction:" not in text and "Response:" not in text


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"tiny_gemma/train\.jsonl.*Received: 'tiny_gemma/x'"):
        bundled_path("tiny_gemma/x")
    assert all(bundled_path(name).exists() for name in BUNDLED_NAMES[:3])

"""Quantising does not go through all objects of the process once for every kernel."""

import gc
import weakref

import pytest

import kerora
from kerora.garbage_collection import older_objects_passed_over


@pytest.fixture(autouse=True)
def nothing_frozen():
    """As users' programs begin; a fixture of all tests freezes what was there before the file."""
    gc.unfreeze()


@pytest.fixture
def collections(monkeypatch):
    """What of the objects that were there before each collection of the test went through."""
    older, seen = [object.__new__(type("Older", (), {}))], []
    collect = gc.collect

    def recorded(*generation):
        seen.append(any(item is older[0] for item in gc.get_objects()))
        return collect(*generation)

    monkeypatch.setattr(gc, "collect", recorded)
    return seen


def test_quantising_passes_over_older_objects_and_frees_each_kernel_at_once(collections):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    layers = [x for x in model.backbone._flatten_layers() if hasattr(x, "_kernel")]
    kernels = [weakref.ref(layer._kernel) for layer in layers]
    left = []
    for layer in layers:
        own = layer.quantize

        def quantize(*args, own=own, **kwargs):
            own(*args, **kwargs)
            left.append(sum(kernel() is not None for kernel in kernels))

        layer.quantize = quantize
    collections.clear()
    model.quantize("int8")
    assert len(collections) >= len(layers)
    assert not any(collections)
    assert left == list(range(len(layers) - 1, -1, -1))
    gc.collect()
    assert collections[-1]


def test_what_the_caller_froze_stays_frozen(collections):
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with older_objects_passed_over():
            later = [[]]
            assert any(item is later for item in gc.get_objects())
        assert gc.get_freeze_count() >= frozen
    finally:
        gc.unfreeze()

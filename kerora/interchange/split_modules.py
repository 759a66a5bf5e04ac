"""Modules that a file of `transformers` holds as one tensor, and its models as several.

DINOv2 with SwiGLU is the case: `mlp.weights_in` in a file, and in older versions' models, is
`mlp.gate_proj` above `mlp.up_proj`. An adapter may name either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from kerora.interchange.contents import AdapterContents
from kerora.interchange.model_kinds import parts_of_name
from kerora.models.huggingface_folder import TensorPlace


def split_places(
    places: dict[str, TensorPlace], contents: AdapterContents
) -> dict[str, TensorPlace]:
    """The tensors of a base, in the order of their bytes, with those parts apart that models have.

    Args:
        places: The base's tensors.
        contents: An adapter for it. Where it names a module in one, nothing is taken apart.
    """
    if _whole_names((*contents.factors, *contents.biases)):
        return places
    result = {}
    for name, place in places.items():
        parts = parts_of_name(name)
        if place.rows % len(parts):
            parts = (name,)
        rows, size = place.rows // len(parts), place.size // len(parts)
        for number, part in enumerate(parts):
            shape = (rows, *place.shape[1:]) if len(parts) > 1 else place.shape
            start = place.start + number * size
            result[part] = dataclasses.replace(place, shape=shape, start=start, size=size)
    return result


def split_contents(contents: AdapterContents) -> AdapterContents:
    """An adapter with those modules apart that models have; each has the whole one's A."""
    factors, biases = dict(contents.factors), dict(contents.biases)
    ranks, alphas = {}, {}
    for module in _whole_names(factors):
        a, b = factors[module]
        parts = parts_of_name(module)
        if b.ndim != 2:
            continue  # what it should be is told where it is used
        del factors[module]
        for part, own in zip(parts, np.array_split(b, len(parts)), strict=True):
            factors[part] = (a, own)
            ranks[part] = contents.config.rank_of(module)
            alphas[part] = contents.config.alpha_of(module)
    for module in _whole_names(biases):
        parts = parts_of_name(module)
        values = np.array_split(np.atleast_1d(biases.pop(module)), len(parts))
        biases |= dict(zip(parts, values, strict=True))
    config = dataclasses.replace(
        contents.config,
        rank_pattern={**ranks, **contents.config.rank_pattern},
        alpha_pattern={**alphas, **contents.config.alpha_pattern},
    )
    return dataclasses.replace(contents, config=config, factors=factors, biases=biases)


def _whole_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if len(parts_of_name(name)) > 1]

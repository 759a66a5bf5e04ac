"""Between the adapters of a model's layers and the matrices of PEFT's modules.

Most modules are one layer. A fused one, such as GPT-2's `c_attn`, is several: their adapters of
rank r become one of the sum of their ranks, whose B holds zeros where another layer's rows are. The
other way round, each layer takes PEFT's whole A and its own rows of B.

A fused layer, such as Swin's `attention_qkv`, is several modules, and the same holds with the two
sides exchanged: each module takes the layer's whole A and its own rows of B; modules that PEFT
trained become one adapter of the sum of their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kerora.adapters import AdapterError, LoraConfig
from kerora.adapters.factorization import (
    Factorization,
    factorize,
    layer_equation,
    layer_kernel_shape,
)
from kerora.adapters.lora import LoraAdapter
from kerora.interchange.contents import PREFIX, TENSOR_FILE, AdapterContents
from kerora.interchange.layer_names import (
    NamedLayer,
    as_factors,
    from_peft,
    matrix_shapes,
    to_peft,
)

Matrices = tuple[np.ndarray, np.ndarray]


def by_module(layers: Sequence[NamedLayer]) -> dict[str, list[NamedLayer]]:
    """Layers by the module that they are, or are a part of.

    Raises:
        AdapterError: If two layers are the same rows of one module.
    """
    groups: dict[str, list[NamedLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.module, []).append(layer)
    for module, parts in groups.items():
        if len(parts) > 1 and not all(part.is_part for part in parts):
            raise AdapterError(
                f"{len(parts)} adapted layers have the same name '{module}', so a file cannot hold "
                "both."
            )
    return groups


def joined(parts: Sequence[NamedLayer], adapters: Sequence[LoraAdapter]) -> Matrices:
    """PEFT's A, `(rank, in)`, and B, `(out, rank)`, of one module."""
    matrices = [to_peft(part, adapter) for part, adapter in zip(parts, adapters, strict=True)]
    if len(matrices) == 1:
        return matrices[0]
    return (
        np.concatenate([a for a, _ in matrices], -2),
        np.concatenate([b for _, b in matrices], -1),
    )


def module_tensors(layer: NamedLayer, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of an adapter file for one module."""
    key = PREFIX + layer.module
    if not layer.is_embedding:
        return {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    tensors = {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
    if layer.is_tied and layer.weight is not None and layer.head is not None:
        # PEFT keeps the tied head's factors under a name of their own.
        head = PREFIX + layer.head
        tensors |= {f"{head}.lora_A.weight": b.T, f"{head}.lora_B.weight": a.T}
    return tensors


def parts_in_file(contents: AdapterContents, layers: Sequence[NamedLayer]) -> list[NamedLayer]:
    """Of the layers whose modules a file adapts, those that hold an adapter.

    A file that kerora wrote notes which layers of a fused module were adapted; in one that PEFT
    wrote it is all of them.
    """
    noted = contents.kerora.get("parts", {})
    result: list[NamedLayer] = []
    for module, parts in by_module(layers).items():
        numbers = noted.get(module, range(len(parts)))
        if max(numbers, default=0) >= len(parts):
            raise AdapterError(
                f"{contents.folder / TENSOR_FILE} notes adapters on the parts {numbers} of "
                f"'{module}', which has {len(parts)}."
            )
        result += [parts[index] for index in numbers]
    return result


def by_layer(named: Sequence[NamedLayer]) -> list[list[NamedLayer]]:
    """Modules by the layer that they are, or are a part of."""
    groups: dict[int, list[NamedLayer]] = {}
    for module in named:
        groups.setdefault(id(module.candidate.layer), []).append(module)
    return list(groups.values())


def layer_rank(contents: AdapterContents, layer: Sequence[NamedLayer]) -> int:
    """The rank of one layer's adapter in a file, from those of its modules."""
    ranks = [_part_rank(contents, module) for module in layer]
    return ranks[0] if _all_same([contents.factors[one.module][0] for one in layer]) else sum(ranks)


def _part_rank(contents: AdapterContents, layer: NamedLayer) -> int:
    parts = contents.kerora.get("parts", {}).get(layer.module, [0])
    return contents.config.rank_of(layer.module) // len(parts)


def layer_factors(
    contents: AdapterContents,
    layer: Sequence[NamedLayer],
    modules: Mapping[str, Sequence[NamedLayer]],
    config: LoraConfig,
) -> Matrices:
    """A and B of one layer's adapter, in the layer's own axes.

    Args:
        contents: The adapter file.
        layer: The layer, once for each of its modules that the file adapts.
        modules: The adapted layers of each module.
        config: The configuration that the layer's adapter is going to have.

    Raises:
        AdapterError: For a matrix of another shape than the layer needs, or with values that are no
            numbers.
    """
    matrices = [_module_matrices(contents, one, modules[one.module], config) for one in layer]
    a, b = _fused(layer, matrices)
    missing = config.rank - a.shape[-2]
    if missing:
        a = np.concatenate([a, np.zeros((*a.shape[:-2], missing, a.shape[-1]), a.dtype)], -2)
        b = np.concatenate([b, np.zeros((*b.shape[:-1], missing), b.dtype)], -1)
    try:
        return as_factors(factorization_of(layer[0], config.rank), a, b)
    except AdapterError as error:
        file = contents.folder / TENSOR_FILE
        raise AdapterError(f"{file}: '{layer[0].module}': {error}") from error


def _module_matrices(
    contents: AdapterContents, layer: NamedLayer, parts: Sequence[NamedLayer], config: LoraConfig
) -> Matrices:
    """What a module's A and B hold for one of its layers, at the scale of `config`."""
    module = layer.module
    a, b = _checked_matrices(contents, layer)
    if module in contents.kerora.get("parts", {}):
        rank = _part_rank(contents, layer)
        own = slice(parts.index(layer) * rank, (parts.index(layer) + 1) * rank)
        a, b = a[..., own, :], b[..., own]
    ratio = contents.config.scale_of(module) / config.scale
    return from_peft(layer, a, b if ratio == 1 else b * np.float32(ratio))


def _fused(layer: Sequence[NamedLayer], matrices: Sequence[Matrices]) -> Matrices:
    """One A and B from those of a layer's modules; outputs of modules without any get nothing."""
    if layer[0].outputs == slice(None):
        return matrices[0]
    # What kerora saved repeats the A of the layer.
    is_shared = _all_same([a for a, _ in matrices])
    a = matrices[0][0] if is_shared else np.concatenate([a for a, _ in matrices])
    b = np.zeros((layer[0].candidate.layer.units, len(a)), "float32")
    start = 0
    for module, (own_a, own_b) in zip(layer, matrices, strict=True):
        b[module.outputs, start : start + len(own_a)] = own_b
        start += 0 if is_shared else len(own_a)
    return a, b


def _all_same(matrices: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(matrix, matrices[0]) for matrix in matrices[1:])


def _checked_matrices(contents: AdapterContents, layer: NamedLayer) -> Matrices:
    file, module = contents.folder / TENSOR_FILE, layer.module
    rank = contents.config.rank_of(module)
    expected = matrix_shapes(layer, factorization_of(layer, 1), rank)
    for letter, matrix, shape in zip("AB", contents.factors[module], expected, strict=True):
        if matrix.shape != shape:
            raise AdapterError(
                f"{file}: factor {letter} of '{module}' must have shape {shape} (rank {rank}). "
                f"Received: {matrix.shape}"
            )
        if not np.isfinite(matrix).all():
            raise AdapterError(f"{file}: factor {letter} of '{module}' holds NaN or infinity.")
    return contents.factors[module]


def factorization_of(layer: NamedLayer, rank: int) -> Factorization | None:
    """How a layer's kernel splits; None for an embedding."""
    if layer.is_embedding:
        return None
    host = layer.candidate.layer
    return factorize(layer_equation(host), layer_kernel_shape(host), rank)

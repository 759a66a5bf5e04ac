"""How a kernel splits into the two factors of a low-rank adapter.

For a kernel with batch axes `b...` (in input, kernel and output), contracted axes `i...` (in input
and kernel) and output axes `o...` (in kernel and output): A is `(b..., i..., r)` and B is
`(b..., r, o...)`. Flattened to matrices, A·B has rank r, as in the paper, whatever the number of
axes.
"""

from __future__ import annotations

import dataclasses
import math
import string

import keras

from kerora.adapters.errors import AdapterError


@dataclasses.dataclass(frozen=True)
class Factorization:
    """Shapes and einsum equations of the factors A and B of one kernel.

    Attributes:
        down: Equation of `x·A`, for example `"btd,dr->btr"`.
        up: Equation of `(x·A)·B`, for example `"btr,rnh->btnh"`.
        join: Equation of `A·B` in the kernel's own layout, for example `"dr,rnh->ndh"`.
        a_shape: Shape of A, the rank last.
        b_shape: Shape of B, the rank before the output axes.
        contracted_size: Product of the contracted axes (the fan-in).
        output_size: Product of the output axes.
    """

    down: str
    up: str
    join: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    contracted_size: int
    output_size: int


def factorize(equation: str, kernel_shape: tuple[int, ...], rank: int) -> Factorization:
    """Split the kernel of `equation` into the factors of a rank `rank` adapter.

    Args:
        equation: Einsum equation `input,kernel->output`; `...` stands for leading batch axes.
        kernel_shape: Shape of the kernel, in the order of its letters.
        rank: Inner size of the factors. One above the kernel's own computes nothing more, but is
            what a model with narrow layers among others is given by PEFT.

    Returns:
        The `Factorization`.

    Raises:
        AdapterError: If the equation has no contracted or no output axis.

    Example:
    >>> factorize("btd,ndh->btnh", (8, 2048, 256), rank=4).b_shape
    (4, 8, 256)
    """
    inputs, kernel, outputs = equation.replace(" ", "").replace("->", ",").split(",")
    size = dict(zip(kernel, kernel_shape, strict=True))
    batch = [axis for axis in kernel if axis in inputs and axis in outputs]
    contracted = [axis for axis in kernel if axis in inputs and axis not in outputs]
    output = [axis for axis in kernel if axis in outputs and axis not in inputs]
    if not contracted or not output:
        raise AdapterError(
            f"A low-rank adapter needs a kernel with contracted and output axes. Received: "
            f"equation {equation!r}, which leaves contracted={contracted} and output={output}."
        )
    contracted_size = math.prod(size[axis] for axis in contracted)
    output_size = math.prod(size[axis] for axis in output)
    r = next(letter for letter in string.ascii_letters if letter not in equation)
    a = "".join(batch + contracted) + r
    b = "".join([*batch, r, *output])
    middle = "".join(axis for axis in inputs if axis not in contracted) + r
    return Factorization(
        down=f"{inputs},{a}->{middle}",
        up=f"{middle},{b}->{outputs}",
        join=f"{a},{b}->{kernel}",
        a_shape=(*(size[axis] for axis in batch + contracted), rank),
        b_shape=(*(size[axis] for axis in batch), rank, *(size[axis] for axis in output)),
        contracted_size=contracted_size,
        output_size=output_size,
    )


def layer_equation(layer: keras.layers.Layer) -> str:
    """The einsum equation of a Dense or EinsumDense layer."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer.equation
    return "...i,io->...o"


def layer_kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """The kernel's shape as the equation has it, also where a quantised kernel is stored packed."""
    original = getattr(layer, "original_kernel_shape", None)
    if original is not None:
        return tuple(original)
    if isinstance(layer, keras.layers.Dense):
        return (layer.input_spec.axes[-1], layer.units)
    return tuple(layer.kernel.shape)

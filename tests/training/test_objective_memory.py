"""What XLA says the loss costs."""

import keras
import pytest
from keras import ops

from kerora.training.objective import Head, next_token_loss

if keras.backend.backend() != "jax":
    pytest.skip("XLA's memory analysis is read through JAX", allow_module_level=True)

import jax

V, D, B, S = 50_000, 64, 4, 512
LOGITS = B * S * V * 4


def compiled_gradient(layer, rows=B):
    variable = layer.embeddings

    def loss(hidden, table, labels, weights):
        with keras.StatelessScope([(variable, table)]):
            return next_token_loss(hidden, labels, weights, Head(layer)).loss_sum

    inputs = (
        ops.zeros((rows, S, D)),
        variable.value,
        ops.zeros((rows, S), "int32"),
        ops.zeros((rows, S)),
    )
    arguments = (0, 1) if layer.trainable else 0
    return jax.jit(jax.grad(loss, arguments)).lower(*inputs).compile()


@pytest.mark.parametrize("trainable", [False, True])
def test_the_logits_are_never_held(trainable):
    layer = keras.layers.ReversibleEmbedding(V, D)
    layer.build()
    layer.trainable = trainable
    compiled = compiled_gradient(layer)
    assert compiled.memory_analysis().temp_size_in_bytes < LOGITS / 10
    # The table is read where it lies, never turned over.
    assert f"f32[{D},{V}]" not in compiled.as_text()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_chunk_without_tokens_costs_nothing(rows):
    layer = keras.layers.ReversibleEmbedding(V, D, trainable=False)
    layer.build()
    step = compiled_gradient(layer, rows).as_text()
    # One loop over whole chunks and one choice of the rest's size, from nothing to 448 tokens,
    # with a loop over the vocabulary in each: none outside, where XLA puts one that would do the
    # same for every chunk.
    whole = step[step.index("\nENTRY ") :]
    assert whole.count(" while(") == whole.count(" conditional(") == 1
    assert step.count(" while(") == 1 + 1 + 7

"""The arithmetic of a whole compiled train step, by XLA's own count."""

import keras
import keras_hub
import numpy as np
import pytest

import kerora
from kerora.adapters.targets import candidates
from kerora.training.objective_blocks import CPU_BLOCKING

if keras.backend.backend() != "jax":
    pytest.skip("reads XLA's cost analysis", allow_module_level=True)

from benchmarks.compiled_step import compile_train_step

TOKENS, VOCABULARY = 2048, CPU_BLOCKING.block
# XLA counts the body of a loop once. Here the objective has one block of the vocabulary, one loop
# over chunks of tokens, and one over what remains of them; of attention a block of each is counted.
COUNTED = CPU_BLOCKING.chunk + CPU_BLOCKING.remainder


def gemma(layers=2):
    """Two layers of Gemma 2B's widths."""
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_query_heads=8,
        num_key_value_heads=1,
        hidden_dim=2048,
        intermediate_dim=32768,
        head_dim=256,
    )
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def llama(layers=2, hidden=2048, intermediate=8192, heads=32, key_value_heads=8, tied=False):
    """Two layers of Llama 3.2 1B's widths."""
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_query_heads=heads,
        num_key_value_heads=key_value_heads,
        hidden_dim=hidden,
        intermediate_dim=intermediate,
        tie_word_embeddings=tied,
    )
    return keras_hub.models.Llama3CausalLM(backbone=backbone, preprocessor=None)


def smollm2():
    """Eight layers of SmolLM2-135M's widths."""
    return llama(layers=8, hidden=576, intermediate=1536, heads=9, key_value_heads=3, tied=True)


def batch():
    tokens = np.arange(TOKENS, dtype="int32").reshape(4, -1) % VOCABULARY
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    return x, tokens, np.ones(tokens.shape, "float32")


def size(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


@pytest.mark.parametrize("make", [gemma, llama, smollm2])
def test_a_step_costs_what_it_must(make):
    model = kerora.adapt(make())
    embedding = size(model.backbone.token_embedding.weights)
    head = VOCABULARY * model.backbone.hidden_dim
    layers = size(model.backbone.weights) - embedding
    model.backbone.enable_lora(4, targets="all-linear")
    adapters = size(model.trainable_variables)
    flops = compile_train_step(model, batch()).cost_analysis()["flops"]
    flops += 4 * head * (TOKENS - COUNTED)
    # Two for the forward pass and two for the gradient of the inputs; none that is not needed:
    # nothing that trains lies before the first layer's query, key and value.
    floor = 4 * TOKENS * (layers + head)
    first = next(layer for layer in model.backbone.layers if layer.name.endswith("_0"))
    unneeded = size(
        candidate.layer._kernel
        for candidate in candidates(first)
        if candidate.layer.name in ("query", "key", "value")
    )
    assert unneeded
    assert flops < 1.03 * floor
    assert flops < 1.03 * (floor - 2 * TOKENS * unneeded + 6 * TOKENS * adapters)

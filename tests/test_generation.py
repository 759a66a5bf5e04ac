"""Greedy answers in batches equal those of one prompt at a time, step by step."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import pytest
from tiny_backbones import tiny_backbone

from kerora.generation import GreedyDecoder

NEW_TOKENS = 6
LENGTH = 80


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    backbone = tiny_backbone("gemma", vocabulary_size=50, num_layers=1)
    for variable in backbone.weights:
        variable.assign(3.0 * keras.ops.convert_to_numpy(variable))
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def step_by_step(model, prompt, stop):
    """The likeliest next token of the whole text so far, again and again."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + NEW_TOKENS:
        # One shape for all: what stands behind the text is not seen.
        padded = np.zeros((1, LENGTH), "int32")
        padded[0, : len(tokens)] = tokens
        inputs = {"token_ids": padded, "padding_mask": np.ones((1, LENGTH), "int32")}
        logits = keras.ops.convert_to_numpy(model(inputs))[0, len(tokens) - 1]
        if int(logits.argmax()) in stop:
            break
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_answers_equal_those_of_one_step_at_a_time(model):
    chance = np.random.default_rng(0)
    prompts = [chance.integers(1, 50, size).astype("int32") for size in (3, 9, 70, 5, 1)]
    free = GreedyDecoder(model, (), NEW_TOKENS, rows=2)(prompts)
    assert [answer.tolist() for answer in free] == [step_by_step(model, p, ()) for p in prompts]
    # The padding token, 0, as a stop token must not end an answer before it starts.
    stop = (0, int(free[1][2]))
    stopped = GreedyDecoder(model, stop, NEW_TOKENS, rows=2)(prompts)
    assert [a.tolist() for a in stopped] == [step_by_step(model, p, stop) for p in prompts]
    assert len(stopped[1]) < NEW_TOKENS


def test_the_models_own_sampler_stays(model):
    model.compile(sampler="top_k")
    sampler = model.sampler
    prompt = np.array([4, 5], "int32")
    first = GreedyDecoder(model, (), NEW_TOKENS, rows=1)
    first([prompt])
    assert model.sampler is sampler
    assert model.generate_function is None


def test_it_sees_weights_that_change(model):
    prompt = np.array([4, 5, 6], "int32")
    decoder = GreedyDecoder(model, (), NEW_TOKENS, rows=1)
    before = decoder([prompt])[0].tolist()
    kernel = model.backbone.token_embedding.embeddings
    saved = keras.ops.convert_to_numpy(kernel).copy()
    kernel.assign(saved[::-1].copy())
    try:
        after = decoder([prompt])[0].tolist()
        assert after == step_by_step(model, prompt.tolist(), ())
        assert after != before
    finally:
        kernel.assign(saved)

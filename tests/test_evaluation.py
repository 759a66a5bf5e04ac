"""Scores against the plain formula on logits."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
from data.byte_tokenizer import ByteTokenizer
from tiny_backbones import tiny_backbone

import kerora
from kerora.data import Encoder, make_batches
from kerora.evaluation import Answer, answerable, expected_response, first_words, score_tokens

ROWS = [{"prompt": f"{n} and {n}: ", "response": "word " * n} for n in (1, 2, 3, 5, 8, 13)]


def test_every_supervised_token_weighs_the_same():
    keras.utils.set_random_seed(1)
    backbone = tiny_backbone("gemma", vocabulary_size=272, num_layers=1)
    model = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    # Unpacked, so that plain causal attention is right; batches differ in their supervised tokens.
    batches = make_batches(
        ROWS, ByteTokenizer(), sequence_length=96, batch_size=2, packing=False, shuffle=False
    )
    scores = score_tokens(model, batches)
    losses, right, weights = [], [], []
    for inputs, labels, weight in batches:
        logits = keras.ops.convert_to_numpy(model(inputs)).astype("float64")
        shifted = logits - logits.max(-1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        losses.append(-np.take_along_axis(log_probability, labels[..., None], -1)[..., 0])
        right.append(logits.argmax(-1) == labels)
        weights.append(weight)
    expected = np.average(losses, weights=weights)
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.perplexity, np.exp(expected), rtol=1e-4)
    np.testing.assert_allclose(scores.token_accuracy, np.average(right, weights=weights), rtol=1e-5)
    assert scores.tokens == np.sum(weights)


def test_expected_responses():
    encoder = Encoder(ByteTokenizer(), sequence_length=32)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": "a", "response": "b"}, {"text": "plain"}, "plain", chat, {"wrong": 1}]
    assert [expected_response(row, encoder) for row in rows] == ["b", None, None, "b", None]
    assert answerable(rows, encoder, 5) == [rows[0], rows[3]]
    assert answerable(rows, encoder, 1) == [rows[0]]
    assert first_words([{"text": "one two"}, "a b c d e f g h i"], 2) == [
        "one two",
        "a b c d e f g h",
    ]


def test_white_space_at_the_ends_does_not_matter():
    assert Answer("", "Lose.", " Lose.\n").exact
    assert not Answer("", "Lose.", "lose.").exact
    assert not Answer("", None, "").exact

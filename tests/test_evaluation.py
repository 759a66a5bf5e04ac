"""Scores against the plain formula on logits."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import pytest
from data.byte_tokenizer import ByteTokenizer
from tiny_backbones import tiny_backbone

import kerora
from kerora.data import Encoder, make_batches
from kerora.evaluation import Answer, answerable, expected_response, openings, score_tokens

ROWS = [{"prompt": f"{n} and {n}: ", "response": "word " * n} for n in (1, 2, 3, 5, 8, 13)]


def small_model_and_batches():
    keras.utils.set_random_seed(1)
    backbone = tiny_backbone("gemma", vocabulary_size=272, num_layers=1)
    model = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    # Unpacked, so that plain causal attention is right; batches differ in their supervised tokens.
    batches = make_batches(
        ROWS, ByteTokenizer(), sequence_length=96, batch_size=2, packing=False, shuffle=False
    )
    return model, batches


def by_the_formula(model, batches):
    """Loss of each token, whether it is the likeliest, and its weight, from logits in NumPy."""
    losses, right, weights = [], [], []
    for inputs, labels, weight in batches:
        logits = keras.ops.convert_to_numpy(model(inputs)).astype("float64")
        shifted = logits - logits.max(-1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        losses.append(-np.take_along_axis(log_probability, labels[..., None], -1)[..., 0])
        right.append(logits.argmax(-1) == labels)
        weights.append(weight)
    return np.array(losses), np.array(right), np.array(weights)


def test_every_supervised_token_weighs_the_same():
    model, batches = small_model_and_batches()
    losses, right, weights = by_the_formula(model, batches)
    scores = score_tokens(model, batches)
    expected = np.average(losses, weights=weights)
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.perplexity, np.exp(expected), rtol=1e-4)
    np.testing.assert_allclose(scores.token_accuracy, np.average(right, weights=weights), rtol=1e-5)
    assert scores.tokens == np.sum(weights)


@pytest.mark.parametrize("on_logits", [False, True])
def test_the_logs_of_keras_are_means_over_tokens(on_logits):
    model, batches = small_model_and_batches()
    losses, _, weights = by_the_formula(model, batches)
    expected = np.average(losses, weights=weights)
    metrics = [keras.metrics.SparseCategoricalCrossentropy(from_logits=True)] if on_logits else []
    model.compile(keras.optimizers.SGD(0.0), weighted_metrics=metrics)
    assert (model._compiled.objective is None) == on_logits
    logs = model.evaluate(batches, verbose=0, return_dict=True)
    history = model.fit(batches, validation_data=batches, verbose=0).history
    reported = [logs["loss"], *history["loss"], *history["val_loss"]]
    np.testing.assert_allclose(reported, [expected] * 3, rtol=1e-5)
    of_batches = np.average(losses, axis=(1, 2), weights=weights)
    assert abs(of_batches.mean() - expected) > 1e-3 * expected  # which Keras would have reported


def test_an_evaluation_is_one_epoch_of_unlike_windows(monkeypatch):
    monkeypatch.setattr("kerora.data.windows._MOST_ROWS", 8)
    model, _ = small_model_and_batches()
    model.compile(keras.optimizers.SGD(0.0))
    shortest_first = [{"prompt": "p", "response": "word " * n} for n in range(1, 17)]
    for rows in (shortest_first, shortest_first[::-1]):

        def batches(rows=rows):
            settings = {"sequence_length": 96, "batch_size": 2, "shuffle": False}
            return make_batches(rows, ByteTokenizer(), **settings)

        evaluated = model.evaluate(batches(), verbose=0, return_dict=True)
        history = model.fit(batches(), validation_data=batches(), verbose=0).history
        losses = [evaluated["loss"], *history["loss"], *history["val_loss"]]
        np.testing.assert_allclose(losses, score_tokens(model, batches()).loss, rtol=1e-5)


def test_a_loss_over_positions_stays_keras_own():
    model, batches = small_model_and_batches()
    losses, _, weights = by_the_formula(model, batches)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, np.mean(losses * weights), rtol=1e-5)


def test_expected_responses():
    encoder = Encoder(ByteTokenizer(), sequence_length=32)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": "a", "response": "b"}, {"text": "plain"}, "plain", chat, {"wrong": 1}]
    assert [expected_response(row, encoder) for row in rows] == ["b", None, None, "b", None]
    assert answerable(rows, encoder, 5) == [rows[0], rows[3]]
    assert answerable(rows, encoder, 1) == [rows[0]]
    called = [*chat[:1], {"role": "assistant", "tool_calls": [{"name": "f"}]}, *chat]
    assert answerable([called], encoder, 1) == [], "which the chat template refuses"


def test_openings_are_of_rows_as_the_encoder_reads_them():
    chat = {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}
    rows = [{"wrong": 1}, {"Text": "one two"}, "a b c d e f g h i", {"text": ""}, chat]
    encoder = Encoder(ByteTokenizer(), sequence_length=32)
    assert openings(rows, encoder, 3) == ["one two", "a b c d e f g h", chat]
    assert openings(rows, encoder, 1) == ["one two"]
    named = Encoder(ByteTokenizer(), sequence_length=32, template="{body}")
    assert openings([{"text": "a"}, {"body": "one two"}], named, 2) == ["one two"]


def test_white_space_at_the_ends_does_not_matter():
    assert Answer("", "Lose.", " Lose.\n").exact
    assert not Answer("", "Lose.", "lose.").exact
    assert not Answer("", None, "").exact

"""Keras' own fit, on the batches, on whatever backend runs."""

import keras
import numpy as np
from byte_tokenizer import ByteTokenizer, texts

from kerora.data.pipeline import make_batches


class CountsTraces(keras.layers.Layer):
    """Counts how often Python runs through it: once per trace where steps are compiled."""

    traces = 0

    def call(self, inputs):
        CountsTraces.traces += 1
        return inputs


def model() -> keras.Model:
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    segments = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(272, 8)(token_ids) + keras.layers.Embedding(64, 8)(segments)
    x = keras.layers.Dense(272)(CountsTraces()(x))
    built = keras.Model({"token_ids": token_ids, "padding_mask": segments}, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    built.compile(optimizer="adam", loss=loss)
    return built


def make(**options):
    settings = {"sequence_length": 256, "batch_size": 4, **options}
    return make_batches(texts(60), ByteTokenizer(), **settings)


class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.traces = []
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.traces.append(CountsTraces.traces)
        self.losses.append(float(logs["loss"]))


def test_fit_goes_through_all_epochs_with_one_trace():
    batches = make()
    steps = Steps()
    validation = make(shuffle=False)
    history = (
        model()
        .fit(
            batches.repeat(),
            steps_per_epoch=batches.steps_per_epoch,
            epochs=3,
            validation_data=validation,
            validation_steps=validation.steps_per_epoch,
            callbacks=[steps],
            verbose=0,
        )
        .history
    )
    assert len(steps.losses) == 3 * batches.steps_per_epoch
    assert history["loss"][2] < history["loss"][0]
    assert len(history["val_loss"]) == 3
    if keras.backend.backend() != "torch":  # which runs each step in Python
        first_epoch = steps.traces[: batches.steps_per_epoch]
        assert len(set(first_epoch)) == 1, first_epoch


def test_training_resumed_at_a_step_has_the_losses_of_the_whole_run(tmp_path):
    batches = make().repeat()
    keras.utils.set_random_seed(0)
    net, whole = model(), Steps()
    weights = net.get_weights()
    net.fit(batches, steps_per_epoch=12, epochs=1, callbacks=[whole], verbose=0)

    keras.utils.set_random_seed(0)
    net, first = model(), Steps()
    net.set_weights(weights)
    net.fit(batches, steps_per_epoch=7, epochs=1, callbacks=[first], verbose=0)
    resumed = make().repeat().starting_at(batches.state_at(7))
    second = Steps()
    net.fit(resumed, steps_per_epoch=5, epochs=1, callbacks=[second], verbose=0)
    # Keras' running mean starts anew with the second fit.
    means = np.asarray(whole.losses)
    total = means * np.arange(1, 13)
    expected = (total[7:] - total[6]) / np.arange(1, 6)
    np.testing.assert_allclose(first.losses, means[:7], rtol=1e-6)
    np.testing.assert_allclose(second.losses, expected, rtol=1e-4)


def test_unweighted_evaluation_equals_the_formula():
    net = model()
    batches = make(shuffle=False)
    value = net.evaluate(batches, steps=1, verbose=0)
    inputs, labels, weights = next(iter(batches))
    logits = keras.ops.convert_to_numpy(net(inputs)).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logp, labels[..., None], -1)[..., 0]
    # Keras' own loss divides by all positions.
    np.testing.assert_allclose(value, (nll * weights).sum() / weights.size, rtol=1e-4)

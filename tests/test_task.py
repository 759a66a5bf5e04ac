"""What a model that kerora adapted says about its data and its weights."""

import keras
import keras_hub
import numpy as np
import pytest

import kerora
from kerora.training.fit_data import DataError

SHORT = {"question": "What is it?", "answer": "A cat."}


@pytest.fixture(scope="module")
def model():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    return model


def test_fit_says_which_rows_were_lost(model):
    rows = [SHORT] * 4
    cut = {"question": "What is it?", "answer": "A cat " * 60}
    no_answer = {"question": "What is it?", "answer": ""}
    with pytest.warns(UserWarning, match="1 examples were cut .*; 1 rows skipped: empty response"):
        model.fit([*rows, cut, no_answer], sequence_length=32, on_bad_row="skip", verbose=0)


@pytest.mark.parametrize("length", [0, "64", 1])
def test_a_row_has_a_whole_number_of_tokens(model, length):
    with pytest.raises(DataError, match="whole number of at least 2"):
        model.fit([SHORT], sequence_length=length, verbose=0)


def test_keras_hubs_own_adapter_files_are_not_written(model, tmp_path):
    with pytest.raises(kerora.AdapterError, match="save_adapter"):
        model.backbone.save_lora_weights(tmp_path / "x.lora.h5")
    with pytest.raises(kerora.AdapterError, match="no file"):
        model.backbone.load_lora_weights(tmp_path / "x.lora.h5")


def test_a_second_adapter_of_one_name_is_refused(model):
    with pytest.raises(kerora.AdapterError, match="remove_adapter"):
        model.backbone.enable_lora(2)


def test_the_default_learning_rate_is_by_what_trains_and_for_how_long():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)

    def rate_of_eight_steps():
        model.fit([SHORT], epochs=2, steps_per_epoch=4, sequence_length=32, verbose=0)
        return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))

    expected = 5e-4 * 16 ** (1 / 3)  # The third root of 128 by 8.
    assert rate_of_eight_steps() == pytest.approx(expected)
    model.fit([SHORT], steps_per_epoch=2, sequence_length=32, verbose=0)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(2e-3)
    assert rate_of_eight_steps() == pytest.approx(expected)
    model.optimizer.learning_rate = 1e-4
    assert rate_of_eight_steps() == pytest.approx(1e-4)


@pytest.mark.parametrize("rate", [2e-5, 1e-4])
def test_a_learning_rate_set_by_hand_is_kept(rate):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    model.optimizer.learning_rate = rate
    model.fit([SHORT], sequence_length=32, verbose=0)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(rate)


def of_keras_hub():
    return keras_hub.models.CausalLM.from_preset(str(kerora.bundled_path("tiny_gemma")))


CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    "compiled",
    [
        {"optimizer": keras.optimizers.SGD(0.25)},
        {"optimizer": keras.optimizers.AdamW(2e-5, weight_decay=0.01)},
        {"optimizer": keras.optimizers.Adam(2e-5, global_clipnorm=1.0)},
        {"loss": CROSS_ENTROPY(from_logits=True, reduction="sum")},
        {"weighted_metrics": [keras.metrics.SparseTopKCategoricalAccuracy()]},
    ],
)
def test_what_was_compiled_before_adapt_is_kept(compiled):
    model = of_keras_hub()
    model.backbone.enable_lora(2)
    model.compile(**compiled)
    optimizer, loss = model.optimizer, model.loss
    kerora.adapt(model)
    assert model.optimizer is optimizer and model.loss is loss
    if isinstance(optimizer, keras.optimizers.SGD):
        model.fit([SHORT] * 2, sequence_length=32, verbose=0)
        assert model.optimizer is optimizer
        assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.25


@pytest.mark.parametrize("arguments", [{}, {"sampler": "greedy"}, {"run_eagerly": True}])
def test_what_keras_hub_compiled_by_itself_gives_way(arguments):
    model = of_keras_hub()
    model.compile(**arguments)
    sampler = model.sampler
    kerora.adapt(model)
    assert isinstance(model.loss, kerora.TokenLoss)
    assert model.optimizer.global_clipnorm == 1.0
    assert model.sampler is sampler
    assert model.run_eagerly == arguments.get("run_eagerly", False)


def test_a_keras_file_holds_template_source_and_whose_learning_rate_it_is(tmp_path):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    model.chat_template = "chatml"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.source, loaded.chat_template) == ("tiny_gemma", model.chat_template)
    losses = []
    for task in (model, loaded):
        options = {"epochs": 2, "sequence_length": 32, "verbose": 0}
        losses.append(task.fit([SHORT], **options).history["loss"])
        rate = float(keras.ops.convert_to_numpy(task.optimizer.learning_rate))
        assert rate == pytest.approx(5e-4 * 4)  # two steps
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_is_done_to_the_backbone_reaches_its_task():
    model = kerora.from_preset("tiny_gemma")

    def loss():
        return model.evaluate([SHORT], sequence_length=32, verbose=0)[0]

    base = loss()
    model.backbone.enable_lora(2)
    model.fit([SHORT], epochs=8, sequence_length=32, verbose=0)
    adapted = loss()
    assert adapted < base - 0.1
    for part in (model, model.backbone):
        with kerora.disabled_adapters(part):
            assert loss() == pytest.approx(base, rel=1e-5)
        assert loss() == adapted
    kerora.set_active_adapters(model.backbone, [])
    assert loss() == pytest.approx(base, rel=1e-5)
    kerora.set_active_adapters(model.backbone, ["default"])
    model.fit([SHORT], sequence_length=32, verbose=0)
    adapted = loss()
    kerora.merge_adapter(model.backbone)
    assert loss() == pytest.approx(adapted, rel=1e-3)
    assert len(model.optimizer.variables) == 2  # its count and learning rate


class Tenfold(kerora.TokenLoss):
    def call(self, y_true, y_pred):
        return 10 * super().call(y_true, y_pred)


class AllRight(keras.metrics.SparseCategoricalAccuracy):
    def update_state(self, y_true, y_pred, sample_weight=None):
        right = keras.ops.one_hot(y_true, y_pred.shape[-1])
        return super().update_state(y_true, right, sample_weight)


def test_subclasses_of_loss_and_accuracy_compute_what_they_say():
    model = kerora.from_preset("tiny_gemma")

    def measured(loss, accuracy):
        model.compile(loss=loss, weighted_metrics=[accuracy])
        return model.evaluate([SHORT], sequence_length=32, verbose=0)

    stock = keras.metrics.SparseCategoricalAccuracy
    loss, accuracy = measured(kerora.TokenLoss(), stock())
    assert accuracy < 1
    assert measured(Tenfold(), stock()) == pytest.approx([10 * loss, accuracy], rel=1e-4)
    assert measured(kerora.TokenLoss(), AllRight()) == pytest.approx([loss, 1.0], rel=1e-4)


@pytest.mark.parametrize("rows", [[1, 2], [[1, 2], [3, 4]], (1, 2), 5])
def test_numbers_are_no_rows(model, rows):
    with pytest.raises(DataError, match=r"no rows of text.*\(prompt, response\).*Received"):
        model.fit(rows, verbose=0)
    with pytest.raises(DataError, match="no rows of text"):
        model.evaluate(rows, verbose=0)


def test_tokens_are_refused_while_the_model_tokenises_itself(model):
    ids = np.ones((2, 8), "int32")
    tokens = {"token_ids": ids, "padding_mask": ids > 0}
    for data in (ids, tokens):
        with pytest.raises(DataError, match=r"preprocessor = None.*token_ids"):
            model.fit(data, ids, verbose=0)
    preprocessor, model.preprocessor = model.preprocessor, None
    model.fit(tokens, ids, verbose=0)
    model.preprocessor = preprocessor


def test_pairs_are_prompts_and_responses(model):
    pairs = [("What is it?", "A cat."), ("And this?", "A dog.")]
    records = [{"prompt": prompt, "response": response} for prompt, response in pairs]
    options = {"sequence_length": 32, "verbose": 0}
    assert model.evaluate(pairs, **options) == model.evaluate(records, **options)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "categorical_crossentropy",
        keras.losses.KLDivergence(),
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
    ],
)
def test_a_loss_that_text_cannot_have_is_named(loss):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.compile(optimizer="sgd", loss=loss)
    name = loss if isinstance(loss, str) else type(loss).__name__
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=rf"TokenLoss.*Received: loss=.*{name}"):
            method([SHORT] * 2, sequence_length=32, verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        kerora.losses.TokenLoss(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda labels, logits: keras.ops.mean(logits),
    ],
)
def test_losses_that_text_can_have(loss):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.compile(optimizer="sgd", loss=loss)
    assert np.isfinite(model.evaluate([SHORT] * 2, sequence_length=32, verbose=0)[0])


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="traces a step more than once")
def test_fit_runs_the_model_for_its_steps_alone(monkeypatch):
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    backbone_class, calls = type(model.backbone), []
    stock = backbone_class.call

    def call(self, *args, **kwargs):
        calls.append(args)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(backbone_class, "call", call)
    model.fit([SHORT] * 2, sequence_length=32, verbose=0)  # one step; JAX traces it once
    assert len(calls) == 1


@pytest.mark.parametrize("jit_compile", [False, "auto"])
@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "sum_over_batch_size"])
def test_the_weight_of_a_row_is_that_of_each_of_its_tokens(reduction, jit_compile):
    model = kerora.from_preset("tiny_gemma")
    model.preprocessor = None
    model.backbone.enable_lora(2)
    model.compile(loss=kerora.TokenLoss(reduction=reduction), jit_compile=jit_compile)
    tokens = np.random.default_rng(0).integers(3, 500, (2, 16)).astype("int32")
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    y = np.roll(tokens, -1, 1)
    of_rows = np.array([1.0, 2.0], "float32")
    expected = model.evaluate(x, y, sample_weight=np.repeat(of_rows[:, None], 16, 1), verbose=0)
    np.testing.assert_allclose(
        model.evaluate(x, y, sample_weight=of_rows, verbose=0), expected, rtol=1e-5
    )
    assert model.fit(x, y, sample_weight=of_rows, verbose=0).history["loss"] == [
        pytest.approx(expected[0], rel=1e-4)
    ]

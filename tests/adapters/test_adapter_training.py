"""Training with Keras' own `fit`: what moves, what does not, and each backend's traps."""

import keras
import keras_hub
import numpy as np
import pytest
from adapted_models import (
    all_equal,
    as_numpy,
    compile_for_tokens,
    eager_logits,
    factor_variables,
    fill_factors,
    fit_losses,
    gemma_task,
    logits,
    small_model,
    token_batch,
    values,
)
from backends import once
from tiny_backbones import tiny_backbone

import kerora
from kerora.adapters import (
    LoraConfig,
    add_adapter,
    disabled_adapters,
    merge_adapter,
    remove_adapter,
    set_active_adapters,
)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(gemma_task, "float32"), (small_model, "bfloat16"), (small_model, "mixed_bfloat16")],
)
def test_the_first_pass_is_the_bases_and_only_the_adapter_trains(make, dtype):
    model = make(dtype)
    eager, compiled = eager_logits(model), logits(model)
    base = list(model.weights)
    add_adapter(model, LoraConfig(rank=4, targets="all-linear"))
    assert np.array_equal(eager_logits(model), eager)
    assert np.array_equal(logits(model), compiled)

    factors = factor_variables(model)
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in factors}
    assert {v.dtype for v in factors} == {"float32"}
    before, started = values(base), values(factors)
    losses = fit_losses(compile_for_tokens(model), epochs=6)
    assert losses[-1] < losses[0] - 0.05
    assert all_equal(values(base), before)
    assert not any(np.array_equal(a, b) for a, b in zip(values(factors), started, strict=True))


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_biases_train_as_asked(bias):
    backbone = tiny_backbone("gpt2", num_layers=1)
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    adapted = [
        getattr(layer._self_attention_layer, name)
        for layer in backbone.transformer_layers
        for name in ("_query_dense", "_value_dense")
    ]
    own = {id(layer.bias) for layer in adapted}
    everything = {id(v) for v in backbone.weights if v.name == "bias"}
    add_adapter(model, LoraConfig(rank=2, bias=bias))
    factors = {id(v) for v in factor_variables(model)}
    expected = {"none": set(), "lora_only": own, "all": everything}[bias]
    assert len(own) == 2 and len(everything) == 6
    assert {id(v) for v in model.trainable_variables} == factors | expected

    still = [v for v in model.weights if not v.trainable]
    moving = [v for v in model.trainable_variables if id(v) in expected]
    before, start = values(still), values(moving)
    fit_losses(compile_for_tokens(model))
    assert all_equal(values(still), before)
    # A key's bias shifts all scores of a query alike: its gradient is zero.
    stuck = [
        v.path
        for v, a, b in zip(moving, values(moving), start, strict=True)
        if np.array_equal(a, b) and "key" not in v.path
    ]
    assert not stuck


def _smollm3_task():
    return keras_hub.models.SmolLM3CausalLM(tiny_backbone("smollm3"), preprocessor=None)


@pytest.mark.parametrize("make", [small_model, _smollm3_task])
def test_gradients_do_not_pile_up_from_step_to_step(make):
    """A step from the same place goes the same way, however many steps came before."""
    model = make()
    if keras.backend.backend() == "torch":
        # From now on PyTorch has a list of the model's parameters, without the adapter's.
        list(model.parameters())
    add_adapter(model, LoraConfig(rank=2, targets="all-linear"))
    fill_factors(model)
    factors = factor_variables(model)
    start = values(factors)
    compile_for_tokens(model, keras.optimizers.SGD(0.1))
    ends = []
    for _ in range(2):
        fit_losses(model, epochs=1)
        ends.append(values(factors))
        for variable, value in zip(factors, start, strict=True):
            variable.assign(value.copy())
    for origin, first, second in zip(start, *ends, strict=True):
        assert abs(first - origin).max() > 1e-5
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="about PyTorch's parameters")
def test_torch_knows_each_factor_as_a_parameter_and_forgets_it():
    model = small_model()
    before = len(list(model.parameters()))
    add_adapter(model, LoraConfig(rank=2, bias="all"))
    known = {id(parameter) for parameter in model.parameters()}
    assert all(id(v.value) in known for v in model.trainable_variables)
    merge_adapter(model)
    assert len(list(model.parameters())) == before


def _generate(model):
    x, _ = token_batch(rows=2, length=12)
    x["padding_mask"] = (np.arange(12) < 4).astype("int32") * np.ones((2, 1), "int32")
    return as_numpy(model.generate(x, stop_token_ids=None)["token_ids"]), x["token_ids"][:, :4]


def test_functions_traced_before_do_not_ignore_the_adapter():
    model = gemma_task()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, sampler="greedy")
    x, y = token_batch()
    old_logits, (old_tokens, _) = logits(model), _generate(model)
    old_loss = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]

    add_adapter(model, LoraConfig(rank=4, targets="all-linear"))
    assert np.array_equal(_generate(model)[0], old_tokens)
    fill_factors(model, spread=1.0)
    assert abs(logits(model) - old_logits).max() > 0.5
    np.testing.assert_allclose(logits(model), eager_logits(model), atol=1e-4)
    new_tokens, prompt = _generate(model)
    assert not np.array_equal(new_tokens, old_tokens)
    prompt = {"token_ids": prompt, "padding_mask": np.ones((2, 4), "int32")}
    assert np.array_equal(new_tokens[:, 4], as_numpy(model(prompt))[:, -1].argmax(-1))
    new_loss = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert abs(new_loss - old_loss) > 1e-2


def test_fit_goes_on_after_predict_merge_and_weights_from_another_model():
    source, model = small_model(), compile_for_tokens(small_model())
    add_adapter(source, LoraConfig(rank=2))
    fill_factors(source)
    add_adapter(model, LoraConfig(rank=2))
    for theirs, ours in zip(source.weights, model.weights, strict=True):
        ours.assign(as_numpy(theirs))
    kept = values(source.weights)
    first = fit_losses(model)
    logits(model)
    assert fit_losses(model)[-1] < first[0]
    merge_adapter(model)
    add_adapter(model, LoraConfig(rank=2))
    fit_losses(model)
    assert all_equal(values(source.weights), kept)


def test_a_model_compiled_and_trained_before_goes_on_with_the_adapter():
    model = compile_for_tokens(small_model(), keras.optimizers.AdamW(0.02, weight_decay=0.1))
    fit_losses(model, epochs=1)
    base = list(model.weights)
    before = values(base)
    add_adapter(model, LoraConfig(rank=2))
    losses = fit_losses(model, epochs=6)
    assert losses[-1] < losses[0]
    assert all_equal(values(base), before)
    assert isinstance(model.optimizer, keras.optimizers.AdamW)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)


class _Rising(keras.optimizers.schedules.LearningRateSchedule):
    """Without `get_config`, as tutorials have it."""

    def __call__(self, step):
        return 0.01 * keras.ops.cast(step + 1, "float32")


def _decaying(rate):
    optimizer = keras.optimizers.AdamW(rate, weight_decay=2.0)
    optimizer.exclude_from_weight_decay(var_names=["kernel_a"])
    return optimizer


def _of_optax():
    import optax

    return kerora.optimizers.Optax(optax.adam(0.01), learning_rate=lambda step: 0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _decaying(_Rising()),
        lambda: _decaying(lambda: 0.01),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
        lambda: keras.optimizers.Adam(0.01, use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(0.01)),
        pytest.param(_of_optax, marks=once),
    ],
)
def test_an_optimizer_that_trained_another_adapter_is_like_a_new_one(make):
    def learn(model):
        keras.utils.set_random_seed(7)
        add_adapter(model, LoraConfig(rank=2))
        fit_losses(model, epochs=3)
        return values(factor_variables(model))

    expected = learn(compile_for_tokens(small_model(), make()))
    optimizer = make()
    model = compile_for_tokens(small_model(), optimizer)
    add_adapter(model, LoraConfig(rank=3, targets="gate"), "other")
    fit_losses(model, epochs=3)
    remove_adapter(model, "other")
    learned = learn(model)
    assert model.optimizer is optimizer
    assert len(optimizer.variables) == len({id(v) for v in optimizer.variables})
    for ours, theirs in zip(learned, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_moving_statistics_of_a_frozen_base_stay():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    x = np.random.default_rng(0).normal(3, 2, (64, 4)).astype("float32")
    base = list(model.weights)
    before, predicted = values(base), model.predict(x, verbose=0)
    add_adapter(model, LoraConfig(rank=2, targets="all-linear"))
    model.compile("sgd", "mse")
    assert model.evaluate(x, predicted, verbose=0) == 0.0
    model.fit(x, x, epochs=2, verbose=0)
    assert all_equal(values(base), before)


def test_an_inactive_adapter_does_not_decay():
    model = small_model()
    add_adapter(model, LoraConfig(rank=2), "first")
    add_adapter(model, LoraConfig(rank=2), "second")
    fill_factors(model, "first")
    set_active_adapters(model, ["second"])
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.5)
    inactive = [v for v in factor_variables(model) if "adapter_first" in v.path]
    before = values(inactive)
    fit_losses(compile_for_tokens(model, optimizer))
    assert len(inactive) == 4 and all_equal(values(inactive), before)


def test_a_callback_may_switch_the_adapter_off_in_the_middle_of_fit():
    model = small_model()
    add_adapter(model, LoraConfig(rank=2))
    base_logits = logits(model)
    compile_for_tokens(model)
    seen = []

    class Compare(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with disabled_adapters(model):
                seen.append(np.array_equal(logits(model), base_logits))
            seen.append(not np.array_equal(logits(model), base_logits))

    plain = small_model()
    add_adapter(plain, LoraConfig(rank=2))
    for mine, theirs in zip(factor_variables(plain), factor_variables(model), strict=True):
        mine.assign(values([theirs])[0])
    losses = fit_losses(model, callbacks=[Compare()])
    assert seen == [True] * 6
    np.testing.assert_allclose(losses, fit_losses(compile_for_tokens(plain)), rtol=1e-5)

"""Several adapters in one model: active, disabled, removed, merged, and adds that fail."""

import copy

import keras
import numpy as np
import pytest
from adapted_models import (
    all_equal,
    eager_logits,
    factor_variables,
    fill_factors,
    small_model,
    values,
)

from kerora.adapters import (
    AdapterError,
    LoraConfig,
    adapted_layers,
    adapter_configs,
    add_adapter,
    count_trainable_parameters,
    disabled_adapters,
    merge_adapter,
    remove_adapter,
    set_active_adapters,
)

ALL = LoraConfig(rank=2, alpha=4, targets=["query|value|gate", "token_embedding"])


def _filled(dtype="float32", config=ALL):
    model = small_model(dtype)
    base = eager_logits(model)
    add_adapter(model, config)
    fill_factors(model, spread=0.2)
    return model, base


def test_adapters_add_up_and_each_can_be_alone():
    model, base = _filled()
    one = eager_logits(model)
    add_adapter(model, LoraConfig(rank=3, targets="output"), "second")
    assert np.array_equal(eager_logits(model), one)
    fill_factors(model, "second", seed=1)
    both = eager_logits(model)
    assert list(adapter_configs(model)) == ["default", "second"]
    assert [held.layer.name for held in adapted_layers(model, "second")] == ["output"]

    set_active_adapters(model, ["default"])
    assert np.array_equal(eager_logits(model), one)
    set_active_adapters(model, ["second"])
    only_second = eager_logits(model)
    set_active_adapters(model, [])
    assert np.array_equal(eager_logits(model), base)
    set_active_adapters(model, ["second", "default"])
    np.testing.assert_allclose(eager_logits(model), both, atol=1e-5)
    for one_of_them, other in [(base, one), (one, both), (only_second, both), (base, only_second)]:
        assert abs(one_of_them - other).max() > 1e-2
    with pytest.raises(AdapterError, match=r"'other'.*\['default', 'second'\]"):
        set_active_adapters(model, ["other"])


def test_disabling_ends_with_its_block_also_after_an_error():
    model, base = _filled()
    adapted = eager_logits(model)
    with disabled_adapters(model):
        assert np.array_equal(eager_logits(model), base)
    assert np.array_equal(eager_logits(model), adapted)
    with pytest.raises(RuntimeError), disabled_adapters(model):
        raise RuntimeError
    assert np.array_equal(eager_logits(model), adapted)
    assert len(model.trainable_variables) == len(factor_variables(model))


def test_removing_gives_the_base_back():
    plain = small_model()
    model, base = _filled()
    add_adapter(model, LoraConfig(rank=3, targets="output"), "second")
    remove_adapter(model, "second")
    remove_adapter(model)
    assert np.array_equal(eager_logits(model), base)
    assert all_equal(values(model.weights), values(plain.weights))
    assert [type(layer) for layer in model.layers] == [type(layer) for layer in plain.layers]
    assert adapter_configs(model) == {} and not model.trainable_variables
    with pytest.raises(AdapterError, match=r"'default'.*holds none"):
        remove_adapter(model)


def test_merging_equals_the_adapter_in_float32():
    model, base = _filled()
    adapted = eager_logits(model)
    scale = abs(adapted).max()
    add_adapter(model, LoraConfig(rank=3, targets="output"), "second")
    merge_adapter(model)
    assert list(adapter_configs(model)) == ["second"]
    merge_adapter(model, "second")
    assert abs(eager_logits(model) - adapted).max() < 1e-6 * max(scale, 10)
    assert abs(adapted - base).max() > 0.1


def test_merging_rounds_once_in_bfloat16():
    model, _ = _filled("bfloat16")
    hosts = [held.layer for held in adapted_layers(model)]
    exact, kernels = [], []
    for host in hosts:
        kernel = host._embeddings if isinstance(host, keras.layers.Embedding) else host._kernel
        delta = values([host.adapter_default.delta()])[0]
        kernels.append(kernel)
        exact.append(values([kernel])[0] + delta)
    merge_adapter(model)
    for kernel, value in zip(values(kernels), exact, strict=True):
        assert np.all(abs(kernel - value) <= 2**-8 * abs(value) + 1e-7)
    assert {kernel.dtype for kernel in kernels} == {"bfloat16"}


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        # The last of them in order has a constraint.
        (LoraConfig(rank=2, targets=["gate", "output"]), "new", "'output' has a kernel_constraint"),
        (LoraConfig(rank=2, targets="nothing"), "new", "no layer matches"),
        (LoraConfig(rank=2), "default", "already holds an adapter named 'default'"),
        (
            LoraConfig(rank=2, targets="output"),
            "default",
            "all targets in one call.*another `name`",
        ),
        (LoraConfig(rank=2), "a b", "letters, digits and underscores.*'a b'"),
        (LoraConfig(rank=2), "é", "letters, digits and underscores"),
    ],
)
def test_an_add_that_fails_leaves_the_model_as_it_was(config, name, words):
    model = small_model()
    if "constraint" in words:
        model.get_layer("output").kernel_constraint = keras.constraints.NonNeg()
    if name == "default":
        add_adapter(model, LoraConfig(rank=2, targets="query"))
        fill_factors(model)
    before, held = eager_logits(model), adapter_configs(model)
    trainable = [v.path for v in model.trainable_variables]
    with pytest.raises(AdapterError, match=words):
        add_adapter(model, config, name)
    assert np.array_equal(eager_logits(model), before)
    assert adapter_configs(model) == held
    assert [v.path for v in model.trainable_variables] == trainable
    if not held:
        kinds = [type(layer) for layer in model.layers]
        assert kinds == [type(layer) for layer in small_model().layers]


def test_a_second_adapter_leaves_the_first_training():
    model = small_model()
    add_adapter(model, LoraConfig(rank=2, targets="query"), "first")
    add_adapter(model, LoraConfig(rank=3, targets=["query", "output"]), "second")
    names = [v.path for v in model.trainable_variables]
    assert sum("adapter_first" in name for name in names) == 2
    assert sum("adapter_second" in name for name in names) == 4
    assert len(set(names)) == len(names)
    counts = count_trainable_parameters(model)
    assert counts.trainable == sum(counts.by_target.values())


def test_a_copy_of_an_adapted_model_is_adapted():
    dense = keras.layers.Dense(6, activation="relu")
    model = keras.Sequential([keras.Input((8,)), dense, keras.layers.Dense(6)])
    add_adapter(model, LoraConfig(rank=2, targets=dense.path))
    fill_factors(model, spread=1.0)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    twin = copy.deepcopy(model)
    assert adapter_configs(twin) == adapter_configs(model)
    assert [held.layer.name for held in adapted_layers(twin)] == [dense.name]
    np.testing.assert_allclose(twin.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    fill_factors(twin, seed=9)
    assert not np.allclose(twin.predict(x, verbose=0), model.predict(x, verbose=0))

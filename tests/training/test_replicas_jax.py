"""Replicas of a step on the CPU give what one device gives."""

import functools
import json
import os
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone has devices for a CPU's cores", allow_module_level=True)

import jax
from tiny_backbones import tiny_backbone

import kerora
from kerora.training import replicas_jax
from kerora.training.replicas_jax import ReplicatedStep

ROWS = ["A cat sat on the mat.", "A dog.", "A cow stood in the grass, and ate it.", "Birds"] * 4
# Four, two and three replicas, and rows that four devices cannot share.
SETTINGS = [
    {"reduction": "mean_with_sample_weight", "batch_size": 4, "rate": 0.02},
    {"reduction": "sum_over_batch_size", "batch_size": 2, "rate": 0.02},
    {"reduction": "sum", "batch_size": 3, "rate": 2e-5, "accumulated": 2},
    {"reduction": "mean_with_sample_weight", "batch_size": 5, "rate": 0.02},
]
TRAIN = """
import json, sys
import jax, keras, keras_hub, numpy as np
import kerora
from data.byte_tokenizer import ByteTokenizer, texts
from kerora.data import make_batches
from tiny_backbones import tiny_backbone

def train(reduction, batch_size, rate, accumulated=None):
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone("gemma", vocabulary_size=272, num_layers=1)
    model = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    model.backbone.enable_lora(2)
    model.compile(
        keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulated),
        loss=kerora.losses.TokenLoss(z_loss=1e-3, reduction=reduction),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
    )
    model.report_steps()
    batches = make_batches(
        texts(40), ByteTokenizer(), sequence_length=256, batch_size=batch_size, seed=3
    )
    history = model.fit(batches, epochs=2, verbose=0)
    return history.history, [np.asarray(value).tolist() for value in model.trainable_variables]

results = [train(**settings) for settings in json.loads(sys.argv[1])]
print(json.dumps([jax.local_device_count(), results]))
"""


@functools.cache
def trained(devices):
    """Devices, and history and trained values under each setting, from a process of its own."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(SETTINGS)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("setting", range(len(SETTINGS)))
def test_they_learn_what_one_device_learns(setting):
    (one, of_one), (four, of_four) = trained(1), trained(4)
    assert (one, four) == (1, 4)
    (history, values), (of_replicas, replicated) = of_one[setting], of_four[setting]
    for name, expected in history.items():
        np.testing.assert_allclose(of_replicas[name], expected, rtol=2e-5, err_msg=name)
    assert history["loss"][1] < history["loss"][0]
    for value, expected in zip(replicated, values, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-6)


several = pytest.mark.skipif(jax.local_device_count() < 2, reason="this machine has one core")


@pytest.fixture
def model():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2, dropout=0.5)
    return model


@several
def test_the_frozen_base_lies_in_memory_once(model):
    step = ReplicatedStep(model, jax.local_devices()[:2])
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:2]), ("replicas",))
    base = model.backbone.token_embedding.embeddings.value
    places = {
        shard.data.unsafe_buffer_pointer()
        for shard in step._replicate(mesh, base).addressable_shards
    }
    assert places == {base.unsafe_buffer_pointer()}


@several
def test_a_frozen_base_is_not_copied_and_nothing_stays_on_several_devices(model):
    base = model.backbone.token_embedding.embeddings
    place = base.value.unsafe_buffer_pointer()
    model.fit(ROWS, epochs=2, sequence_length=16, batch_size=2, verbose=0)
    assert base.value.unsafe_buffer_pointer() == place
    for variable in [*model.variables, *model.optimizer.variables]:
        assert len(variable.value.devices()) == 1


@several
def test_a_batch_that_cannot_be_shared_is_trained_whole_between_others(monkeypatch):
    ids = np.random.default_rng(0).integers(3, 272, (5, 17))
    inputs = {"token_ids": ids[:, :-1], "padding_mask": np.ones((5, 16), "int32")}

    def train():
        keras.utils.set_random_seed(0)
        backbone = tiny_backbone("gemma", vocabulary_size=272, num_layers=1)
        model = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
        model.backbone.enable_lora(2)
        model.compile(keras.optimizers.SGD(0.02))
        base = np.array(backbone.token_embedding.embeddings)
        # Four rows and one row, twice, so that either kind of step follows the other.
        options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
        losses = model.fit(inputs, ids[:, 1:], **options).history["loss"]
        np.testing.assert_array_equal(backbone.token_embedding.embeddings, base)
        return losses, [np.array(value) for value in model.trainable_variables]

    losses, values = train()
    monkeypatch.setattr(replicas_jax, "devices_wait", lambda: False)
    expected_losses, expected = train()
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    for value, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=2e-6)


@several
def test_an_evaluation_after_shared_steps_is_compiled_once(model, caplog):
    model.fit(ROWS, sequence_length=16, batch_size=2, packing=False, verbose=0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        model.evaluate(ROWS, sequence_length=16, batch_size=2, packing=False, verbose=0)
    compiled = [r for r in caplog.messages if "XLA compilation of jit(test_step)" in r]
    assert len(compiled) == 1


@several
def test_each_replica_draws_numbers_of_its_own(model):
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:2]), ("replicas",))
    seeds = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    assert seeds
    rest = [variable.value for variable in model.non_trainable_variables]

    def replica(*rest):
        apart = replicas_jax._seeds_apart(model, rest)
        return [
            value[None]
            for value, variable in zip(apart, model.non_trainable_variables, strict=True)
            if variable.name == "seed_generator_state"
        ]

    spec = jax.sharding.PartitionSpec
    drawn = jax.shard_map(
        replica, mesh=mesh, in_specs=spec(), out_specs=spec("replicas"), check_vma=False
    )(*rest)
    for values, seed in zip(drawn, seeds, strict=True):
        first, second = np.asarray(values)
        np.testing.assert_array_equal(first, np.asarray(seed.value))
        assert first[0] != second[0] and first[1] == second[1]


@several
def test_seeds_go_on_as_on_one_device(model):
    seeds = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    before = [np.asarray(seed.value) for seed in seeds]
    model.fit(ROWS, sequence_length=16, batch_size=2, verbose=0)
    for seed, old in zip(seeds, before, strict=True):
        assert np.asarray(seed.value)[0] == old[0]
        assert np.asarray(seed.value)[1] > old[1]

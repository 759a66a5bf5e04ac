"""A small run: a tiny Gemma with an adapter, and packed rows of text."""

import json

import keras
import keras_hub
import numpy as np
from data.byte_tokenizer import ByteTokenizer, texts
from tiny_backbones import tiny_backbone

import kerora
from kerora.data import make_batches

STEPS = 14


def optimizer(**arguments):
    """AdamW with a cosine schedule and accumulated gradients."""
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-2, STEPS, warmup_target=2e-2, warmup_steps=3
    )
    settings = {"learning_rate": schedule, "weight_decay": 0.01, "global_clipnorm": 1.0}
    return keras.optimizers.AdamW(**{**settings, "gradient_accumulation_steps": 2, **arguments})


def model(dtype="float32", rank=4, compiled_with=None, **changes):
    """An adapted model, the same at each call; dropout is on."""
    keras.utils.set_random_seed(0)
    shape = {"vocabulary_size": 272, "num_layers": 1, **changes}
    backbone = tiny_backbone("gemma", dtype=dtype, **shape)
    task = kerora.adapt(keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None))
    task.backbone.enable_lora(rank, dropout=0.3)
    task.compile(optimizer=compiled_with or optimizer())
    return task


def small_model(compiled_with=None):
    """A model of Keras' own layers on the same batches, which compiles at once; dropout is on."""
    keras.utils.set_random_seed(0)
    inputs = {
        name: keras.Input((128,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    hidden = keras.layers.Embedding(272, 8)(inputs["token_ids"])
    net = keras.Model(inputs, keras.layers.Dense(272)(keras.layers.Dropout(0.3)(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=compiled_with or optimizer(), loss=loss)
    return net


def batches(seed=0):
    """Packed batches; an epoch has fewer than `STEPS`."""
    return make_batches(texts(30, seed), ByteTokenizer(), sequence_length=128, batch_size=4, seed=3)


def values(task):
    """All that a step changes, by position."""
    from kerora.training.checkpoint_state import changing_variables, read_value

    return {
        f"{kind} {place} {variable.path}": read_value(variable)
        for kind, variables in changing_variables(task).items()
        for place, variable in enumerate(variables)
    }


def assert_same_values(a, b):
    """Bit for bit; names may be numbered differently."""
    assert len(a) == len(b)
    for (name, left), right in zip(a.items(), b.values(), strict=True):
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), name
    assert np.all([np.isfinite(v).all() for v in a.values()])


def metrics(folder):
    """The lines of `metrics.jsonl` without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]

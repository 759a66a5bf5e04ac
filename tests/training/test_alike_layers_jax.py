"""Layers that are taken for alike compute the same, and others are told apart."""

import functools
import re

import keras
import numpy as np
import pytest
from keras import ops
from tiny_backbones import BACKBONES, tiny_backbone

from kerora.adapters import LoraConfig, add_adapter
from kerora.models.families import decoder_blocks
from kerora.training.alike_layers_jax import computation
from kerora.training.attention import training_attention
from kerora.training.positions import with_positions
from kerora.training.rematerialisation import rematerialise

if keras.backend.backend() != "jax":
    pytest.skip("JAX alone traces blocks once", allow_module_level=True)

import jax

# By the families' definitions: what alternates, or (Gemma 3n) is of each block's own.
KINDS = {"gemma2": 2, "gemma3": 2, "gemma3n": 4, "gemma4": 4, "gpt_oss": 2, "smollm3": 2}


@pytest.mark.parametrize("family", BACKBONES)
def test_a_shared_trace_is_every_blocks_own(family, monkeypatch):
    backbone = tiny_backbone(family)
    blocks = decoder_blocks(backbone)
    add_adapter(backbone, LoraConfig(rank=2))
    rematerialise(backbone, "elementwise")
    kinds = set()

    def kind(layers, rest):
        kinds.add(computation(layers, rest))
        return computation(layers, rest)

    monkeypatch.setattr("kerora.training.rematerialisation_jax.computation", kind)
    shared = traces(backbone)
    assert len(kinds) == KINDS.get(family, 1)
    monkeypatch.setattr(
        "kerora.training.rematerialisation_jax.computation", lambda layers, rest: id(layers[0])
    )
    own = traces(backbone)
    assert len(shared) == len(own) == len(blocks)
    for (text, constants), (own_text, own_constants) in zip(shared, own, strict=True):
        assert text == own_text
        np.testing.assert_equal(constants, own_constants)


def traces(backbone):
    """Of each block in a forward pass: its trace, and the constants that it is given."""
    ids = np.ones((2, 20), "int32")

    def forward(trainable, rest, ids):
        with training_attention(backbone, ids):
            x = with_positions(backbone, {"token_ids": ids, "padding_mask": ids})
            return backbone.stateless_call(trainable, rest, x, training=True)

    values = ([v.value for v in backbone.trainable_variables],)
    values += ([v.value for v in backbone.non_trainable_variables],)
    whole = jax.make_jaxpr(forward)(*values, ids)
    constants = dict(zip(whole.jaxpr.constvars, whole.consts, strict=True))
    return [
        (
            re.sub("0x[0-9a-f]+", "", str(equation.params["jaxpr"])),
            [np.asarray(constants[v]) for v in equation.invars if v in constants],
        )
        for equation in whole.jaxpr.eqns
        if "remat" in equation.primitive.name
    ]


def blocks(change=lambda backbone: None):
    backbone = tiny_backbone("llama")
    add_adapter(backbone, LoraConfig(rank=2))
    change(backbone)
    return decoder_blocks(backbone)


def alike(change=lambda backbone: None, *arguments):
    first, second = blocks(change)
    arguments = arguments or ((), ())
    return computation([first], arguments[0]) == computation([second], arguments[1])


def test_blocks_of_one_backbone_are_alike():
    assert alike()
    assert alike(lambda backbone: add_adapter(backbone, LoraConfig(rank=3), "other"))


def set_deep(path, value):
    def change(backbone):
        *parents, last = path.split(".")
        setattr(functools.reduce(getattr, parents, decoder_blocks(backbone)[1]), last, value)

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_self_attention_layernorm.epsilon", 0.5),
        ("_self_attention_layer.rotary_embedding_layer.max_wavelength", 20_000),
        ("_self_attention_layer._query_dense.active_adapters", ()),
        ("_self_attention_layer._query_dense.trainable", False),
        ("_feedforward_gate_dense.activation", keras.activations.relu),
        ("_feedforward_gate_dense.dtype_policy", keras.DTypePolicy("mixed_bfloat16")),
        ("_feedforward_gate_dense.extra", object()),
    ],
)
def test_what_tells_blocks_apart(path, value):
    assert not alike(set_deep(path, value))


def scaled(factor):
    return lambda x: x * factor


def test_functions_are_told_apart_by_what_they_hold():
    def change(factor):
        def changed(backbone):
            for block, own in zip(decoder_blocks(backbone), (1.0, factor), strict=True):
                block._feedforward_gate_dense.activation = scaled(own)

        return changed

    assert alike(change(1.0))
    assert not alike(change(2.0))


def test_a_function_that_refers_to_nothing_yet_is_like_itself_alone():
    def unbound():
        return lambda: later
        later = 1

    first, second = unbound(), unbound()
    assert computation([], first) == computation([], first)
    assert computation([], first) != computation([], second)


def test_arguments_count_by_value_and_tensors_by_identity():
    tensor, other = ops.ones(3), ops.ones(3)
    first, second = blocks()
    same = computation([first], ((tensor, None), {"training": True}))
    assert same == computation([second], ((tensor, None), {"training": True}))
    assert same != computation([second], ((other, None), {"training": True}))
    assert same != computation([second], ((tensor, None), {"training": 1}))
    assert same != computation([second], ((None, tensor), {"training": True}))


def test_variables_count_by_their_place():
    shared, own = (keras.layers.Dense(4) for _ in range(2))
    layers = [keras.Sequential([a, b]) for a, b in ((shared, shared), (shared, own))]
    for layer in layers:
        layer.build((1, 4))
    assert computation(layers[:1], ()) != computation(layers[1:], ())

"""Which families may share a row between examples, and what a refused one is told."""

import keras_hub
import pytest
from tiny_backbones import BACKBONES, tiny_backbone

from kerora.models.families import packing_support


@pytest.mark.parametrize("family", [family for family in BACKBONES if family != "phi3_su"])
def test_every_family_but_falcon_is_packed(family):
    supported, reason = packing_support(tiny_backbone(family))
    assert supported == (family != "falcon")
    assert reason


def test_phi3_long_context_is_packed_up_to_its_pretraining_length():
    backbone = tiny_backbone("phi3_su")
    assert packing_support(backbone, 32)[0]
    supported, reason = packing_support(backbone, 33)
    assert not supported
    assert "32" in reason and "33" in reason


def test_an_embedding_model_is_refused():
    backbone = tiny_backbone("gemma3", use_bidirectional_attention=True)
    supported, reason = packing_support(backbone)
    assert not supported
    assert "both directions" in reason


def test_an_unknown_family_is_refused_by_name():
    supported, reason = packing_support(
        keras_hub.models.BertBackbone(
            vocabulary_size=10, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4
        )
    )
    assert not supported
    assert "BertBackbone" in reason

"""Which models' logits need not be held."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from tiny_backbones import VOCABULARY, tiny_backbone

from kerora.training.losses import TokenLoss
from kerora.training.objective import find_head, next_token_loss


class LanguageModel(keras.Model):
    def __init__(self, backbone, project):
        outputs = project(backbone(backbone.input))
        super().__init__(inputs=backbone.input, outputs=outputs)
        self.backbone = backbone


def causal_lm(family):
    backbone = tiny_backbone(family)
    name = type(backbone).__name__.replace("Backbone", "CausalLM")
    return getattr(keras_hub.models, name)(backbone=backbone, preprocessor=None)


@pytest.mark.parametrize("family", ["gemma3", "mistral", "qwen2", "gpt_oss", "smollm3", "gpt2"])
def test_families_have_a_head(family):
    model = causal_lm(family)
    assert find_head(model).layer is model.backbone.token_embedding


@pytest.mark.parametrize("family", ["gemma2", "llama", "llama3"])
def test_loss_of_a_model_is_the_loss_of_its_logits(family):
    model = causal_lm(family)
    head = find_head(model)
    assert head is not None and head.vocabulary_size == VOCABULARY
    rng = np.random.default_rng(0)
    x = {
        "token_ids": ops.convert_to_tensor(rng.integers(0, VOCABULARY, (2, 9)), "int32"),
        "padding_mask": ops.ones((2, 9), "int32"),
    }
    labels = ops.convert_to_tensor(rng.integers(0, VOCABULARY, (2, 9)), "int32")
    sums = next_token_loss(model.backbone(x), labels, ops.ones((2, 9)), head, gradient=False)
    expected = TokenLoss(reduction="sum")(labels, model(x))
    np.testing.assert_allclose(
        ops.convert_to_numpy(sums.loss_sum), ops.convert_to_numpy(expected), rtol=1e-5
    )


@pytest.mark.parametrize(
    "project",
    [
        lambda backbone: lambda hidden: backbone.token_embedding(hidden, reverse=True) / 2.0,
        lambda backbone: lambda hidden: backbone.token_embedding(hidden[:, 1:], reverse=True),
        lambda backbone: keras.layers.Dense(VOCABULARY),
    ],
    ids=["scaled logits", "slice of hidden states", "dense head"],
)
def test_another_way_to_the_logits_is_not_taken_for_a_head(project):
    backbone = tiny_backbone("llama")
    assert find_head(LanguageModel(backbone, project(backbone))) is None


def test_keras_own_lora_is_not_taken_for_a_head():
    model = causal_lm("llama3")
    model.backbone.token_embedding.enable_lora(2)
    assert find_head(model) is None

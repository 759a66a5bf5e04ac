"""What KerasHub drops of a Hugging Face configuration is mended, or refused."""

import json

import numpy as np
import pytest
from backends import families, once

from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.models.errors import ModelSourceError
from kerora.models.loading import load_backbone, load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"head_dim": 16}, "head_dim"),
        ("llama", {"hidden_act": "relu"}, "hidden_act"),
        ("gemma", {"hidden_act": "silu"}, "hidden_act"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma4", {"hidden_activation": "silu"}, "hidden_activation"),
        ("qwen3_5", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
        ("gemma3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "llama3"}}}, "rope_t"),
        ("gemma3", {"rope_parameters": {"full_attention": {"factor": 4.0}}}, "factor"),
        ("llama", {"model_type": "mamba9"}, "mamba9"),
        ("smollm3", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("mixtral", {"head_dim": 4}, "head_dim"),
        ("gpt_oss", {"swiglu_limit": 3.0}, "swiglu_limit"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type"),
        ("gemma3n", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gemma3n", {"attention_bias": True}, "attention_bias"),
        ("gemma3n", {"hidden_activation": "quick_gelu"}, "hidden_activation"),
        ("gemma3n", {"layer_types": ["chunked_attention"] * 6}, "layer_types"),
        ("gemma3n", {"num_kv_shared_layers": 5}, "num_kv_shared_layers"),
        ("gemma3n", {"activation_sparsity_pattern": [1.0] * 6}, "activation_sparsity_pattern"),
        ("gemma3n", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
        ("gemma4", {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
        (
            "gemma4",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "rope_type",
        ),
        ("gemma4", {"rope_parameters": {"full_attention": {"factor": 4.0}}}, "factor"),
        ("gemma4", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type"),
        ("qwen3_5", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
    ],
)
def test_what_keras_layers_cannot_express_is_refused(name, fields, message, tmp_path):
    tiny_transformers(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ModelSourceError, match=message):
        load_task(tmp_path, preprocessor=None)


@pytest.mark.parametrize(
    "name",
    families(["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "gemma", "gemma2"]),
)
def test_linear_scaling_of_rotary_positions(name, tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    window = {"sliding_window": 128} if name in ("mistral", "mixtral", "gemma2") else {}
    reference = tiny_transformers(name, tmp_path, rope_parameters=rope, **window)
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@once
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaling_under_the_names_of_older_files(kind, tmp_path):
    own = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    own |= {"original_max_position_embeddings": 16}
    scaling = {"factor": 4.0, **(own if kind == "llama3" else {})}
    rope = {"rope_type": kind, "rope_theta": 500.0, **scaling}
    reference = tiny_transformers("llama", tmp_path, rope_parameters=rope)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    name = "type" if kind == "linear" else "rope_type"
    config |= {"rope_theta": 500.0, "rope_scaling": {name: kind, **scaling}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "field"),
    [("bart", "activation_function"), ("distilbert", "activation"), ("roberta", "hidden_act")],
)
def test_a_backbone_of_another_activation_is_refused(name, field, tmp_path):
    tiny_transformers(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: "relu"}))
    with pytest.raises(ModelSourceError, match=f"`{field}`. Expected: 'gelu'. Received: 'relu'"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("scale_embedding", True), ("decoder_attention_heads", 2)]
)
def test_what_bart_layers_cannot_express_is_refused(field, value, tmp_path):
    tiny_transformers("bart", tmp_path, **{field: value})
    with pytest.raises(ModelSourceError, match=f"`{field}`"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("encoder", "attn_logit_softcapping", 7.0),
        ("encoder", "rms_norm_eps", 1e-5),
        ("encoder", "rope_parameters", {"rope_type": "default", "rope_theta": 7.0}),
        ("decoder", "rope_parameters", {"rope_type": "linear", "rope_theta": 500.0}),
        (None, "tie_word_embeddings", False),
    ],
)
def test_what_t5gemma_layers_cannot_express_is_refused(part, field, value, tmp_path):
    tiny_transformers("t5gemma", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if part is None else config[part])[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = "rope_t" if field == "rope_parameters" else field
    with pytest.raises(ModelSourceError, match=rf"`{'' if part is None else part + '.'}{named}"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value", "named"),
    [
        ("text", "rms_norm_eps", 1e-5, "encoder.text_config.rms_norm_eps"),
        ("text", "query_pre_attn_scalar", 8, "encoder.text_config.query_pre_attn_scalar"),
        ("text", "attention_bias", True, "encoder.text_config.attention_bias"),
        ("text", "layer_types", ["full_attention"], "encoder.text_config.layer_types"),
        ("decoder", "layer_types", ["chunked_attention"] * 2, "decoder.layer_types"),
        ("decoder", "hidden_activation", "relu", "decoder.hidden_activation"),
        ("decoder", "attn_logit_softcapping", 50.0, "decoder.attn_logit_softcapping"),
        ("decoder", "is_causal", False, "decoder.is_causal"),
        ("decoder", "sliding_window", 0, "decoder.sliding_window"),
        ("decoder", "rope_parameters", {"rope_theta": 7.0}, "decoder.rope_parameters.rope_theta"),
        ("decoder", "rope_scaling", {"rope_type": "yarn"}, "decoder.full_attention.rope_type"),
        ("text", "rope_scaling", {"type": "llama3"}, "encoder.text_config.full_attention.type"),
        (
            *("text", "rope_parameters", {"sliding_attention": {"partial_rotary_factor": 0.5}}),
            "encoder.text_config.sliding_attention.partial_rotary_factor",
        ),
        ("whole", "tie_word_embeddings", False, "tie_word_embeddings"),
    ],
)
def test_what_t5gemma2_layers_cannot_express_is_refused(part, field, value, named, tmp_path):
    tiny_transformers("t5gemma2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    parts = {"text": config["encoder"]["text_config"], "decoder": config["decoder"]}
    parts.get(part, config)[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelSourceError, match=f"`{named}"):
        load_backbone(tmp_path)

"""The language model of a model that sees, which is what is loaded of it."""

import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest
from safetensors import safe_open

import kerora
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import tiny_transformers
from kerora.models.errors import ModelSourceError
from kerora.models.families import decoder_blocks, packing_support
from kerora.models.loading import BUNDLED, load_backbone, load_task

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

SEEING = ["gemma3_vision", "gemma3n_vision", "gemma4_vision", "qwen3_5_vision"]
# What `transformers` takes where a Gemma 3's folder does not say.
LEFT_OUT = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
}


def change_config(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("family", SEEING)
def test_it_takes_tokens_alone_and_holds_no_vision_tower(family, tmp_path):
    tiny_transformers(family, tmp_path)
    backbone = load_task(tmp_path, preprocessor=None).backbone
    names = {tensor.name for tensor in backbone.inputs}
    assert names <= {"token_ids", "padding_mask", "position_ids"}
    assert backbone.vision_encoder is None
    text = {"gemma3": 7, "gemma3n": 6, "gemma4": 6, "qwen3_5": 2}[family.removesuffix("_vision")]
    assert len(decoder_blocks(backbone)) == text


def test_a_t5gemma2_takes_tokens_alone_and_holds_no_vision_tower(tmp_path):
    tiny_transformers("t5gemma2", tmp_path)
    backbone = load_backbone(tmp_path)
    sides = ("encoder", "decoder")
    inputs = {f"{side}_{kind}" for side in sides for kind in ("token_ids", "padding_mask")}
    assert set(backbone.input) == inputs
    assert backbone.vision_encoder is None
    layers = (backbone.encoder_layers, backbone.decoder_layers)
    assert [len(part) for part in layers] == [3, 2]


def test_the_end_of_an_image_leaves_a_head_as_it_is(tmp_path):
    # A head that is tied to the table has the table's own row for that token.
    tiny_transformers("t5gemma2", tmp_path)
    backbone = load_backbone(tmp_path)
    table = backbone.decoder_token_embedding
    rows = keras.ops.convert_to_numpy(table.embeddings)
    hidden = np.eye(32, dtype="float32")[None]
    logits = keras.ops.convert_to_numpy(table(hidden, reverse=True))
    np.testing.assert_allclose(logits[0], rows.T, atol=1e-6)
    looked_up = keras.ops.convert_to_numpy(table(np.array([[27, 28]])))[0]
    np.testing.assert_array_equal(looked_up[0], rows[27])
    assert np.abs(looked_up[1] - rows[28]).max() > 0.1


def test_fields_that_a_t5gemma2_folder_leaves_out(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7, "vocab_size": 64}
    # What `transformers` takes for them; the rotary positions have older names too.
    left_out = {
        **LEFT_OUT,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    }
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
    }
    full = {**sizes, **left_out, "rope_parameters": rope, "pad_token_id": 0}
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    tower |= {"intermediate_size": 24, "num_attention_heads": 2}
    encoder = {"text_config": full, "vision_config": tower, "mm_tokens_per_image": 1}
    tiny_transformers("t5gemma2", tmp_path, encoder=encoder, decoder=full)
    old = {"rope_scaling": {"factor": 4.0, "rope_type": "linear"}, "rope_theta": 900.0}
    short = {**sizes, **old, "rope_local_base_freq": 300.0}

    def shorten(config):
        config["encoder"] = {"text_config": short, "vision_config": tower}
        config["decoder"] = {**short, "sliding_window_pattern": 3}
        config["dropout_rate"] = 0.25
        for name in ("tie_word_embeddings", "attention_dropout", "eoi_token_index"):
            del config[name]

    change_config(tmp_path, shorten)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    decoder = reference.eval().config.decoder
    assert decoder.rope_parameters == rope
    backbone = load_backbone(tmp_path)
    assert backbone.dropout_rate == decoder.dropout_rate == 0.25
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


def test_a_t5gemma2_in_which_no_token_ends_an_image(tmp_path):
    tiny_transformers("t5gemma2", tmp_path)
    change_config(tmp_path, lambda config: config["encoder"].update(eoi_token_index=None))
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


def test_an_encoder_is_read_under_the_names_of_the_model(tmp_path):
    reference = tiny_transformers("t5gemma2", tmp_path)
    reference.save_pretrained(tmp_path, save_original_format=False)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert "model.encoder.text_model.layers.0.mlp.up_proj.weight" in file.keys()  # noqa: SIM118
    backbone = load_backbone(tmp_path)
    np.testing.assert_allclose(keras_logits(backbone), torch_logits(reference), atol=1e-4)


def test_fields_that_published_folders_leave_out(tmp_path):
    # As in google/gemma-3-4b-it, of which only the sizes that have no default are given.
    left_out = {
        **LEFT_OUT,
        "tie_word_embeddings": True,
    }
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    }
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "sliding_window": 4,
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    vision |= {"intermediate_size": 24, "num_attention_heads": 2}
    reference = tiny_transformers(
        "gemma3_vision",
        tmp_path,
        text_config={**text, **left_out, "rope_parameters": rope},
        vision_config=vision,
    )
    old = {**text, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    change_config(tmp_path, lambda config: config.update(text_config=old))
    change_config(tmp_path, lambda config: config.pop("tie_word_embeddings"))
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_both_orders_of_names_are_read(prefix, tmp_path):
    from safetensors.numpy import load_file, save_file

    reference = tiny_transformers("gemma3_vision", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {
        name.replace("language_model.model.", prefix): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


def test_a_tensor_of_the_language_model_without_a_place_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    tiny_transformers("gemma3_vision", tmp_path)
    file = tmp_path / "model.safetensors"
    extra = {"language_model.model.layers.0.mlp.extra.weight": np.zeros(3, "float32")}
    save_file(load_file(file) | extra, file, {"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"no place for 1 .*mlp\.extra"):
        load_task(tmp_path, preprocessor=None)


@pytest.mark.parametrize(
    ("model_type", "reason"), [("paligemma", "both directions"), ("blip-2", "query tokens")]
)
def test_a_model_that_is_none_without_images_is_refused_by_name(model_type, reason, tmp_path):
    tiny_transformers("gemma3_vision", tmp_path)
    change_config(tmp_path, lambda config: config.update(model_type=model_type))
    with pytest.raises(
        ModelSourceError, match=f"'{model_type}'.*{reason}.*load_backbone.*kerora.adapt"
    ):
        load_task(tmp_path, preprocessor=None)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("qwen2", "is_causal", False),
        ("gpt2", "is_causal", False),
        ("gemma4", "use_bidirectional_attention", "all"),
        ("gemma3", "use_bidirectional_attention", True),
        ("gemma", "use_bidirectional_attention", True),
    ],
)
def test_a_model_that_reads_in_both_directions_is_refused(family, field, value, tmp_path):
    causal = tiny_transformers(family, tmp_path)
    both = tiny_transformers(family, tmp_path, **{field: value})
    for model in (causal, both):
        model.set_attn_implementation("sdpa")  # the default
    # The first token sees nothing, or all that follows.
    assert np.abs(torch_logits(both) - torch_logits(causal))[0, 0].max() > 0.01
    with pytest.raises(ModelSourceError, match="reads its text in both directions"):
        load_task(tmp_path, preprocessor=None)


def test_images_that_are_read_in_both_directions_are_no_text(tmp_path):
    tiny_transformers("gemma4", tmp_path, use_bidirectional_attention="vision")
    load_task(tmp_path, preprocessor=None, load_weights=False)


@pytest.mark.parametrize("load", [load_backbone, load_task])
def test_a_model_that_drafts_for_another_is_refused_by_name(load, tmp_path):
    # `transformers` can make no tiny one either: a layer must have some layer's keys and values.
    tiny_transformers("gemma4", tmp_path)
    change_config(tmp_path, lambda config: config.update(model_type="gemma4_assistant"))
    with pytest.raises(ModelSourceError, match=r"'gemma4_assistant'.*Adapt the model that it ass"):
        load(tmp_path)


def test_prompts_of_paligemma_are_read_in_both_directions(tmp_path):
    # Why it is refused: what stands later in a prompt changes what stands before.
    import torch

    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    vision |= {"intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.PaliGemmaConfig(
        text_config={**text, "model_type": "gemma", "pad_token_id": 0},
        vision_config={**vision, "model_type": "siglip_vision_model"},
        image_token_index=61,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    prompt = torch.arange(3, 15)[None]
    other = torch.where(prompt == 14, 40, prompt)
    mask, types = torch.ones_like(prompt), torch.zeros_like(prompt)
    with torch.no_grad():
        marked = [
            model(p, attention_mask=mask, token_type_ids=types).logits[0, 0]
            for p in (prompt, other)
        ]
    assert not torch.equal(*marked)


def test_it_is_fine_tuned_on_packed_text(tmp_path):
    tokenizer = BUNDLED["tiny_gemma"] / "assets" / "tokenizer" / "vocabulary.spm"
    size = keras_hub.models.GemmaTokenizer(proto=str(tokenizer)).vocabulary_size()
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 16}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    vision |= {"intermediate_size": 24, "num_attention_heads": 2}
    tiny_transformers(
        "gemma3_vision",
        tmp_path,
        text_config={**text, "vocab_size": size},
        vision_config=vision,
    )
    shutil.copyfile(tokenizer, tmp_path / "tokenizer.model")
    model = kerora.from_preset(tmp_path)
    assert packing_support(model.backbone)[0]
    model.backbone.enable_lora(4, targets="all-linear")
    rows = [{"instruction": "What is the opposite of hot?", "response": "Cold."}] * 16
    history = model.fit(rows, epochs=3, sequence_length=64, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    model.save_adapter(tmp_path / "adapter")
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert all(name.startswith("model.language_model.") for name in targets["target_modules"])

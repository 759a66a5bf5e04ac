"""Gemma 3n's language model: what its folders leave unsaid, its head, and training on it."""

import json

import keras
import keras_hub
import numpy as np
import pytest

import kerora
from benchmarks.tiny_logits import keras_logits, torch_logits
from benchmarks.tiny_transformers import IDS, MODELS, tiny_transformers
from kerora.models.families import decoder_blocks, packing_support
from kerora.models.huggingface_gemma3n import with_gemma3n_defaults
from kerora.models.loading import BUNDLED, load_task
from kerora.training.losses import TokenLoss
from kerora.training.objective import find_head, next_token_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BACKEND = keras.backend.backend()
TEXT = MODELS["gemma3n"][1]
# Of the tokenizer that goes with it, and not in tiny_gemma's.
SPECIAL = (
    *("<start_of_turn>", "<end_of_turn>", "<mask>", "[multimodal]"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<start_of_audio>", "<end_of_audio>", "<audio_soft_token>"),
)


def change_text(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config.get("text_config", config))
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("count", [6, 35])
def test_defaults_are_those_of_transformers(count):
    config = transformers.Gemma3nTextConfig(num_hidden_layers=count).to_dict()
    found = with_gemma3n_defaults({"num_hidden_layers": count, "layer_types": None})
    assert found == {name: config[name] for name in found}


def test_fields_that_older_folders_leave_out_or_call_otherwise(tmp_path):
    defaults = {"activation_sparsity_pattern": None, "layer_types": None, "altup_num_inputs": 4}
    fields = {"intermediate_size": 48, "num_kv_shared_layers": 1}
    reference = tiny_transformers("gemma3n_vision", tmp_path, text_config=TEXT | defaults | fields)

    def as_older(text):
        for name in (*defaults, "rope_parameters", "tie_word_embeddings", "attention_bias"):
            text.pop(name)
        text |= {"intermediate_size": 48, "rope_scaling": None}
        text |= {"rope_theta": 9000.0, "rope_local_base_freq": 700.0}

    change_text(tmp_path, as_older)
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3n", "gemma3n_vision"])
def test_projections_of_layers_that_share_keys_and_values_may_be_stored(family, tmp_path):
    from safetensors.numpy import load_file, save_file

    reference = tiny_transformers(family, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    shared = [n.replace("layers.0", "layers.5") for n in tensors if "layers.0.self_attn.k_" in n]
    assert len(shared) == 2 and not set(shared) & set(tensors)
    surplus = {n: tensors[n.replace("layers.5", "layers.0")] for n in shared}
    save_file(tensors | surplus, file, {"format": "pt"})
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


def test_an_output_that_is_not_scaled(tmp_path):
    reference = tiny_transformers("gemma3n", tmp_path, altup_correct_scale=False)
    model = load_task(tmp_path, preprocessor=None)
    np.testing.assert_allclose(keras_logits(model), torch_logits(reference), atol=1e-4)


def test_it_generates_what_transformers_generates(tmp_path):
    reference = tiny_transformers("gemma3n", tmp_path)
    model = load_task(tmp_path, preprocessor=None)
    prompts = [IDS[0, 1:7], IDS[0, 8:12]]
    tokens, mask = np.zeros((2, 16), "int32"), np.zeros((2, 16), "int32")
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    inputs = {"token_ids": tokens, "padding_mask": mask}
    found = keras.ops.convert_to_numpy(model.generate(inputs, stop_token_ids=None)["token_ids"])
    for row, prompt in enumerate(prompts):
        expected = reference.generate(
            torch.tensor(prompt[None]), max_length=16, do_sample=False, eos_token_id=None
        )
        np.testing.assert_array_equal(found[row], expected[0].numpy())


def test_its_table_is_a_head(tmp_path):
    tiny_transformers("gemma3n", tmp_path)
    model = load_task(tmp_path, preprocessor=None)
    head = find_head(model)
    assert head is not None and (head.vocabulary_size, head.soft_cap) == (72, 9.0)
    x = {"token_ids": IDS.astype("int32"), "padding_mask": np.ones_like(IDS)}
    labels, weights = keras.ops.convert_to_tensor(IDS % 60, "int32"), keras.ops.ones(IDS.shape)
    sums = next_token_loss(model.backbone(x), labels, weights, head, gradient=False)
    expected = TokenLoss(reduction="sum")(labels, model(x))
    np.testing.assert_allclose(float(sums.loss_sum), float(expected), rtol=1e-5)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_its_table_can_be_quantised(mode, tmp_path):
    tiny_transformers("gemma3n", tmp_path)
    model = load_task(tmp_path, preprocessor=None)
    exact = keras_logits(model)
    model.backbone.language_model.embed_tokens.embedding.quantize(mode)
    error = np.abs(keras_logits(model) - exact).mean() / np.abs(exact).mean()
    assert 0 < error < {"int8": 0.05, "int4": 0.5}[mode]


def special_vocabulary():
    pieces = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    pieces.ParseFromString(
        (BUNDLED["tiny_gemma"] / "assets" / "tokenizer" / "vocabulary.spm").read_bytes()
    )
    for word in sorted(set(SPECIAL) - {piece.piece for piece in pieces.pieces}):
        pieces.pieces.add(piece=word, score=0.0, type=4)
    return pieces.SerializeToString(), len(pieces.pieces)


def test_it_is_fine_tuned_on_packed_text(tmp_path):
    vocabulary, size = special_vocabulary()
    text = {"vocab_size": size, "vocab_size_per_layer_input": size}
    tiny_transformers("gemma3n", tmp_path, **text)
    (tmp_path / "tokenizer.model").write_bytes(vocabulary)
    model = kerora.from_preset(tmp_path)
    assert isinstance(model, keras_hub.models.Gemma3nCausalLM)
    assert packing_support(model.backbone)[0]
    model.backbone.enable_lora(4, targets="all-linear")
    replaced = [block for block in decoder_blocks(model.backbone) if "call" in vars(block)]
    assert len(replaced) == (6 if BACKEND == "jax" else 0)
    rows = [{"instruction": "What is the opposite of hot?", "response": "Cold."}] * 16
    history = model.fit(rows, epochs=3, sequence_length=64, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model.generate("What is", max_length=12).startswith("What is")
    model.save_adapter(tmp_path / "adapter")
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "model.altup_projections.0" in targets["target_modules"]
    assert "k_proj" in targets["target_modules"]

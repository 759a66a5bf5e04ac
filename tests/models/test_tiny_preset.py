"""The bundled preset: a real KerasHub model, small enough to ship."""

import keras
import keras_hub
import numpy as np
import pytest

from kerora.models.bundled import bundled_path
from kerora.models.tiny_corpus.files import tokenizer_model, write_trained_preset
from kerora.models.tiny_corpus.prose import documents
from kerora.models.tiny_corpus.world import make_world


@pytest.fixture(scope="module")
def model():
    return keras_hub.models.CausalLM.from_preset(str(bundled_path("tiny_gemma")))


def _perplexity(model, texts):
    batch = model.preprocessor.tokenizer(texts)
    rows = [[2, *np.asarray(row).tolist()][:64] for row in batch]
    ids = np.zeros((len(rows), 64), "int32")
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    hidden = model.backbone({"token_ids": ids, "padding_mask": (ids > 0).astype("int32")})
    logits = model.backbone.token_embedding(hidden, reverse=True)
    losses = keras.ops.sparse_categorical_crossentropy(ids[:, 1:], logits[:, :-1], from_logits=True)
    return float(np.exp(keras.ops.convert_to_numpy(losses)[ids[:, 1:] > 0].mean()))


def test_it_is_a_gemma_in_float32_and_fits_in_a_wheel(model):
    assert type(model).__name__ == "GemmaCausalLM"
    assert {variable.dtype for variable in model.backbone.weights} == {"float32"}
    assert 2_000_000 < model.backbone.count_params() < 4_000_000
    folder = bundled_path("tiny_gemma")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 8e6


def test_it_has_read_the_corpus(model):
    texts = list(documents(make_world(), 16, seed=1))
    untrained = keras_hub.models.CausalLM.from_preset(
        str(bundled_path("tiny_gemma")), load_weights=False
    )
    assert _perplexity(model, texts) < 5 < 500 < _perplexity(untrained, texts)


def test_it_survives_saving(model, tmp_path):
    model.save_to_preset(str(tmp_path / "preset"))
    write_trained_preset(tmp_path / "preset", tmp_path / "half")
    for name in ("preset", "half"):
        again = keras_hub.models.CausalLM.from_preset(str(tmp_path / name))
        for old, new in zip(model.backbone.weights, again.backbone.weights, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(old), keras.ops.convert_to_numpy(new)
            )


def test_the_tokenizer_is_the_one_the_corpus_gives(model):
    assert model.preprocessor.tokenizer.proto == tokenizer_model()


@pytest.mark.parametrize(
    "text",
    [
        "Mira lives in Tolvik.",
        "Instruction:\nWhere does Mira live?\n\nResponse:\nMira lives in Tolvik.",
        "  two spaces, a tab\tand a\n\n\nline or three \n",
        "naïve 東京 🙂 x² 1234567890",
    ],
)
def test_the_tokenizer_gives_back_any_text(model, text):
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.detokenize(tokenizer(text)) == text


def test_the_special_tokens_are_gemmas(model):
    tokenizer = model.preprocessor.tokenizer
    assert [tokenizer.id_to_token(index) for index in range(6)] == [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
    ]
    turn = list(np.asarray(tokenizer("<start_of_turn>user\nHi<end_of_turn>\n")))
    assert turn[0] == 4 and turn.count(5) == 1

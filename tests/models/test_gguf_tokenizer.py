"""That the tokenizer of a GGUF file gives the ids of the tokenizer that it was made from."""

import inspect
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tokenizers
from tiny_sentencepiece import CORPUS, GEMMA, TEXTS, trained_sentencepiece
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.tiny_gguf import tiny_gguf
from kerora.models.errors import ModelSourceError
from kerora.models.gguf_config import huggingface_config
from kerora.models.gguf_file import GGUFFile
from kerora.models.gguf_tokenizer import read_vocabulary, write_tokenizer
from kerora.models.loading import load_task

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="a tokenizer does not depend on the backend"
)

QWEN35_MARKS = ("vision_start", "vision_end", "image_pad", "video_pad")


def ids_of(model, text):
    return [int(index) for index in np.asarray(model.preprocessor.tokenizer(text))]


def byte_level(pattern, special, **model_options):
    """A small trained byte-level tokenizer, and its vocabulary as a GGUF file holds it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**model_options))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    vocabulary = {
        "ggml.model": "gpt2",
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if token in special else 1 for token in tokens],
        "ggml.merges": [" ".join(merge) for merge in merges],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
    }
    return tokenizer, vocabulary


def qwen_pattern():
    from transformers.models.qwen2 import tokenization_qwen2

    return tokenization_qwen2.PRETOKENIZE_REGEX


def qwen35_pattern():
    from transformers.models.qwen3_5 import tokenization_qwen3_5

    return tokenization_qwen3_5.PRETOKENIZE_REGEX


def llama3_pattern():
    from transformers.convert_slow_tokenizer import TikTokenConverter

    return inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default


def tekken_pattern():
    # As Mistral's own `tekken.json` says it, `config.pattern`.
    return (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@pytest.mark.parametrize(
    ("name", "split", "pattern", "special"),
    [
        ("llama", "llama-bpe", llama3_pattern, ["<|begin_of_text|>", "<|end_of_text|>"]),
        ("llama", "gpt-2", lambda: None, ["<s>", "</s>"]),
        ("qwen2", "qwen2", qwen_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("mistral", "tekken", tekken_pattern, ["<s>", "</s>", "[INST]"]),
        ("qwen3", "qwen2", qwen_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("qwen2_moe", "qwen2", qwen_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("qwen3_moe", "qwen2", qwen_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("qwen3_5", "qwen35", qwen35_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("qwen3_5_moe", "qwen35", qwen35_pattern, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
        ("smollm3", "llama-bpe", llama3_pattern, ["<|begin_of_text|>", "<|end_of_text|>"]),
    ],
)
def test_byte_level_ids(name, split, pattern, special, tmp_path):
    if split == "qwen35":
        special = [*special, *(f"<|{name}|>" for name in QWEN35_MARKS)]
    if split == "llama-bpe":
        special = [*special, "<|eot_id|>", "<think>", "</think>"]
    whole_words = split in ("llama-bpe", "tekken")
    reference, vocabulary = byte_level(pattern(), special, ignore_merges=whole_words)
    if split.startswith("qwen"):
        reference.normalizer = normalizers.NFC()
    vocabulary["ggml.pre"] = split
    path = tmp_path / "model.gguf"
    tiny_gguf(name, path, vocabulary=vocabulary, vocab_size=len(vocabulary["ggml.tokens"]))
    model = load_task(path)
    for text in [*TEXTS, f"a{special[0]}b 7\n{special[1]}", "cafe\u0301", "ना"]:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert ids_of(model, text) == expected, text
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.detokenize(tokenizer(TEXTS[0])) == TEXTS[0]
    assert tokenizer.end_token_id == vocabulary["ggml.tokens"].index(
        {"qwen2": "<|endoftext|>", "qwen2_moe": "<|endoftext|>"}.get(name, special[1])
    )


def sentencepiece(marks=("<turn>",), **options):
    """A small trained SentencePiece model, and its vocabulary as a GGUF file holds it."""
    model = trained_sentencepiece(marks, **options)
    tokens = [model.id_to_piece(index) for index in range(model.get_piece_size())]

    def kind(index):
        if model.is_unknown(index):
            return 2
        if model.is_control(index):
            return 3
        if model.is_byte(index):
            return 6
        return 4 if tokens[index] in marks else 1

    vocabulary = {
        "ggml.model": "llama",
        "ggml.tokens": tokens,
        "ggml.token_type": [kind(index) for index in range(len(tokens))],
        "ggml.scores": [float(model.get_score(index)) for index in range(len(tokens))],
        "ggml.bos_token_id": model.bos_id(),
        "ggml.eos_token_id": model.eos_id(),
        "ggml.unknown_token_id": model.unk_id(),
        "ggml.add_space_prefix": options.get("add_dummy_prefix", True),
    }
    return model, vocabulary


GEMMA3N_MARKS = (
    *("<start_of_turn>", "<end_of_turn>", "<mask>", "[multimodal]"),
    *("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
    *("<audio_soft_token>", "<start_of_audio>", "<end_of_audio>"),
)


@pytest.mark.parametrize(
    ("name", "overrides", "options"),
    [
        ("llama", {}, {}),
        ("mistral", {"sliding_window": None}, {}),
        ("mixtral", {"sliding_window": None}, {}),
        (
            "gemma",
            {},
            GEMMA,
        ),
        ("gemma3n", {}, {**GEMMA, "marks": GEMMA3N_MARKS}),
    ],
)
def test_sentencepiece_ids(name, overrides, options, tmp_path):
    reference, vocabulary = sentencepiece(**options)
    if name.startswith("gemma"):
        vocabulary["ggml.padding_token_id"] = 0
    path = tmp_path / "model.gguf"
    size = len(vocabulary["ggml.tokens"])
    tiny_gguf(name, path, vocabulary=vocabulary, vocab_size=size, **overrides)
    model = load_task(path)
    for text in TEXTS:
        assert ids_of(model, text) == reference.encode(text), text
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.detokenize(tokenizer(TEXTS[1])) == TEXTS[1]
    assert tokenizer.start_token_id == reference.bos_id()
    assert tokenizer.end_token_id == reference.eos_id()


def pieces_with_merges():
    """A small trained tokenizer of Gemma 4's kind, and its vocabulary as a GGUF file holds it."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<|video|>", "<|turn>", "<turn|>"]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    # As in the real one, no merge reaches across words or lines.
    lines = pre_tokenizers.Split(tokenizers.Regex(r"\n+"), "isolated")
    words = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=[*marks, *data], show_progress=False, limit_alphabet=60
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [entry for entry in fields["added_tokens"] if entry["id"] < len(marks)]
    tokens = sorted(fields["model"]["vocab"], key=fields["model"]["vocab"].get)
    vocabulary = {
        "ggml.model": "gemma4",
        "ggml.tokens": tokens,
        "ggml.token_type": [3] * len(marks) + [6] * 256 + [1] * (len(tokens) - len(marks) - 256),
        "ggml.scores": [-1000.0] * len(tokens),
        "ggml.merges": [" ".join(merge) for merge in fields["model"]["merges"]],
        "ggml.bos_token_id": 2,
        "ggml.eos_token_id": 1,
        "ggml.unknown_token_id": 3,
        "ggml.padding_token_id": 0,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(fields)), vocabulary


def test_pieces_with_merges(tmp_path):
    reference, vocabulary = pieces_with_merges()
    path = tmp_path / "model.gguf"
    tiny_gguf("gemma4", path, vocabulary=vocabulary, vocab_size=len(vocabulary["ggml.tokens"]))
    model = load_task(path)
    for text in [*TEXTS, "<|turn>user\nname a cat<turn|>\n"]:
        assert ids_of(model, text) == reference.encode(text).ids, text
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.detokenize(tokenizer(TEXTS[1])) == TEXTS[1]
    assert (tokenizer.start_token_id, tokenizer.end_token_id) == (2, 1)


@pytest.mark.parametrize(("name", "message"), [("gemma", "SentencePiece"), ("llama", "SentencePi")])
def test_gemma_4s_vocabulary_is_no_other_models(name, message, tmp_path):
    _, vocabulary = pieces_with_merges()
    path = tmp_path / "model.gguf"
    tiny_gguf(name, path, vocabulary=vocabulary, vocab_size=len(vocabulary["ggml.tokens"]))
    with pytest.raises(ModelSourceError, match=f"takes a {message}.* this one is Gemma 4"):
        load_task(path)


def test_an_unknown_split_is_refused(tmp_path):
    _, vocabulary = byte_level(None, ["<s>", "</s>"])
    path = tmp_path / "model.gguf"
    vocabulary["ggml.pre"] = "some-new-model"
    tiny_gguf("llama", path, vocabulary=vocabulary, vocab_size=len(vocabulary["ggml.tokens"]))
    with pytest.raises(ModelSourceError, match=r"'some-new-model'.*known are llama-bpe"):
        load_task(path)
    assert load_task(path, preprocessor=None).preprocessor is None


def test_mixtral_has_sentencepiece_alone(tmp_path):
    _, vocabulary = byte_level(None, ["<s>", "</s>"])
    path = tmp_path / "model.gguf"
    size = len(vocabulary["ggml.tokens"])
    fields = {"vocabulary": {**vocabulary, "ggml.pre": "gpt-2"}, "vocab_size": size}
    tiny_gguf("mixtral", path, **fields, sliding_window=None)
    with pytest.raises(ModelSourceError, match=r"'mixtral' takes a SentencePiece vocabulary"):
        load_task(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.tokens": ["a", "a", "b"]}, "2 different ones"),
        ({"ggml.token_type": [1]}, "1 entries for"),
        ({"ggml.eos_token_id": 10_000}, "no token's number"),
        ({"ggml.merges": ["x yz nothing"]}, "merges do not fit"),
        ({"ggml.model": "bert"}, "'bert'"),
        ({"ggml.model": ["gpt2"]}, r"\['gpt2'\]; read are"),
        ({"ggml.model": [1, 2]}, r"\[1, 2\].*; read are"),
        ({"ggml.pre": ["gpt-2"]}, r"\['gpt-2'\] does, which is not known"),
        ({"ggml.tokens": ["a", "b" * 100_000]}, "more than 1024 characters"),
        ({"ggml.bos_token_id": None}, "no start token"),
    ],
)
def test_vocabularies_that_contradict_themselves(changes, message, tmp_path):
    _, vocabulary = byte_level(None, ["<s>", "</s>"])
    path = tmp_path / "model.gguf"
    size = len(vocabulary["ggml.tokens"])
    tiny_gguf(
        "llama", path, vocabulary={**vocabulary, "ggml.pre": "gpt-2", **changes}, vocab_size=size
    )
    with pytest.raises(ModelSourceError, match=message):
        load_task(path)


def test_pieces_that_sentencepiece_refuses(tmp_path):
    _, vocabulary = sentencepiece()
    path = tmp_path / "model.gguf"
    vocabulary["ggml.tokens"][-1] = ""
    size = len(vocabulary["ggml.tokens"])
    tiny_gguf("mistral", path, vocabulary=vocabulary, vocab_size=size, sliding_window=None)
    with pytest.raises(ModelSourceError, match="not SentencePiece's"):
        load_task(path)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_real_vocabularies(name, tmp_path):
    models_folder = os.environ.get("KERORA_REAL_MODELS")
    if models_folder is None:
        pytest.skip("KERORA_REAL_MODELS is not set")
    path = Path(models_folder) / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"KERORA_REAL_MODELS holds no {path.name}")
    file = GGUFFile(path)
    config = huggingface_config(file)
    write_tokenizer(read_vocabulary(file, config["vocab_size"]), config["model_type"], tmp_path)
    encode, expected = (encoder(folder) for folder in (tmp_path, path.with_suffix("")))
    marks = "<|im_start|>user\n7 cats<|im_end|>\n<start_of_turn>model\nHi<end_of_turn>"
    for text in [*TEXTS, marks]:
        assert encode(text) == expected(text), text


def encoder(folder):
    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode

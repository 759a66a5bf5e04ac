"""Rows found on disk are those of the same settings, tokens and code, or they are not found."""

import datetime

import keras
import pytest

from kerora.data.encoder_fingerprint import encoder_fingerprint
from kerora.data.encoding import Encoder
from kerora.models.bundled import bundled_path

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the cache is the same on every backend"
)


@pytest.fixture(scope="module")
def tokenizer():
    from keras_hub.models import GemmaTokenizer

    return GemmaTokenizer.from_preset(str(bundled_path("tiny_gemma")))


def changed_tables(tokenizer):
    """A tokenizer whose vocabulary has one piece spelt otherwise."""
    from keras_hub.models import GemmaTokenizer
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer._sentence_piece_spm.serialized_model_proto())
    model.pieces[-1].piece += "x"
    return GemmaTokenizer(proto=model.SerializeToString())


def test_whatever_changes_the_tokens_changes_the_fingerprint(tokenizer):
    template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    encoders = [
        Encoder(tokenizer, 64),
        Encoder(tokenizer, 65),
        Encoder(tokenizer, 64, train_on="all"),
        Encoder(tokenizer, 64, template="chat"),
        Encoder(tokenizer, 64, template="{a} {b}"),
        Encoder(tokenizer, 64, chat_template=template),
        Encoder(tokenizer, 64, chat_template=template + " "),
        Encoder(tokenizer, 64, add_start_token=False),
        Encoder(tokenizer, 64, add_end_token=False),
        Encoder(tokenizer, 64, on_long_row="skip"),
        Encoder(changed_tables(tokenizer), 64),
    ]
    names = [encoder_fingerprint(encoder) for encoder in encoders]
    assert None not in names
    assert len(set(names)) == len(encoders)
    assert encoder_fingerprint(Encoder(changed_tables(tokenizer), 64)) == names[-1]


def test_a_template_that_writes_the_date_is_kept_for_a_day(tokenizer, monkeypatch):
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date.today() + datetime.timedelta(1)

    dated, plain = (
        Encoder(tokenizer, 64, chat_template=text + "{{ messages[0]['content'] }}")
        for text in ("{{ strftime_now('%d %b %Y') }}", "")
    )
    before = encoder_fingerprint(dated), encoder_fingerprint(plain)
    monkeypatch.setattr("kerora.data.encoder_fingerprint.date", Tomorrow)
    assert encoder_fingerprint(dated) != before[0]
    assert encoder_fingerprint(plain) == before[1]


def test_other_code_has_another_fingerprint(tokenizer, tmp_path, monkeypatch):
    from kerora.data import encoder_fingerprint as module

    before = encoder_fingerprint(Encoder(tokenizer, 64))
    (tmp_path / "encoding.py").write_text("# another\n")
    module._code.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module.importlib.resources, "files", lambda name: tmp_path)
        assert encoder_fingerprint(Encoder(tokenizer, 64)) != before
    module._code.cache_clear()
    assert encoder_fingerprint(Encoder(tokenizer, 64)) == before

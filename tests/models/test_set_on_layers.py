"""Whoever saves a preset is told what KerasHub's configuration of the model has no place for."""

import warnings

import numpy as np
import pytest
from backends import once_uncompiled

from benchmarks.tiny_encoders import ENCODERS, IMAGE_ENCODERS, IMAGE_TEXT_ENCODERS
from benchmarks.tiny_logits import keras_logits
from benchmarks.tiny_seeing import SEEING
from benchmarks.tiny_transformers import SEQUENCE_TO_SEQUENCE, tiny_transformers
from kerora.models.loading import load_backbone

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = once_uncompiled

BACKBONES = [*ENCODERS, *SEQUENCE_TO_SEQUENCE, *IMAGE_ENCODERS, *IMAGE_TEXT_ENCODERS, *SEEING]
WHOLE = ("vit", "distilbert")  # KerasHub's presets have all of these


@pytest.mark.parametrize("name", BACKBONES)
def test_no_preset_gives_other_answers_without_a_word(name, tmp_path):
    tiny_transformers(name, tmp_path / "hf")
    backbone = load_backbone(tmp_path / "hf")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone.save_to_preset(str(tmp_path / "keras"))
    told = [str(one.message) for one in caught if "no place for" in str(one.message)]
    again = load_backbone(tmp_path / "keras")
    difference = np.abs(keras_logits(again) - keras_logits(backbone)).max()
    assert told or difference < 1e-6
    assert not (told and name in WHOLE)

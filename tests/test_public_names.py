"""What `import kerora` offers."""

import os
import subprocess
import sys
from types import ModuleType

import pytest

import kerora


def test_every_public_name_is_there():
    for name in kerora.__all__:
        value = getattr(kerora, name)
        assert callable(value) or isinstance(value, ModuleType), name
    assert set(kerora.__all__) <= set(dir(kerora))
    assert "Optax" in dir(kerora.optimizers)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="'kerora' has no attribute 'finetune'"):
        _ = kerora.finetune


def test_keras_knows_keroras_classes_once_kerora_is_imported():
    code = "import sys, kerora; print('kerora.adapters.saved_model' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True"]


def test_a_backend_that_keras_has_chosen_stays():
    code = "import keras, os, kerora; print(os.environ.get('KERAS_BACKEND'))"
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "None", done.stderr[-2000:]

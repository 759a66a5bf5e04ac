"""That a checkpoint whose seal is right and whose content is not is refused as one."""

import json
import os

import keras
import pytest
import tiny_run
from hostile_json import outcomes

from kerora.run import _stored
from kerora.run_folder import RunError
from kerora.training.checkpoints import _sealed, restore_checkpoint, save_checkpoint
from kerora.training.errors import CheckpointError

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="reading a file does not depend on the backend"
)
SEEDS = range(int(os.environ.get("KERORA_FUZZ_SEEDS", "60")))


@pytest.mark.filterwarnings("ignore:The checkpoint")
@pytest.mark.parametrize("sealed", [True, False])
def test_documents(sealed, tmp_path):
    model = tiny_run.small_model()
    (tmp_path / "good").mkdir()
    (tmp_path / "work").mkdir()
    document = save_checkpoint(tmp_path / "good", model, 3) / "checkpoint.json"
    name = str(document.relative_to(tmp_path / "good"))

    def load(folder):
        file = folder / name
        try:
            content = json.loads(file.read_text())
            content.pop("checksum", None)
            if sealed:
                file.write_bytes(_sealed(content))
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass  # no object any more: it stays as it is
        restore_checkpoint(folder, model)

    work = tmp_path / "work"
    refused = outcomes(tmp_path / "good", [name], SEEDS, load, CheckpointError, work)
    assert refused > len(SEEDS) // 4


def test_what_a_run_measured(tmp_path):
    scores = {"loss": 1.0, "perplexity": 2.7, "token_accuracy": 0.5, "tokens": 10}
    measured = {"scores": scores, "exact_match": None, "asked": 0, "samples": []}
    (tmp_path / "good").mkdir()
    (tmp_path / "work").mkdir()
    before = {"steps": 4, "before": measured}
    (tmp_path / "good" / "before.json").write_text(json.dumps(before))

    def load(folder):
        _stored(folder / "before.json", "before")

    work = tmp_path / "work"
    refused = outcomes(tmp_path / "good", ["before.json"], SEEDS, load, RunError, work)
    assert len(SEEDS) // 4 < refused < len(SEEDS)

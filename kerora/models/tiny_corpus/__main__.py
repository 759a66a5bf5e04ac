"""Write the folder of the bundled model: `python -m kerora.models.tiny_corpus FOLDER [TRAINED]`.

Without TRAINED the preset's weights are random; pretraining starts from there. TRAINED is the
preset that pretraining has written.
"""

import sys
from pathlib import Path

from kerora.models.tiny_corpus.files import (
    write_instructions,
    write_trained_preset,
    write_untrained_preset,
)


def main(folder: Path, trained: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_instructions(folder)
    if trained is None:
        write_untrained_preset(folder)
    else:
        write_trained_preset(trained, folder)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*(Path(argument) for argument in sys.argv[1:]))

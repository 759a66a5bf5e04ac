"""Fast, durable low-rank fine-tuning of KerasHub language models.

Example:
```python
import kerora

model = kerora.from_preset("tiny_gemma")
model.backbone.enable_lora(8)
model.fit([{"instruction": "Say hello.", "response": "Hello."}])
model.save_adapter("my_adapter")
```
"""

import os

# Keras reads its backend once, when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

from kerora.adapters import (
    AdapterError,
    LoraConfig,
    add_adapter,
    disabled_adapters,
    merge_adapter,
    remove_adapter,
    set_active_adapters,
)
from kerora.data import DataError
from kerora.models.bundled import bundled_path
from kerora.task import adapt, from_preset
from kerora.training import losses, optimizers
from kerora.training.losses import TokenLoss
from kerora.training.rematerialisation import rematerialise

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "DataError",
    "LoraConfig",
    "TokenLoss",
    "adapt",
    "add_adapter",
    "bundled_path",
    "disabled_adapters",
    "from_preset",
    "losses",
    "merge_adapter",
    "optimizers",
    "rematerialise",
    "remove_adapter",
    "set_active_adapters",
]

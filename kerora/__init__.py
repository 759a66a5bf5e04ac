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

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from kerora.compilation_cache import keep_compiled_code
from kerora.cpu_devices import show_cores_as_devices
from kerora.cpu_memory import prepare_cpu_memory
from kerora.lazy_tensorflow import import_tensorflow_when_used

# Keras reads its backend once, when it is first imported.
if "keras" in sys.modules:
    _backend = sys.modules["keras"].config.backend()
else:
    _backend = os.environ.setdefault("KERAS_BACKEND", "jax")
if _backend == "jax":
    prepare_cpu_memory()
    show_cores_as_devices()
    keep_compiled_code()
if _backend != "tensorflow":
    import_tensorflow_when_used()

if TYPE_CHECKING:
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

_HOMES = {
    "DataError": "kerora.data",
    "TokenLoss": "kerora.training.losses",
    "adapt": "kerora.task",
    "bundled_path": "kerora.models.bundled",
    "from_preset": "kerora.task",
    "rematerialise": "kerora.training.rematerialisation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kerora' has no attribute '{name}'")
    if name in ("losses", "optimizers"):
        value: Any = importlib.import_module(f"kerora.training.{name}")
    else:
        value = getattr(importlib.import_module(_HOMES.get(name, "kerora.adapters")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Keras takes seconds to import, and the command line says what its options are, or what is wrong
# with a recipe, without it. Elsewhere it must know kerora's classes to load a `.keras` file.
if os.path.basename(sys.argv[0]) not in ("kerora", "-m"):
    importlib.import_module("kerora.task")

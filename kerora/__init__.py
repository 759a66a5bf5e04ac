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

__version__ = "0.1.0"

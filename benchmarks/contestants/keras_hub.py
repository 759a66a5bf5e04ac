"""KerasHub as its Gemma LoRA guide has it: `enable_lora`, padded rows, batch size 1."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Rows, Settings


class KerasHub:
    def __init__(self, settings: Settings) -> None:
        import keras
        import keras_hub

        keras.utils.set_random_seed(settings.seed)
        self.settings = settings
        self.model = keras_hub.models.CausalLM.from_preset(settings.model, dtype=settings.dtype)
        targets = None
        if settings.all_linear:
            layers = self.model.backbone._flatten_layers(include_self=False)
            linear = (keras.layers.Dense, keras.layers.EinsumDense)
            targets = sorted({layer.name for layer in layers if isinstance(layer, linear)})
        self.model.backbone.enable_lora(settings.rank, targets)
        self.model.preprocessor.sequence_length = settings.sequence_length
        self.model.compile(
            optimizer=keras.optimizers.AdamW(settings.learning_rate, weight_decay=0.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        )
        # Gemma 3's preprocessor refuses plain strings.
        self.takes_strings = "Gemma3" not in type(self.model).__name__

    def _data(self, rows: Rows) -> Any:
        if self.takes_strings:
            return [row["prompt"] + row["response"] for row in rows]
        return {
            "prompts": [row["prompt"] for row in rows],
            "responses": [row["response"] for row in rows],
        }

    def _tokens(self, rows: Rows) -> int:
        tokenizer = self.model.preprocessor.tokenizer
        # The preprocessor adds a start and an end token.
        return sum(len(tokenizer(row["prompt"] + row["response"])) + 2 for row in rows)

    def train(self, rows: Rows) -> int:
        self.model.fit(self._data(rows), batch_size=self.settings.batch_size or 1, verbose=0)
        return self._tokens(rows)

    def evaluate(self, rows: Rows) -> float:
        """The mean over real tokens, from KerasHub's own mean over all positions."""
        loss = self.model.evaluate(self._data(rows), batch_size=1, verbose=0, return_dict=True)
        positions = len(rows) * self.settings.sequence_length
        supervised = self._tokens(rows) - len(rows)
        return float(loss["loss"]) * positions / supervised

    def describe(self) -> dict[str, Any]:
        import keras

        return {"backend": keras.backend.backend(), "batch_size": self.settings.batch_size or 1}


make = KerasHub

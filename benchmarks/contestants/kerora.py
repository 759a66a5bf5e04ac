"""kerora: packed rows, the objective on hidden states, factored adapters."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Rows, Settings


class Kerora:
    def __init__(self, settings: Settings) -> None:
        import kerora  # isort: skip - first, as the README has it
        import keras

        keras.utils.set_random_seed(settings.seed)
        self.settings = settings
        self.model = kerora.from_preset(settings.model, dtype=settings.dtype)
        self.model.backbone.enable_lora(
            settings.rank, targets="all-linear" if settings.all_linear else None
        )
        self.model.compile(keras.optimizers.AdamW(settings.learning_rate, weight_decay=0.0))

    def _batches(self, rows: Rows, shuffle: bool) -> Any:
        from kerora.training.fit_data import DataOptions, text_batches

        options = DataOptions(
            train_on="response" if self.settings.train_on_response else "all",
            sequence_length=self.settings.sequence_length,
        )
        batch_size = self.settings.batch_size
        return text_batches(self.model, rows, options, batch_size=batch_size, shuffle=shuffle)

    def train(self, rows: Rows) -> int:
        batches = self._batches(rows, shuffle=True)
        report = batches.report()
        rate = self.settings.learning_rate * report.examples / report.steps_per_epoch
        self.model.optimizer.learning_rate = rate
        self.model.fit(batches, verbose=0)
        self.supervised_share = report.supervised_tokens / report.tokens
        return report.tokens

    def evaluate(self, rows: Rows) -> float:
        return float(
            self.model.evaluate(self._batches(rows, False), verbose=0, return_dict=True)["loss"]
        )

    def describe(self) -> dict[str, Any]:
        import keras

        from kerora.adapters import count_trainable_parameters

        parameters = count_trainable_parameters(self.model)
        embedding = self.model.backbone.token_embedding.embeddings.shape
        return {
            "backend": keras.backend.backend(),
            "batch_size": self._batches([{"prompt": "a", "response": "b"}], False).batch_size,
            "parameters": parameters.total - parameters.trainable,
            "head_parameters": embedding[0] * embedding[1],
            "trainable": parameters.trainable,
            "supervised_share": self.supervised_share,
        }


make = Kerora

"""Hugging Face PEFT on transformers: eager or compiled, dynamic padding."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.worker import Rows, Settings

BATCH_SIZES = (4, 8, 16)
Example = tuple[list[int], int]


class Peft:
    def __init__(self, settings: Settings) -> None:
        import peft
        import torch
        import transformers

        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=getattr(torch, settings.dtype), attn_implementation="sdpa"
        )
        targets: Any = "all-linear" if settings.all_linear else ["q_proj", "v_proj"]
        config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, target_modules=targets, task_type="CAUSAL_LM"
        )
        self.model: Any = peft.get_peft_model(base.to(self.device), config)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.forward = torch.compile(self.model, dynamic=True) if settings.compiled else self.model
        self.batch_size = settings.batch_size
        self._begin(BATCH_SIZES[0])

    def _begin(self, size: int) -> None:
        """A fresh optimizer for batches of this size."""
        import torch

        rate = self.settings.learning_rate * (self.batch_size or size)
        self.optimizer = torch.optim.AdamW(self.trainable, lr=rate, weight_decay=0.0)

    def _examples(self, rows: Rows) -> list[Example]:
        """Token ids of each row, and how many of them are the prompt's."""
        start = [self.tokenizer.bos_token_id]
        examples = []
        for row in rows:
            prompt = start + self.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
            answer = self.tokenizer(row["response"], add_special_tokens=False)["input_ids"]
            ids = prompt + answer + [self.tokenizer.eos_token_id]
            examples.append((ids[: self.settings.sequence_length], len(prompt)))
        return examples

    def _batches(self, examples: list[Example], size: int) -> Any:
        import torch

        # At a given size, as a data loader has it by default; at its best, rows of like length.
        by_length = self.settings.batch_size is None
        ordered = sorted(examples, key=lambda e: len(e[0])) if by_length else examples
        for first in range(0, len(ordered), size):
            group = ordered[first : first + size]
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), self.tokenizer.pad_token_id or 0)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, (tokens, prompt) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
                given = prompt if self.settings.train_on_response else 0
                labels[row, given : len(tokens)] = ids[row, given : len(tokens)]
            yield ids.to(self.device), mask.to(self.device), labels.to(self.device)

    def _train(self, examples: list[Example], size: int) -> None:
        self.model.train()
        for ids, mask, labels in self._batches(examples, size):
            loss = self.forward(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def train(self, rows: Rows) -> int:
        examples = self._examples(rows)
        if self.batch_size is None and len(rows) >= max(BATCH_SIZES):
            self.batch_size = self._best_batch_size(examples)
        self._train(examples, self.batch_size or BATCH_SIZES[0])
        return sum(len(ids) for ids, _ in examples)

    def _best_batch_size(self, examples: list[Example]) -> int:
        """The quickest; trying them out leaves the adapters as they were."""
        before = [parameter.detach().clone() for parameter in self.trainable]
        seconds = {}
        for size in BATCH_SIZES:
            began = time.perf_counter()
            self._train(examples, size)
            seconds[size] = time.perf_counter() - began
        for parameter, value in zip(self.trainable, before, strict=True):
            parameter.data.copy_(value)
        best = min(seconds, key=seconds.__getitem__)
        self._begin(best)
        return best

    def evaluate(self, rows: Rows) -> float:
        import torch

        total = count = 0.0
        self.model.eval()
        with torch.no_grad():
            for ids, mask, labels in self._batches(self._examples(rows), 4):
                supervised = int((labels[:, 1:] != -100).sum())
                loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
                total, count = total + float(loss) * supervised, count + supervised
        return total / count

    def describe(self) -> dict[str, Any]:
        return {"backend": "torch", "batch_size": self.batch_size}


make = Peft

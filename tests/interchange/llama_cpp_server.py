"""llama.cpp as the other side: its own server, in this process, asked over HTTP."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import xllamacpp


class LlamaCpp:
    """A GGUF file that llama.cpp serves, perhaps with an adapter.

    Args:
        base: The model's file.
        adapter: A file with an adapter for it.
        context: Tokens that it holds at most.
    """

    def __init__(self, base: Path, adapter: Path | None = None, context: int = 256):
        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = False
        params.verbosity = -1
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self._server = xllamacpp.Server(params)

    def _post(self, path: str, request: dict) -> dict:
        body = json.dumps(request).encode()
        address = f"{self._server.listening_address}/{path}"
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as answer:
            return json.load(answer)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after those of the prompt, one after the other."""
        request = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0,
            "samplers": ["temperature"],
            "ignore_eos": False,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return self._post("completion", request)["tokens"]

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, special ones read as such, without a start token."""
        request = {"content": text, "add_special": False, "parse_special": True}
        return self._post("tokenize", request)["tokens"]

    def apply_template(self, messages: list[dict]) -> str:
        """A conversation as the file's own template lays it out, the answer to come."""
        return self._post("apply-template", {"messages": messages})["prompt"]

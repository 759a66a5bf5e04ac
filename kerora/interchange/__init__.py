"""Adapters in the folders of Hugging Face PEFT, and as GGUF files."""

from kerora.interchange.contents import AdapterContents, inspect_adapter
from kerora.interchange.gguf_adapter import save_gguf_adapter
from kerora.interchange.huggingface_names import HuggingFaceWeight, huggingface_weights
from kerora.interchange.merge import merge_folder
from kerora.interchange.peft import load_adapter, save_adapter

__all__ = [
    "AdapterContents",
    "HuggingFaceWeight",
    "huggingface_weights",
    "inspect_adapter",
    "load_adapter",
    "merge_folder",
    "save_adapter",
    "save_gguf_adapter",
]

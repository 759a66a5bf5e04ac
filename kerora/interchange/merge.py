"""An adapter and its base as one model folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kerora.interchange.atomic_folder import real_place, remove_abandoned, replaced_folder
from kerora.interchange.contents import AdapterContents, inspect_adapter
from kerora.interchange.merge_huggingface import HuggingFaceMerge, Progress, copy_other_files
from kerora.interchange.merge_keras_lora import as_adapter_folder
from kerora.interchange.merge_preset import PresetMerge
from kerora.interchange.peft import adapter_chat_template
from kerora.json_file import read_json_object
from kerora.models.errors import ModelSourceError
from kerora.models.huggingface_folder import CHAT_TEMPLATE_FILE, check_inside
from kerora.models.loading import BUNDLED, chat_template


def merge_folder(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a model folder whose weights are a base's with an adapter's delta added.

    Tensor by tensor, a few rows at a time: neither model is ever in memory (but TensorFlow and
    PyTorch build a KerasHub preset once, with zeros, to learn how it is stored). Every sum
    `W + A·B · alpha / r` is taken in float32 and rounded once to the base's type; trained biases
    and `modules_to_save` take the place of the base's. The folder holds the same files, shards and
    index as the base, but for weights in other formats (pickles, GGUF), and the adapter's chat
    template where it has another. It appears whole or not at all.

    Args:
        base: A Hugging Face folder (config.json and safetensors) of any family, also one that
            KerasHub does not have; a KerasHub preset folder; or `"tiny_gemma"`.
        adapter: A folder that `save_adapter` or PEFT wrote; or the `.lora.h5` file of KerasHub's
            `save_lora_weights`, for a base that kerora can build (it does so once, with zeros, to
            learn which layer is which; the file names no base and holds no biases).
        output: Where to write: a folder that does not exist, or is empty.
        force: Merge into a base that the adapter was not trained on.
        progress: Called with the name of the tensor at work, the bytes done, and their total.

    Returns:
        The number of tensors that the adapter changed.

    Raises:
        AdapterError: If the adapter is damaged, holds a tensor that has no place in the base, was
            trained on another base, or cannot be merged faithfully (a head that the base ties to
            its table, adapted alone; a quantised tensor).
        ModelSourceError: If the base cannot be read, or one of its files lies outside it.
        OSError: If `output` cannot be written, or holds something.

    Example:
    ```python
    merge_folder("smollm2-135m-instruct", "runs/mine/adapter", "merged")
    transformers.AutoModelForCausalLM.from_pretrained("merged")
    ```
    """
    source = _base_folder(base)
    place = _check_output(source, Path(output).expanduser())
    adapter = Path(adapter).expanduser()
    # What KerasHub saves names no base, so there is none to compare.
    force = force or adapter.is_file()
    with as_adapter_folder(source, adapter) as folder:
        contents = inspect_adapter(folder)
        merge = _read_merge(source, contents, force)
        template = adapter_chat_template(contents)
        _check_room(place, merge.size)
        with replaced_folder(place) as new:
            copy_other_files(source, new, check_inside)
            if template is not None and template != chat_template(source):
                (new / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
            merge.write(new, progress or (lambda name, done, total: None))
    return len(merge.changes)


def _check_room(place: Path, size: int) -> None:
    place = real_place(place)  # a link may lead to another disk
    remove_abandoned(place)
    free = shutil.disk_usage(_existing_parent(place)).free
    if free < size:
        raise OSError(
            f"The merged model takes {size / 1e9:.1f} GB, and the disk of '{place}' has "
            f"{free / 1e9:.1f} GB left."
        )


def _base_folder(base: str | os.PathLike[str]) -> Path:
    folder = BUNDLED.get(os.fspath(base), Path(base).expanduser())
    if folder.suffix == ".gguf":
        raise ModelSourceError(
            f"An adapter cannot be merged into a .gguf file. Received: '{base}'. Merge into the "
            "folder that it was made from, or write the adapter as a file beside it: `kerora "
            f"export {base} --adapter ADAPTER --gguf ADAPTER.gguf`"
        )
    if not folder.is_dir():
        raise ModelSourceError(
            f"The base of a merge is a folder on this machine (fetch one with `hf download`). "
            f"Received: '{base}'"
        )
    if not (folder / "config.json").is_file():
        raise ModelSourceError(f"The folder '{base}' holds no config.json: it is no model.")
    return folder


def _check_output(base: Path, output: Path) -> Path:
    if output.resolve().is_relative_to(base.resolve()):
        raise FileExistsError(f"The merged model needs a folder outside its base. Got '{output}'.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"'{output}' exists and is not an empty folder. Name one that does not exist yet."
        )
    return output


def _read_merge(
    base: Path, contents: AdapterContents, force: bool
) -> HuggingFaceMerge | PresetMerge:
    if "registered_name" in read_json_object(base / "config.json", ModelSourceError):
        return PresetMerge(base, contents, force)
    return HuggingFaceMerge(base, contents, force)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())

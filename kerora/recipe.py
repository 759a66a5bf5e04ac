"""What a run is: a YAML file of typed keys, checked before anything is loaded.

`load_recipe` reads one, `commented_recipe` prints one with every key and its default.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from kerora.default_learning_rates import (
    ADAPTER_LEARNING_RATE,
    FULL_LEARNING_RATE,
    SHORT_RUN,
)
from kerora.models.bundled import BUNDLED_NAMES
from kerora.recipe_errors import RecipeError, as_recipe_error, nearest
from kerora.recipe_yaml import apply_override, read_yaml, recipe_text

__all__ = ["Recipe", "RecipeError", "commented_recipe", "load_recipe"]


Fraction = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class ModelRecipe(_Section):
    """The model that is trained."""

    source: str = Field(
        description="Where the model comes from: tiny_gemma (bundled), a KerasHub preset name, "
        "hf://USER/MODEL, kaggle://USER/MODEL, a local folder (KerasHub preset or Hugging Face), "
        "or a .gguf file.",
        examples=["tiny_gemma"],
    )
    weights: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="random starts from fresh weights of the same architecture.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number type of the base; adapters and optimizer state are float32 whatever "
        "it is. auto: bfloat16 on a GPU or TPU; under JAX also on a CPU that multiplies it, of a "
        "model that is stored in it; float32 elsewhere and for full fine-tuning.",
    )
    quantize: Literal["none", "int8", "int4"] = Field(
        default="none", description="Hold the frozen base in 8 or 4 bits."
    )
    chat_template: str | None = Field(
        default=None,
        description="How conversations are rendered: a .jinja file, or one of chatml, gemma, "
        "llama3, phi3, plain, qwen. null: the model's own, else the one whose marks its tokenizer "
        "knows.",
    )

    @field_validator("chat_template")
    @classmethod
    def _read_chat_template(cls, template: str | None) -> str | None:
        if template is None:
            return None
        from kerora.data.chat import ChatTemplate
        from kerora.data.chat_templates import CHAT_TEMPLATES, read_chat_template

        # The run holds what stands in the file, which may change.
        source = read_chat_template(template)
        ChatTemplate(source)
        return template if template in CHAT_TEMPLATES else source

    @field_validator("source")
    @classmethod
    def _folder_exists(cls, source: str) -> str:
        path = Path(source).expanduser()
        looks_local = source.startswith((".", "~", "/")) or "/" in source
        exists = path.is_dir() or (path.is_file() and path.suffix == ".gguf")
        if looks_local and "://" not in source and not exists:
            raise ValueError(
                f"no such folder or .gguf file: {source!r} (from {os.getcwd()})."
                f"{_near_path(source)} A model of a hub is written hf://USER/MODEL or "
                "kaggle://USER/MODEL"
            )
        return source


class AdapterRecipe(_Section):
    """The low-rank adapter that is trained; `none` trains the whole model."""

    rank: int = Field(default=8, ge=1, description="Inner size of the factors.")
    alpha: float | None = Field(
        default=None, gt=0, description="The delta is scaled by alpha / rank. null: twice the rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's inputs.")
    targets: str | list[str] | None = Field(
        default="all-linear",
        description="Layers that get one: names, regular expressions, or all-linear; null: the "
        "query and value projections alone.",
    )
    exclude: str | list[str] | None = Field(
        default=None, description="Layers to leave out, in the same forms."
    )
    bias: Literal["none", "lora_only", "all"] = Field(
        default="none", description="Which biases train: none, those of adapted layers, or all."
    )


class DataRecipe(_Section):
    """The rows that are learned, and those that are held out."""

    train: str | list[str] | dict[str, PositiveFloat] = Field(
        description="A .jsonl, .json, .csv, .txt (or with .gz or .zst after it), .parquet or "
        ".arrow path or glob, or tfds:NAME/SPLIT; several as a list, or with the weight of each "
        "in a mixture: {a.jsonl: 3, b.jsonl: 1}. Paths start from the folder where kerora is "
        "called.",
        examples=["tiny_gemma/train.jsonl"],
    )
    validation: str | list[str] | Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.05,
        description="Data of the same kinds, or the share of the training rows to hold out (one "
        "row at least); 0: none.",
    )
    template: str | None = Field(
        default=None,
        description='Layout of a row, such as "Q: {question}\\nA: {answer}" (the last place is '
        "the response), or chat: the bare prompt, and its context after a blank line, is the "
        "user's message, the response the assistant's. null: by the names of the fields.",
    )
    train_on: Literal["response", "all"] = Field(
        default="response", description="Which tokens are learned, where a row has a response."
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        default="stop", description="A row that cannot be used: stop, or skip it and count."
    )
    on_long_row: Literal["truncate", "skip", "stop"] = Field(
        default="truncate",
        description="A row longer than sequence_length: cut its end off (one whose prompt alone is "
        "too long is left out and counted, for nothing of its response would be left to learn), "
        "skip it and count, or stop.",
    )

    @field_validator("train", "validation")
    @classmethod
    def _files_exist(cls, data: Any) -> Any:
        names = [data] if isinstance(data, str) else data
        for name in names if isinstance(names, list | dict) else []:
            check_data_file(name)
        if data in ([], {}):
            raise ValueError("an empty list of files")
        return data


class OptimizerRecipe(_Section):
    """How the weights move."""

    name: Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"] = Field(
        default="adamw", description="One of Keras' optimizers."
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description=f"Its peak. null: {ADAPTER_LEARNING_RATE:g} for an adapter and "
        f"{FULL_LEARNING_RATE:g} for a whole model, more in runs of less than {SHORT_RUN} steps "
        "(twice that in 16); sgd and lion have no default.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled; biases and norm scales are left out."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine",
        description="How the learning rate falls after warm-up: to 0, or not at all.",
    )
    warmup: Fraction | Steps = Field(
        default=0.03,
        description="Linear warm-up: a share of the steps (below 1) or a number of them.",
    )
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="Largest global norm of the gradients. null: no clipping."
    )
    gradient_accumulation: int = Field(
        default=1, ge=1, description="Batches whose gradients make one update."
    )

    @field_validator("learning_rate")
    @classmethod
    def _given_where_scale_differs(cls, rate: float | None, info: ValidationInfo) -> float | None:
        if rate is None and info.data.get("name") in ("sgd", "lion"):
            raise ValueError(f"{info.data['name']} needs a learning rate of its own: give one")
        return rate


class EvaluationRecipe(_Section):
    """What is measured on the validation data: before, during and after."""

    every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between validation losses. null: five times in the run.",
    )
    exact_match: int = Field(
        default=0,
        ge=0,
        description="Validation prompts answered greedily, before and after; 0: none.",
    )
    max_new_tokens: int = Field(
        default=128, ge=1, description="Longest answer, in tokens, of these and of the samples."
    )


class Recipe(_Section):
    """A run of kerora, from the model to the last step.

    Raises `pydantic.ValidationError` for wrong values; `load_recipe` turns that into messages with
    lines.
    """

    model: ModelRecipe
    adapter: AdapterRecipe | Literal["none"] = AdapterRecipe()
    data: DataRecipe
    sequence_length: int = Field(default=512, ge=2, description="Tokens in a row.")
    batch_size: int = Field(default=4, ge=1, description="Rows in a batch.")
    packing: bool = Field(
        default=True,
        description="Several examples share a row, with attention and loss confined to each.",
    )
    steps: int | None = Field(
        default=None, ge=1, description="Batches to train on; null: by epochs."
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Times through the data. null: once, unless steps is given."
    )
    optimizer: OptimizerRecipe = OptimizerRecipe()
    rematerialise: Literal["auto", "none", "elementwise", "attention", "blocks"] = Field(
        default="auto",
        description="What is computed twice instead of kept until the backward pass: less memory "
        "for more time. auto: elementwise on JAX, none elsewhere.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Of weights, dropout and the rows' order."
    )
    samples: Annotated[int, Field(ge=0)] | list[str | dict[str, str]] = Field(
        default=3,
        description="Prompts answered before and after: a list of texts or of rows without their "
        "response, or how many of the validation rows.",
    )
    evaluation: EvaluationRecipe = EvaluationRecipe()
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="Time between checkpoints; 0: one after every step."
    )

    @field_validator("adapter")
    @classmethod
    def _resolve_adapter(cls, adapter: Any, info: ValidationInfo) -> Any:
        model = info.data.get("model")
        if adapter == "none" and model is not None and model.quantize != "none":
            raise ValueError(
                f"a base held in {model.quantize} is frozen, so it needs an adapter (or set "
                "model.quantize: none)"
            )
        if adapter != "none" and adapter.alpha is None:
            return adapter.model_copy(update={"alpha": 2.0 * adapter.rank})
        return adapter

    @field_validator("epochs")
    @classmethod
    def _resolve_epochs(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        steps = info.data.get("steps")
        if epochs is not None and steps is not None:
            raise ValueError(f"epochs and steps ({steps}) are both given: give one of them")
        return 1 if epochs is None and steps is None else epochs


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, without loading a model or any data.

    Args:
        path: A YAML file.
        overrides: Changes to it, each `"key=value"` or `"section.key=value"`, the value in YAML.

    Returns:
        The recipe, with every default filled in.

    Raises:
        RecipeError: With one line per problem: where it is, what was expected, the nearest name.

    Example:
    ```python
    recipe = load_recipe("configs/quickstart.yaml", ["adapter.rank=4", "epochs=2"])
    ```
    """
    document = read_yaml(Path(path))
    for override in overrides:
        apply_override(document, override)
    try:
        return Recipe.model_validate(document.values)
    except ValueError as error:
        raise as_recipe_error(error, Recipe, document) from None


def commented_recipe() -> str:
    """A recipe as YAML text, with every key, its default and what it means."""
    return recipe_text(Recipe)


def check_data_file(name: str) -> None:
    """Looks whether rows of this name are there, without importing what reads them.

    Raises:
        ValueError: There is no such file.
    """
    if name.startswith("tfds:") or name in BUNDLED_NAMES[1:]:
        return
    path = os.path.expanduser(name)
    if not os.path.isfile(path) and not glob.glob(path, recursive=True):
        raise ValueError(f"no such file: {name!r} (from {os.getcwd()}).{_near_path(name)}")


def _near_path(name: str) -> str:
    path = Path(name).expanduser()
    known = list(BUNDLED_NAMES)
    if path.parent.is_dir():
        known += [os.path.join(os.path.dirname(name), entry) for entry in os.listdir(path.parent)]
    return nearest(name, known)

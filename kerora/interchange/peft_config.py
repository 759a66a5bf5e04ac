"""PEFT's `adapter_config.json`: what kerora writes, and what it understands."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, get_args

from kerora.adapters.config import Bias
from kerora.adapters.errors import AdapterError
from kerora.adapters.patterns import matches_whole
from kerora.json_file import read_json_object, shown

CONFIG_FILE = "adapter_config.json"
KERAS_LIBRARY = "keras"

# Fields that say nothing about what the adapter computes: how it was initialised, which of its
# layers were chosen (the tensors say that), where it comes from.
_INFORMATIVE = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
_UNDERSTOOD = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "fan_in_fan_out",
    "modules_to_save",
)
_LARGEST_RANK = 2**24
_LARGEST_ALPHA = 1e30
# These initialisations leave the base as it is; others (PiSSA, OLoRA, LoftQ, …) change it.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The fields of an `adapter_config.json` that say what the adapter computes.

    Attributes:
        rank: Rank, where `rank_pattern` names no other.
        alpha: PEFT's `lora_alpha`, where `alpha_pattern` names no other.
        dropout: Dropout on the adapter's inputs in training.
        bias: `"none"`, `"lora_only"` or `"all"`.
        use_rslora: Whether the scale is `alpha / sqrt(rank)` and not `alpha / rank`.
        ensure_weight_tying: Whether an adapted table also changes the tied logits.
        rank_pattern: Rank by module name or regular expression.
        alpha_pattern: Alpha by module name or regular expression.
        modules_to_save: Names of modules that were trained whole and are stored so.
        base: Name or folder of the base.
        fan_in_fan_out: Whether the adapted matrices are stored as `(in, out)`, as GPT-2's are.
        task_type: What PEFT wraps the model as; None for a plain model.
        named_by: Class whose Keras paths name the layers; None where `transformers` names them.
        left_out: Modules that PEFT would take for targets by how their names end, and is not to.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    bias: Bias = "none"
    use_rslora: bool = False
    ensure_weight_tying: bool = False
    rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    base: str | None = None
    fan_in_fan_out: bool = False
    task_type: str | None = "CAUSAL_LM"
    named_by: str | None = None
    left_out: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """The rank of one module's adapter."""
        return _matching(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """PEFT's `lora_alpha` of one module."""
        return _matching(self.alpha_pattern, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """The factor on one module's `A·B`."""
        rank, alpha = self.rank_of(module), self.alpha_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _targets(config: PeftConfig, adapted: list[str], all_modules: list[str]) -> list[str]:
    # `transformers` gives encoders layers, such as poolers, that KerasHub leaves out: a short name
    # could mean one of them too. So it is with the vision tower beside a language model.
    is_inner = any(name.startswith("model.language_model.") for name in adapted)
    if config.task_type != "CAUSAL_LM" or is_inner:
        return sorted(adapted)
    return _short_names(adapted, all_modules)


def write_config(
    folder: Path, config: PeftConfig, adapted: Collection[str], all_modules: Iterable[str]
) -> None:
    """Write `adapter_config.json`.

    Args:
        folder: The adapter's folder.
        config: Its fields.
        adapted: Names of the modules that hold the adapter.
        all_modules: Names of all modules that could, to shorten the list of targets.
    """
    fields: dict[str, Any] = {
        "alpha_pattern": config.alpha_pattern,
        "auto_mapping": None,
        "base_model_name_or_path": config.base,
        "bias": config.bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _plain_number(config.alpha),
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": config.rank_pattern,
        "revision": None,
        "target_modules": _targets(config, list(adapted), list(all_modules)),
        "task_type": config.task_type,
        "use_dora": False,
        "use_rslora": config.use_rslora,
    }
    if config.ensure_weight_tying:
        # Older versions of PEFT do not know the field, and warn of it.
        fields["ensure_weight_tying"] = True
    # PEFT takes a name for that of all modules whose own end so, and warns of needless exceptions.
    endings = tuple(f".{module}" for module in adapted)
    if mistaken := [module for module in config.left_out if module.endswith(endings)]:
        fields["exclude_modules"] = mistaken
    if config.named_by is not None:
        fields["auto_mapping"] = {
            "base_model_class": config.named_by,
            "parent_library": KERAS_LIBRARY,
        }
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def read_config(folder: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        AdapterError: If it is missing or damaged, or asks for what kerora does not have.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        below = [str(found.parent) for found in sorted(folder.glob(f"*/{CONFIG_FILE}"))[:5]]
        hint = f" There is one below: {', '.join(below)}" if below else ""
        raise AdapterError(f"'{folder}' holds no {CONFIG_FILE}: it is no adapter folder.{hint}")
    fields = read_json_object(path, AdapterError)
    _check_understood(path, fields)
    mapping = fields.get("auto_mapping") or {}
    is_keras = isinstance(mapping, dict) and mapping.get("parent_library") == KERAS_LIBRARY
    return PeftConfig(
        rank=_rank(path, "r", _read(path, fields, "r", int, 8)),
        alpha=_alpha(path, "lora_alpha", _read(path, fields, "lora_alpha", (int, float), 8)),
        dropout=_dropout(path, _read(path, fields, "lora_dropout", (int, float), 0.0)),
        bias=_read_bias(path, fields),
        use_rslora=_read(path, fields, "use_rslora", bool, False),
        ensure_weight_tying=_read(path, fields, "ensure_weight_tying", bool, False),
        rank_pattern=_pattern(path, fields, "rank_pattern", _rank),
        alpha_pattern=_pattern(path, fields, "alpha_pattern", _alpha),
        fan_in_fan_out=_read(path, fields, "fan_in_fan_out", bool, False),
        modules_to_save=_names(path, fields, "modules_to_save"),
        base=_read(path, fields, "base_model_name_or_path", str, "") or None,
        named_by=_read(path, mapping, "base_model_class", str, "") or None if is_keras else None,
    )


def most_common(values: Iterable[Any]) -> Any:
    """The value that occurs most often."""
    return Counter(values).most_common(1)[0][0]


def _check_understood(path: Path, fields: dict[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path}: kerora reads LoRA adapters only. Received: "
            f"peft_type={shown(fields.get('peft_type'))}"
        )
    if fields.get("init_lora_weights", True) not in _PLAIN_INITIALIZATIONS:
        raise AdapterError(
            f"{path}: init_lora_weights={shown(fields['init_lora_weights'])} belongs to a base "
            "that was changed before training. Convert the adapter to plain LoRA when saving it "
            "in PEFT (`path_initial_model_for_weight_conversion`)."
        )
    for name, value in fields.items():
        # What is off, empty or absent changes nothing, whatever it is called.
        if name not in (*_UNDERSTOOD, *_INFORMATIVE) and value not in (None, False, [], {}, ""):
            raise AdapterError(
                f"{path}: kerora has no counterpart of `{name[:80]}`. "
                f"Received: {name[:80]}={shown(value)}"
            )


def _read(path: Path, fields: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = getattr(kind, "__name__", "number")
        raise AdapterError(f"{path}: `{name}` must be of type {expected}. Received: {shown(value)}")
    return value


def _rank(path: Path, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
        raise _out_of_range(path, name, f"a whole number from 1 to {_LARGEST_RANK}", value)
    return value


def _alpha(path: Path, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < abs(value) < _LARGEST_ALPHA:
        raise _out_of_range(path, name, "a number other than 0", value)
    return value


def _dropout(path: Path, value: float) -> float:
    if not 0 <= value < 1:
        raise _out_of_range(path, "lora_dropout", "in [0, 1)", value)
    return value


def _pattern(
    path: Path, fields: dict[str, Any], name: str, check: Callable[[Path, str, Any], Any]
) -> dict[str, Any]:
    values = _read(path, fields, name, dict, {})
    return {key: check(path, f"{name}[{key[:80]!r}]", value) for key, value in values.items()}


def _names(path: Path, fields: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _read(path, fields, name, list, [])
    if not all(isinstance(value, str) for value in values):
        raise _out_of_range(path, name, "a list of names", values)
    return tuple(values)


def _out_of_range(path: Path, name: str, expected: str, value: object) -> AdapterError:
    return AdapterError(f"{path}: `{name}` must be {expected}. Received: {shown(value)}")


def _read_bias(path: Path, fields: dict[str, Any]) -> Bias:
    bias: Any = fields.get("bias") or "none"
    if bias not in get_args(Bias):
        raise _out_of_range(path, "bias", f"one of {get_args(Bias)}", bias)
    return bias


def _matching(patterns: dict[str, Any], module: str, default: Any) -> Any:
    # PEFT's rule: the pattern matches the whole name, or its end after a dot.
    for pattern, value in patterns.items():
        if matches_whole(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _short_names(adapted: list[str], all_modules: list[str]) -> list[str]:
    chosen = set(adapted)
    names = set()
    for module in adapted:
        short = module.rpartition(".")[2]
        alike = {name for name in all_modules if name == short or name.endswith("." + short)}
        # The number of a module in a list would mean whatever has that number in another.
        names.add(short if alike <= chosen and not short.isdigit() else module)
    return sorted(names)


def _plain_number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value

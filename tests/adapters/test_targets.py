"""Which layers an adapter goes on, in every causal language model of KerasHub."""

import math
import re

import keras
import keras_hub
import pytest
from backends import once
from more_backbones import MORE_BACKBONES
from test_linear_hosts import EQUATIONS
from tiny_backbones import BACKBONES

from kerora.adapters import AdapterError, LoraConfig, add_adapter, count_trainable_parameters
from kerora.adapters.target_hints import target_hint
from kerora.adapters.targets import candidates, select
from kerora.interchange.layer_names import named_layers

# Names of the layers that the default targets, and how many of each, family by family.
QUERY_VALUE = {"query": 2, "value": 2}
DEFAULTS = {
    "gemma3": {"query": 6, "value": 6},
    "smollm3": {"q_proj": 2, "v_proj": 2},
    "gpt_neo_x": {"query_key_value": 2},
    "bloom": {"query_dense": 2, "value_dense": 2},
    "falcon": {"query_dense": 2, "value_dense": 2},
    "qwen3_5": {"in_proj_qkv": 1, "query": 1, "value": 1},
    "qwen3_5_moe": {"in_proj_qkv": 1, "query": 1, "value": 1},
    "gemma3n": {"q_proj": 4, "v_proj": 2},
    "rwkv7": {"receptance": 2, "value": 2},
    "blip2": {"query": 1, "value": 1},
}
FAMILIES = [*BACKBONES, *MORE_BACKBONES]
# Each is a variant of a family above, or has no backbone in the released KerasHub.
OTHER_TASKS = {
    "SmolLM": "Llama",
    "Qwen2": "Qwen",
    "Gemma4Assistant": "Gemma4",
}


def _backbone(family):
    if family in MORE_BACKBONES:
        return MORE_BACKBONES[family]()
    class_name, config = BACKBONES[family]
    return getattr(keras_hub.models, class_name)(**config)


@pytest.fixture(autouse=True)
def zero_weights(monkeypatch):
    """Weights are zeros: where only the structure counts, drawing them is most of the time."""
    kinds = ("VarianceScaling", "RandomNormal", "RandomUniform", "TruncatedNormal")
    for kind in kinds:
        monkeypatch.setattr(
            getattr(keras.initializers, kind),
            "__call__",
            lambda self, shape, dtype=None, **_: keras.ops.zeros(shape, dtype),
        )


def _names(chosen):
    names = [candidate.layer.name for candidate in chosen]
    return {name: names.count(name) for name in names}


@once
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_every_family(family):
    backbone = _backbone(family)
    chosen = select(backbone, None)
    assert _names(chosen) == DEFAULTS.get(family, QUERY_VALUE)

    everything = candidates(backbone)
    assert len({candidate.path for candidate in everything}) == len(everything)
    equations = {getattr(c.layer, "equation", None) for c in everything} - {None}
    assert equations <= set(EQUATIONS), "KerasHub uses an equation that no test covers"

    linear = select(backbone, "all-linear")
    assert {id(c.layer) for c in chosen} <= {id(c.layer) for c in linear}
    assert not [c.path for c in linear if "vit" in c.path or "vision" in c.path]
    assert not [c.path for c in linear if "router" in c.path or "qformer" in c.path]
    add_adapter(backbone, LoraConfig(rank=1, targets="all-linear"))
    variables = [v for v in backbone.trainable_variables]
    assert len(variables) == 2 * len(linear) == len({v.path for v in variables})


def test_every_causal_language_model_is_covered():
    tasks = {n.removesuffix("CausalLM") for n in dir(keras_hub.models) if n.endswith("CausalLM")}
    tasks -= {""} | set(OTHER_TASKS)
    covered = {
        family.partition("_images")[0].replace("_", "").lower().removesuffix("su")
        for family in FAMILIES
    }
    aliases = {"qwen2": "qwen", "gemma2": "gemma"}
    covered |= {aliases.get(name, name) for name in covered}
    assert {task.replace("_", "").lower() for task in tasks} <= covered


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        ("query", None, {"query": 2}),
        (["query", "ffw_linear"], None, {"query": 2, "ffw_linear": 2}),
        ("ffw_.*", None, {"ffw_gating": 2, "ffw_gating_2": 2, "ffw_linear": 2}),
        (".*block_1/attention/.*", "key", {"query": 1, "value": 1, "attention_output": 1}),
        ("attention/query", None, {"query": 2}),
        ("decoder_block_0/attention/query", None, {"query": 1}),
        (["query", "token_embedding"], None, {"token_embedding": 1, "query": 2}),
        ("all-linear", ["ffw_.*", "decoder_block_0/.*"], {"query": 1, "key": 1, "value": 1}
         | {"attention_output": 1}),
        (None, "decoder_block_0/.*", {"query": 1, "value": 1}),
    ],
)  # fmt: skip
def test_names_paths_patterns_lists_and_exclusions(targets, exclude, expected):
    chosen = select(_backbone("gemma"), targets, exclude)
    assert {name: n for name, n in sorted(_names(chosen).items())} == dict(sorted(expected.items()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("qery",), r"`targets`: no layer matches 'qery'. Did you mean 'query'\?.*query \(x2\)"),
        (("query", "valu"), r"`exclude`: no layer matches 'valu'. Did you mean 'value'\?"),
        ((["query", "nothing_like_it"],), "no layer matches 'nothing_like_it'"),
        (("query", "query"), "leaves no target"),
        (("ffw_(",), r"'ffw_\(' is no regular expression"),
    ],
)
def test_errors_name_what_was_given_and_what_is_there(arguments, words):
    with pytest.raises(AdapterError, match=words):
        select(_backbone("gemma"), *arguments)


@pytest.mark.parametrize(
    ("family", "target", "hint"),
    [
        ("gemma", "q_proj", "What PEFT calls 'q_proj' is 'query' in this model."),
        ("gemma", "gate_proj", "is 'ffw_gating' in"),
        ("gemma", "up_proj", "is 'ffw_gating_2' in"),
        ("llama", "model.layers.0.mlp.down_proj", "'down_proj' is 'feedforward_output_dense' in"),
        ("llama", "o_proj", "is 'attention_output' in"),
        ("llama", "embed_tokens", "is 'token_embedding' in"),
        ("gpt_neo_x", "v_proj", "is 'query_key_value' in"),
        ("bloom", "k_proj", "is 'key_dense' in"),
        ("llama", "q_prj", "Did you mean PEFT's 'q_proj'? It is 'query' in this model."),
        ("smollm3", "q_prj", "Did you mean 'q_proj'?"),
    ],
)
def test_a_name_of_peft_is_told_by_the_name_in_this_model(family, target, hint):
    with pytest.raises(AdapterError, match=re.escape(f"no layer matches '{target}'.")) as told:
        select(_backbone(family), target)
    assert hint in str(told.value)


@pytest.mark.parametrize("family", ["gemma3", "llama3", "qwen2"])
def test_names_of_peft_are_those_of_the_adapter_folder(family):
    modules = {
        layer.module: layer.candidate.layer.name for layer in named_layers(_backbone(family))
    }
    for module, name in modules.items():
        assert f"is '{name}' in this model" in target_hint(module, list(modules.values()))


def test_projections_that_shared_keys_and_values_leave_over_are_never_called(monkeypatch):
    backbone, called = _backbone("gemma3n"), set()
    stock = keras.layers.Dense.call

    def call(self, *args, **kwargs):
        called.add(id(self))
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Dense, "call", call)
    backbone({tensor.name: keras.ops.ones((1, 4), "int32") for tensor in backbone.inputs})
    linear = [c for c in candidates(backbone) if isinstance(c.layer, keras.layers.Dense)]
    left_over = [c.path for c in linear if id(c.layer) not in called]
    assert len(left_over) == 4
    chosen = select(backbone, [".*_proj", "modality_router", "linear_left"])
    assert not set(left_over) & {c.path for c in chosen + select(backbone, "all-linear")}
    assert _names(chosen)["k_proj"] == 2
    with pytest.raises(AdapterError, match="no layer matches"):
        select(backbone, left_over[0])


def test_a_model_without_queries_asks_for_targets():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden")])
    with pytest.raises(AdapterError, match=r"`targets` must be given.*hidden \(x1\)"):
        add_adapter(model, LoraConfig(rank=2))


def test_layers_that_share_a_path_get_paths_of_their_own():
    backbone = _backbone("smollm3")
    add_adapter(backbone, LoraConfig(rank=2, targets=["o_proj"]))
    paths = [v.path for v in backbone.trainable_variables]
    assert len(paths) == len(set(paths)) == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "`rank`.*Received: 0"),
        ({"rank": 2.0}, "`rank`.*Received: 2.0"),
        ({"alpha": 0}, "`alpha`.*Received: 0"),
        ({"dropout": 1.0}, "`dropout`.*Received: 1.0"),
        ({"bias": "some"}, "`bias`.*Received: 'some'"),
        ({"targets": []}, "`targets`.*Received: \\[\\]"),
        ({"exclude": 3}, "`exclude`.*Received: 3"),
    ],
)
def test_a_config_out_of_range_says_so(fields, words):
    with pytest.raises(AdapterError, match=words):
        LoraConfig(**fields)


def test_gemma_2b_counts_what_the_paper_counts():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=8,
        num_layers=18,
        num_query_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        hidden_dim=2048,
        intermediate_dim=8,
        dtype="bfloat16",
    )
    base = backbone.count_params()
    add_adapter(backbone, LoraConfig(rank=4))
    counts = count_trainable_parameters(backbone)
    assert counts.trainable == 460_800 == 18 * 4 * ((2048 + 8 * 256) + (2048 + 256))
    assert counts.total == base + 460_800
    assert counts.by_target == {"query": 18 * 4 * 4096, "value": 18 * 4 * 2304}
    lines = str(counts).splitlines()
    assert lines[0].startswith(f"Trainable: 460,800 of {counts.total:,} parameters (")
    assert [line.split() for line in lines[1:]] == [
        ["query", "18", "layers", "294,912"],
        ["value", "18", "layers", "165,888"],
    ]


@pytest.mark.parametrize("rank", [1, 3])
def test_counts_with_all_targets_and_biases(rank):
    backbone = _backbone("qwen2")
    kinds = select(backbone, "all-linear")
    add_adapter(backbone, LoraConfig(rank=rank, targets="all-linear", bias="lora_only"))
    sizes = {"query": (32, 32), "key": (32, 16), "value": (32, 16), "attention_output": (32, 32)}
    sizes |= {"feedforward_gate_dense": (32, 48), "feedforward_intermediate_dense": (32, 48)}
    sizes |= {"feedforward_output_dense": (48, 32)}
    counts = count_trainable_parameters(backbone)
    assert counts.by_target == {name: 2 * rank * sum(size) for name, size in sizes.items()}
    biases = sum(math.prod(c.layer.bias.shape) for c in kinds if c.layer.bias is not None)
    assert biases == 2 * (32 + 16 + 16)
    assert counts.trainable == sum(counts.by_target.values()) + biases
    assert "biases and other weights" in str(counts)


def test_a_backbone_within_a_task_and_the_task_are_one():
    task = keras_hub.models.GemmaCausalLM(_backbone("gemma"), preprocessor=None)
    add_adapter(task.backbone, LoraConfig(rank=2))
    assert len(task.trainable_variables) == 8

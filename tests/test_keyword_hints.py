"""What other libraries call an argument is told as what it is called here."""

import pytest

import kerora


@pytest.mark.parametrize(
    ("name", "meant"),
    [("r", "rank"), ("lora_alpha", "alpha"), ("target_modules", "targets"), ("dropuot", "dropout")],
)
def test_the_argument_that_was_meant_is_named(name, meant):
    model = kerora.from_preset("tiny_gemma", load_weights=False, preprocessor=None)
    for function in (kerora.LoraConfig, model.backbone.enable_lora):
        with pytest.raises(
            TypeError, match=f"no argument `{name}`. Did you mean `{meant}`"
        ) as told:
            function(**{name: 8})
        assert "It takes rank, " in str(told.value)


def test_what_is_like_no_argument_is_told_all_there_are():
    with pytest.raises(TypeError, match=r"LoraConfig has no argument `zzz`\. It takes rank, alpha"):
        kerora.LoraConfig(zzz=1)
    # PEFT's name for an argument of `enable_lora` that a configuration does not have.
    with pytest.raises(TypeError, match=r"no argument `adapter_name`\. It takes rank, alpha"):
        kerora.LoraConfig(adapter_name="mine")


def test_known_arguments_arrive():
    assert kerora.LoraConfig(8, alpha=16).scale == 2.0


def test_what_fit_does_not_take():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    for name, meant in {"epoch": "epochs", "max_seq_length": "sequence_length"}.items():
        with pytest.raises(TypeError, match=f"no argument `{name}`. Did you mean `{meant}`"):
            model.fit(["a"], **{name: 1})

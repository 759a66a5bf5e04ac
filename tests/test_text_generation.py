"""Rows are asked as they were learned; texts and tokens go on to KerasHub's own `generate`."""

import warnings

import keras
import keras_hub
import numpy as np
import pytest

import kerora
from kerora.training.fit_data import DataOptions, text_batches

LENGTH = 64
NAMES = ("token_ids", "padding_mask")
TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
QUESTION = {"question": "What is the opposite of hot?", "answer": "Cold."}
INSTRUCTION = {"instruction": "Say it again.", "context": "Cold.", "response": "Cold."}
OWN_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
OWN_TEMPLATE += "{% if add_generation_prompt %}[assistant] {% endif %}"


@pytest.fixture(scope="module")
def model():
    model = kerora.from_preset("tiny_gemma")
    model.compile(sampler="greedy")
    return model


@pytest.fixture
def asked(model, monkeypatch):
    """The prompts that the model is given, token ids each; it answers nothing."""
    prompts = []

    def answer(inputs, stop_token_ids):
        ids, mask = (keras.ops.convert_to_numpy(inputs[name]) for name in NAMES)
        prompts.extend(row[m].tolist() for row, m in zip(ids, mask, strict=True))
        return {"token_ids": np.full_like(ids, stop_token_ids[0])}

    monkeypatch.setattr(model, "make_generate_function", lambda: answer)
    return prompts


def learned_prompt(model, row, template):
    """What stands before the first learned token in the batch that training makes of a row."""
    options = DataOptions(template=template, sequence_length=LENGTH)
    inputs, _, weights = next(iter(text_batches(model, [row], options, batch_size=1)))
    return inputs["token_ids"][0, : np.flatnonzero(weights[0])[0] + 1].tolist()


@pytest.mark.parametrize(
    ("row", "template"),
    [
        (QUESTION, None),
        (QUESTION, "chat"),
        (QUESTION, "Q: {question}\nA: {answer}"),
        (INSTRUCTION, None),
        (INSTRUCTION, "chat"),
        (TALK, None),
        ({"messages": TALK}, None),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, None),
    ],
)
@pytest.mark.parametrize("chat_template", [None, OWN_TEMPLATE])
def test_a_row_is_asked_as_it_was_learned(model, asked, monkeypatch, row, template, chat_template):
    monkeypatch.setattr(model, "chat_template", chat_template)
    model.generate(row, max_length=LENGTH, template=template)
    assert asked == [learned_prompt(model, row, template)]


def test_a_text_under_chat_is_a_users_message(model, asked):
    model.generate("Hi.", max_length=LENGTH, template="chat")
    model.generate(TALK[:1], max_length=LENGTH)
    assert asked[0] == asked[1]


def test_a_record_gets_the_answer_that_keras_hub_gives_to_its_text(model):
    row = {"question": QUESTION["question"]}
    text = f"Question:\n{row['question']}\n\nAnswer:\n"
    stops = (model.preprocessor.tokenizer.end_token_id,)
    for strip in (False, True):
        options = {"max_length": 32, "stop_token_ids": stops, "strip_prompt": strip}
        assert model.generate(row, **options) == model.generate(text, **options)


def test_a_batch_holds_records_conversations_and_texts(model):
    rows = [{"question": "What is it?"}, TALK[:1], {"messages": TALK[:1]}, "The cat"]
    answers = model.generate(rows, max_length=32)
    assert answers[:3] == [model.generate(row, max_length=32) for row in rows[:3]]
    assert answers[3].startswith("The cat")
    assert model.generate(rows[:1], max_length=32) == answers[:1]


def test_an_answer_ends_before_the_first_stop_token(model, monkeypatch):
    tokenizer = model.preprocessor.tokenizer
    mark = tokenizer.token_to_id("<end_of_turn>")
    cat = [int(token) for token in tokenizer("a cat")]

    def answer(inputs, stop_token_ids):
        assert mark in stop_token_ids
        ids, prompt = (keras.ops.convert_to_numpy(inputs[name]) for name in NAMES)
        ids = ids.copy()
        ids[~prompt] = np.resize([*cat, mark], (~prompt).sum())
        return {"token_ids": ids}

    monkeypatch.setattr(model, "make_generate_function", lambda: answer)
    assert model.generate(TALK[:1], max_length=32, strip_prompt=True).strip() == "a cat"
    both = "<start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\na cat"
    assert model.generate(TALK[:1], max_length=32) == both


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"foo": "bar"}, r"^inputs: unknown fields \(found \['foo'\]; known are instruction"),
        ([QUESTION, {"foo": "bar"}], r"^inputs\[1\]: unknown fields"),
        ({"question": ""}, "'question' is empty"),
        ([{"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
        ({"question": "why " * 40}, r"no room for an answer.*max_length=16"),
    ],
)
def test_what_is_no_prompt_is_refused(model, inputs, message):
    with pytest.raises(kerora.DataError, match=message):
        model.generate(inputs, max_length=16)


def test_arguments_of_the_models_own_class_go_with_texts_alone(model):
    with pytest.raises(TypeError, match="assistant_model with texts or tokens alone"):
        model.generate(QUESTION, assistant_model=model)


def test_tokens_are_keras_hubs(model, monkeypatch):
    ids = np.ones((1, 8), "int32")
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        tokens = {"token_ids": ids, "padding_mask": np.arange(8)[None] < 4}
        assert model.generate(tokens, stop_token_ids=None)["token_ids"].shape == (1, 8)
        with pytest.raises(kerora.DataError, match="`preprocessor` is None"):
            model.generate(QUESTION)
    finally:
        model.preprocessor = preprocessor


def warnings_of(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args, **kwargs)
    return [w for w in caught if "built-in chat template" in str(w.message)]


@pytest.fixture
def untrained(monkeypatch):
    """Makes `fit` and `evaluate` prepare the data and do nothing with it."""
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: None)
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: None)


def test_a_template_that_nobody_chose_is_named_once_a_call(untrained):
    model = keras_hub.models.CausalLM.from_preset(str(kerora.bundled_path("tiny_gemma")))
    kerora.adapt(model).backbone.enable_lora(2)
    model.make_generate_function = lambda: lambda inputs, stop_token_ids: inputs
    for function, data, more in (
        (model.fit, [TALK] * 2, {"validation_data": [TALK]}),
        (model.fit, [QUESTION], {"template": "chat"}),
        (model.evaluate, [QUESTION, TALK], {}),
        (model.generate, [TALK[:1]] * 2, {}),
        (model.generate, "Hi.", {"template": "chat"}),
    ):
        (warning,) = warnings_of(function, data, **more)
        assert "template 'gemma'" in str(warning.message)
        assert "kerora.from_preset" in str(warning.message)
        assert warning.filename == __file__
    assert not warnings_of(model.fit, [QUESTION])
    assert not warnings_of(model.generate, QUESTION)
    model.chat_template = "gemma"
    assert not warnings_of(model.fit, [TALK])


def test_a_model_that_kerora_loaded_has_no_template_to_miss(model, untrained, asked):
    assert not warnings_of(model.evaluate, [TALK])
    assert not warnings_of(model.generate, TALK[:1])


def test_a_preset_whose_vocabulary_has_no_known_marks_is_told(model, untrained, asked, monkeypatch):
    monkeypatch.setattr("kerora.data.chat_templates._BUILT_IN", ())
    for function, data in ((model.evaluate, [TALK]), (model.generate, TALK[:1])):
        (warning,) = warnings_of(function, data)
        assert "template 'plain': a KerasHub preset keeps no" in str(warning.message)
        assert warning.filename == __file__
    monkeypatch.setattr(model, "source_has_template_place", True)
    assert not warnings_of(model.evaluate, [TALK])


def test_text_without_a_tokenizer_is_told_alike_in_fit_and_generate():
    model = kerora.from_preset("tiny_gemma", load_weights=False)
    model.backbone.enable_lora(2)
    model.preprocessor = None
    with pytest.raises(kerora.DataError, match="`preprocessor` is None"):
        model.generate({"question": "Why?"})
    with pytest.raises(kerora.DataError, match="`preprocessor` is None"):
        model.fit([{"question": "Why?", "answer": "So."}], verbose=0)

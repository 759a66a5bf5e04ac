"""Of several chat templates the one that `transformers` takes, from all that name them."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kerora.data.chat import ChatTemplate
from kerora.data.formats import read_messages
from kerora.models.loading import chat_template

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="text does not depend on the backend"
)

# White space where Jinja takes some away, and a definition that only one of them has.
PLAIN = """
  {% for message in messages %}
[{{ message.role }}] {{ message.content }}
  {% endfor %}
  {{ "ends" }}  \n"""
WITH_TOOLS = """  {%- macro name(tool) %}<{{ tool.function.name }}>{% endmacro %}
{% for tool in tools %}{{ name(tool) }}
{% endfor %}
{%- for message in messages %} {{ message.role }}: {{ message.content }}
{% endfor %}

\n"""
NAMED = {"default": PLAIN, "tool_use": WITH_TOOLS, "rag": "documents"}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]


@pytest.fixture
def tokenizer():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=NAMED)


def with_model(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.zeros(1)}, folder / "model.safetensors")
    return folder


def saved_by_transformers(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return with_model(folder)


def saved_as_a_list(tokenizer, folder):
    entries = [{"name": name, "template": text} for name, text in NAMED.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    return with_model(folder)


def saved_as_gguf(tokenizer, folder):
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_chat_template([{"name": name, "template": text} for name, text in NAMED.items()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


@pytest.mark.parametrize("save", [saved_by_transformers, saved_as_a_list, saved_as_gguf])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_texts_equal_those_of_transformers(save, tools, tokenizer, tmp_path):
    template = ChatTemplate(chat_template(save(tokenizer, tmp_path)))
    expected = tokenizer.apply_chat_template(TALK, tools=tools, tokenize=False)
    assert template.render(read_messages(TALK), tools=tools) == expected

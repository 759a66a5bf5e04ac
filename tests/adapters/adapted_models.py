"""Small tasks, data and adapters with random factors, for the tests of this folder."""

from typing import Any

import keras
import keras_hub
import numpy as np
from tiny_backbones import VOCABULARY, tiny_backbone

from kerora.adapters import adapted_layers, adapter_configs
from kerora.adapters.host import get_adapter


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor or variable as a NumPy array; half precisions become float32."""
    array = keras.ops.convert_to_numpy(tensor)
    return np.array(array) if array.dtype.kind in "biu" else array.astype("float32")


def gemma_task(dtype: str = "float32", **overrides: Any) -> Any:
    """A tiny Gemma task, each time of the same random weights."""
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone("gemma", dtype, **{"num_layers": 1, **overrides})
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


def small_model(dtype: str = "float32") -> Any:
    """Every kind of host in a model that compiles at once, each time of the same weights."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((None,), dtype="int32", name="padding_mask"),
    }
    table = layers.ReversibleEmbedding(
        VOCABULARY,
        16,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.3),
        name="token_embedding",
        dtype=dtype,
    )
    hidden = table(inputs["token_ids"])
    query = layers.EinsumDense("btd,ndh->btnh", (None, 2, 8), name="query", dtype=dtype)(hidden)
    value = layers.EinsumDense("btnh,nhd->btd", (None, 16), name="value", dtype=dtype)(query)
    gate = layers.Dense(24, activation="gelu", name="gate", dtype=dtype)(hidden + value)
    output = layers.Dense(16, name="output", dtype=dtype, bias_initializer="normal")(gate)
    logits = table(hidden + output, reverse=True)
    return keras.Model(inputs, logits, name="small")


def token_batch(rows: int = 4, length: int = 8, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Inputs and next-token labels."""
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length + 1))
    mask = np.ones((rows, length), "int32")
    return {"token_ids": tokens[:, :-1].astype("int32"), "padding_mask": mask}, tokens[:, 1:]


def compile_for_tokens(model: Any, optimizer: Any = None) -> Any:
    """Compile with the plain loss over logits."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss)
    return model


def fit_losses(model: Any, epochs: int = 3, batch_size: int = 4, **kwargs: Any) -> list[float]:
    """The loss of each epoch on the same few rows."""
    x, y = token_batch()
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, epochs=epochs, **options).history["loss"]


def fill_factors(model: Any, name: str = "default", seed: int = 0, spread: float = 0.3) -> None:
    """Give both factors of every adapter random values."""
    rng = np.random.default_rng(seed)
    for held in adapted_layers(model, name):
        for variable in get_adapter(held.layer, name).weights:
            variable.assign(rng.normal(0, spread, variable.shape).astype("float32"))


def factor_variables(model: Any) -> list[Any]:
    """The factors of every adapter of the model."""
    return [
        variable
        for name in adapter_configs(model)
        for held in adapted_layers(model, name)
        for variable in get_adapter(held.layer, name).weights
    ]


def values(variables: list[Any]) -> list[np.ndarray]:
    """Copies of the variables' values."""
    return [as_numpy(variable) for variable in variables]


def all_equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether two lists of arrays are the same to the bit."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def logits(model: Any, seed: int = 5) -> np.ndarray:
    """What the model predicts for a fixed batch, through the compiled `predict`."""
    return np.asarray(model.predict(token_batch(seed=seed)[0], verbose=0), "float32")


def eager_logits(model: Any, seed: int = 5) -> np.ndarray:
    """What the model makes of the same batch without compilation."""
    return as_numpy(model(token_batch(seed=seed)[0]))

import numpy as np
import pytest

from kerora.data.passthrough import is_token_data

IDS = np.ones((2, 4), np.int32)


@pytest.mark.parametrize(
    "data",
    [
        IDS,
        {"token_ids": IDS, "padding_mask": IDS > 0},
        ({"token_ids": IDS}, IDS, IDS.astype(np.float32)),
        [[1, 2], [3, 4]],
    ],
)
def test_numbers_are_for_keras(data):
    assert is_token_data(data)


@pytest.mark.parametrize(
    "data",
    [
        "file.jsonl",
        ["text"],
        [],
        np.array(["text"]),
        {"prompt": ["a"], "response": ["b"]},
        {"id": [1, 2], "text": ["a", "b"]},
        [{"id": 1, "text": "a"}],
        [[{"role": "user", "content": "a"}]],
        (row for row in ["a"]),
    ],
)
def test_text_is_for_kerora(data):
    assert not is_token_data(data)


def test_data_sets_are_told_apart_by_their_elements():
    import grain
    import keras

    class Tokens(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return IDS

    assert is_token_data(Tokens())
    assert is_token_data(grain.MapDataset.source([{"token_ids": IDS}]))
    assert not is_token_data(grain.MapDataset.source(["text"]))
    tf = pytest.importorskip("tensorflow")
    assert is_token_data(tf.data.Dataset.from_tensor_slices({"token_ids": IDS}))
    assert not is_token_data(tf.data.Dataset.from_tensor_slices({"text": ["a"], "id": [1]}))


def test_tables_of_text_with_numbers_beside_are_text():
    datasets = pytest.importorskip("datasets")
    assert not is_token_data(datasets.Dataset.from_list([{"id": 1, "text": "a"}]))


def test_tensors_of_each_backend_are_numbers():
    import keras

    assert is_token_data(keras.ops.convert_to_tensor(IDS))
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.tensor(IDS))
    assert is_token_data(torch.tensor(IDS))
    assert is_token_data(torch.utils.data.DataLoader(tensors))

"""Data in every form reaches the model as the user meant it, or is refused with a reason."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.contracts import TensorSpec
from graphopt.dataset import Dataset, open_dataset
from graphopt.errors import DataError

FLOAT = np.dtype(np.float32)
X = TensorSpec("x", FLOAT, ("N", 3))
FIXED = TensorSpec("x", FLOAT, (1, 3))
STATEFUL = (
    TensorSpec("input", FLOAT, (None, None)),
    TensorSpec("state", FLOAT, (2, None, 4)),
    TensorSpec("sr", np.dtype(np.int64), ()),
)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def save(folder: Path, name: str = "data.npz", **arrays: np.ndarray) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def gather(data: Dataset, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feed[name] for batch in data.batches()])


def refusal(source: Any, *specs: TensorSpec) -> str:
    with pytest.raises(DataError) as caught:
        list(open_dataset(source, specs).batches())
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- one .npz


def test_a_dynamic_batch_is_fed_in_batches_and_nothing_is_lost(tmp_path: Path) -> None:
    x, labels = floats(70, 3), np.arange(70)
    data = open_dataset(save(tmp_path, x=x, labels=labels), [X], batch_size=32)
    assert [batch.samples for batch in data.batches()] == [32, 32, 6]
    np.testing.assert_array_equal(gather(data), x)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in data.batches()]), labels)
    assert (data.size, data.labelled, data.generated, data.notes) == (70, True, False, ())


def test_python_hands_over_arrays_or_a_function_as_they_are(tmp_path: Path) -> None:
    x, labels = floats(70, 3), np.arange(70)
    stored = open_dataset(save(tmp_path, x=x, labels=labels), [X])
    assert open_dataset({"x": x, "labels": labels}, [X]).fingerprint == stored.fingerprint
    assert open_dataset(lambda: iter([{"x": x[:4]}, {"x": x[4:9]}]), [X]).size == 9
    assert "no input of the model is called 'y'" in refusal({"y": x, "z": x}, X)
    assert "cannot be a ndarray" in refusal(x, X)


def test_one_hot_labels_are_classes_and_other_tables_are_values() -> None:
    x, classes = floats(6, 3), np.array([2, 0, 1, 1, 0, 2])
    table = np.eye(3)[classes]
    data = open_dataset({"x": x, "labels": table}, [X])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in data.batches()]), classes)
    assert data.labels_dtype == np.int64
    assert "one-hot" in " ".join(data.notes)
    assert open_dataset({"x": x, "labels": table * 0.9}, [X]).labels_dtype == table.dtype


def test_a_fixed_batch_of_one_is_fed_sample_by_sample(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=floats(5, 3)), [FIXED])
    assert [batch.feed["x"].shape for batch in data.batches()] == [(1, 3)] * 5
    assert not data.labelled


def test_samples_that_do_not_fill_a_fixed_batch_are_left_out_and_told(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=floats(19, 3)), [TensorSpec("x", FLOAT, (8, 3))])
    assert [batch.samples for batch in data.batches()] == [8, 8]
    assert data.size == 16
    assert "last 3 of 19" in data.notes[0]
    assert "do not fill" in refusal(save(tmp_path, x=floats(3, 3)), TensorSpec("x", FLOAT, (8, 3)))


def test_batches_are_views_of_one_array(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=floats(64, 3)), [X])
    first, second = data.batches()
    assert first.feed["x"].base is not None
    assert first.feed["x"].base is second.feed["x"].base


@given(n=st.integers(1, 80))
def test_the_first_n_samples_are_exactly_those(n: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    x = np.arange(180, dtype=np.float32).reshape(60, 3)
    data = open_dataset(save(tmp_path_factory.mktemp("first"), x=x), [X], batch_size=16)
    np.testing.assert_array_equal(gather(data.first(n)), x[:n])
    assert data.first(n).size == min(n, 60) == sum(batch.samples for batch in data.batches(n))


def test_the_first_n_of_fixed_batches_are_whole_batches(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=floats(32, 3)), [TensorSpec("x", FLOAT, (8, 3))])
    assert [data.first(n).size for n in (1, 8, 15, 16, 100)] == [8, 8, 8, 16, 32]


def test_samples_come_in_batches_of_any_size_where_the_model_takes_them(tmp_path: Path) -> None:
    x = floats(21, 3)
    data = open_dataset(save(tmp_path, x=x), [X], batch_size=16).first(20).batched(6)
    assert [batch.samples for batch in data.batches()] == [6, 6, 6, 2]
    np.testing.assert_array_equal(gather(data), x[:20])
    fixed = open_dataset(save(tmp_path, x=x), [TensorSpec("x", FLOAT, (8, 3))])
    assert [batch.samples for batch in fixed.batched(6).batches()] == [8, 8]


def test_an_axis_in_front_makes_each_sample_a_complete_feed(tmp_path: Path) -> None:
    arrays = {"input": floats(6, 1, 512), "state": floats(6, 2, 1, 4)}
    scalar_each = open_dataset(save(tmp_path, **arrays, sr=np.full(6, 16000)), STATEFUL)
    scalar_for_all = open_dataset(save(tmp_path, **arrays, sr=np.int64(16000)), STATEFUL)
    for data in (scalar_each, scalar_for_all):
        assert data.size == 6
        for index, batch in enumerate(data.batches()):
            assert batch.feed["sr"].shape == ()
            assert batch.feed["sr"] == 16000
            np.testing.assert_array_equal(batch.feed["state"], arrays["state"][index])


def test_labels_follow_complete_feeds(tmp_path: Path) -> None:
    x = floats(4, 2, 3)
    one_each = open_dataset(save(tmp_path, x=x, labels=np.arange(4)), [X])
    one_a_row = open_dataset(save(tmp_path, x=x, labels=np.arange(8).reshape(4, 2)), [X])
    assert [batch.labels.tolist() for batch in one_each.batches()] == [[0], [1], [2], [3]]
    assert [batch.labels.tolist() for batch in one_a_row.batches()] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_states_without_an_axis_in_front_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path, input=floats(6, 512), state=floats(2, 6, 4), sr=np.int64(8000))
    assert "one more axis in front" in refusal(path, *STATEFUL)


def test_one_array_for_one_input_needs_no_matching_name(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, images=floats(2, 3), labels=np.zeros(2, int)), [X])
    assert gather(data).shape == (2, 3)
    assert data.notes == ("The array 'images' was used for the input 'x'.",)


def test_an_input_that_is_called_labels_is_an_input(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, labels=floats(2, 3)), [TensorSpec("labels", FLOAT, ("N", 3))])
    assert not data.labelled
    assert gather(data, "labels").shape == (2, 3)


def test_names_that_do_not_match_are_refused_with_the_nearest(tmp_path: Path) -> None:
    two = (TensorSpec("input_ids", FLOAT, ("N", 3)), TensorSpec("mask", FLOAT, ("N", 3)))
    text = refusal(save(tmp_path, inputs_ids=floats(2, 3), mask=floats(2, 3)), *two)
    assert "'inputs_ids'" in text
    assert "Did you mean 'input_ids'?" in text
    assert "'mask' is missing" in refusal(save(tmp_path, input_ids=floats(2, 3)), *two)
    assert "Did you mean 'labels'?" in refusal(save(tmp_path, x=floats(2, 3), label=np.zeros(2)), X)


def test_shapes_that_do_not_fit_are_refused_with_axis_and_sizes(tmp_path: Path) -> None:
    image = TensorSpec("x", FLOAT, ("N", 3, 8, 4))
    assert "axis 1 is 5 instead of 3" in refusal(save(tmp_path, x=floats(2, 5)), X)
    assert "[2, 3, 8, 4, 1, 1], the model takes [N, 3, 8, 4]" in refusal(save(tmp_path, x=floats(2, 3, 8, 4, 1, 1)), image)
    assert "transpose" in refusal(save(tmp_path, x=floats(2, 8, 4, 3)), image)


def test_one_symbol_has_one_size_but_unnamed_dimensions_are_free(tmp_path: Path) -> None:
    def pair(symbol: str | None) -> tuple[TensorSpec, TensorSpec]:
        return TensorSpec("a", FLOAT, ("N", symbol)), TensorSpec("b", FLOAT, ("N", symbol))

    path = save(tmp_path, a=floats(2, 5), b=floats(2, 6))
    assert "T is 6 here and 5 in the input 'a'" in refusal(path, *pair("T"))
    assert open_dataset(path, pair("?")).size == open_dataset(path, pair(None)).size == 2
    assert "differ in the number of samples" in refusal(save(tmp_path, a=floats(2, 5), b=floats(3, 5)), *pair("T"))


@pytest.mark.parametrize(
    ("given", "takes"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("uint8", "float32"),
        ("int64", "int32"),
        ("int16", "int64"),
        ("bool", "int64"),
    ],
)
def test_casts_that_keep_every_value_are_made_and_told(tmp_path: Path, given: str, takes: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(given)
    data = open_dataset(save(tmp_path, x=values), [TensorSpec("x", np.dtype(takes), ("N", 3))])
    assert gather(data).dtype == takes
    np.testing.assert_array_equal(gather(data), values.astype(takes))
    assert data.notes == (f"Input 'x': {given} was cast to {takes}.",)


@pytest.mark.parametrize(
    ("values", "takes", "said"),
    [
        (np.array([[1, 2, 3], [4, 2**40, 6]]), "int32", "value 1099511627776 does not fit the model's int32"),
        (np.array([[1, 2, 3], [4, 5, -1]]), "uint64", "value -1 does not fit"),
        (np.array([[1, 2, 3], [4, 2**24 + 1, 6]]), "float32", "value 16777217 does not fit"),
        (np.array([[1, 2, 3], [4, 1e300, 6]]), "float32", "value 1e+300 does not fit"),
        (np.array([[1.0, 2, 3], [4, 5, 6]]), "int64", "no cast is safe"),
        (np.array([[1, 2, 3j], [4, 5, 6]]), "float32", "no cast is safe"),
        (np.array([["a", "b", "c"]]), "float32", "no cast is safe"),
        (np.array([[1.0, 2, 3], [4, 5, 6]]), "bool", "no cast is safe"),
    ],
)
def test_casts_that_would_change_a_value_are_refused(tmp_path: Path, values: np.ndarray, takes: str, said: str) -> None:
    text = refusal(save(tmp_path, x=values), TensorSpec("x", np.dtype(takes), ("N", 3)))
    assert said in text
    assert "input 'x'" in text
    assert "sample 1" in text or "no cast" in said


def test_other_byte_orders_and_types_saved_as_raw_bytes_are_read(tmp_path: Path) -> None:
    import ml_dtypes

    swapped = open_dataset(save(tmp_path, x=np.ones((2, 3), ">f4")), [X])
    assert gather(swapped).dtype == FLOAT
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    raw = open_dataset(save(tmp_path, x=np.full((2, 3), 1.5, bfloat16)), [TensorSpec("x", bfloat16, ("N", 3))])
    assert gather(raw).dtype == bfloat16
    assert gather(raw).astype(float).tolist() == [[1.5] * 3] * 2


def test_text_is_read_for_text_inputs(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=np.array(["a", "bc"])), [TensorSpec("x", np.dtype(object), ("N",))])
    assert gather(data).tolist() == ["a", "bc"]
    assert len(data.fingerprint) == 64


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_nan_and_infinities_are_refused_naming_the_sample(tmp_path: Path, value: float, word: str) -> None:
    x = floats(50, 3)
    x[37, 1] = value
    text = refusal(save(tmp_path, x=x), X)
    assert word in text
    assert "input 'x', sample 37" in text
    assert "data.npz" in text


def test_labels_must_be_numbers_and_as_many_as_samples(tmp_path: Path) -> None:
    x = floats(3, 3)
    assert "2 labels for 3 samples" in refusal(save(tmp_path, x=x, labels=np.zeros(2, int)), X)
    assert "not numbers" in refusal(save(tmp_path, x=x, labels=np.array(["a", "b", "c"])), X)
    assert "NaN" in refusal(save(tmp_path, x=x, labels=np.array([0.0, np.nan, 1.0])), X)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    assert "no samples" in refusal(save(tmp_path, x=floats(0, 3)), X)
    assert "missing" in refusal(save(tmp_path), X)
    (tmp_path / "empty").mkdir()
    assert "holds no data" in refusal(tmp_path / "empty", X)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    objects = np.array([Trap()], dtype=object)
    (tmp_path / "several").mkdir()
    for path in (save(tmp_path, x=objects), save(tmp_path / "several", x=objects).parent):
        assert "pickled" in refusal(path, X)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_npz_are_refused_by_name(tmp_path: Path) -> None:
    good = save(tmp_path, x=floats(50, 3)).read_bytes()
    np.save(tmp_path / "one.npy", floats(2, 3))
    for name, content, said in (
        ("empty.npz", b"", "empty"),
        ("garbage.npz", b"garbage" * 50, "not an .npz"),
        ("cut.npz", good[: len(good) // 2], "cannot be read"),
        ("flipped.npz", good[:200] + bytes(byte ^ 255 for byte in good[200:400]) + good[400:], "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        text = refusal(tmp_path / name, X)
        assert said in text
        assert name in text
    assert "np.savez" in refusal(tmp_path / "one.npy", X)
    with zipfile.ZipFile(tmp_path / "notes.npz", "w") as archive:
        archive.writestr("x", "not an array")
    assert "'x' in it is no array" in refusal(tmp_path / "notes.npz", X)
    assert "no such file" in refusal(tmp_path / "absent.npz", X)


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    x = floats(8, 3)
    one = open_dataset(save(tmp_path, "a.npz", x=x), [X])
    same = open_dataset(save(tmp_path, "b.npz", x=x), [X], batch_size=2)
    changed = x.copy()
    changed[7, 2] += 1
    other = open_dataset(save(tmp_path, "c.npz", x=changed), [X])
    labelled = open_dataset(save(tmp_path, "d.npz", x=x, labels=np.zeros(8, int)), [X])
    assert one.fingerprint == same.fingerprint
    assert len({data.fingerprint for data in (one, other, labelled, one.first(4))}) == 4


# --------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_npz_is_one_complete_feed_a_file(tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path, f"{index}.npz", input=floats(1, 10 + index), state=floats(2, 1, 4), sr=np.int64(index))
    data = open_dataset(tmp_path, STATEFUL)
    assert [int(batch.feed["sr"]) for batch in data.batches()] == [0, 1, 2]
    assert [batch.feed["input"].shape for batch in data.batches()] == [(1, 10), (1, 11), (1, 12)]
    assert [data.size, data.first(2).size] == [3, 2]


def test_feeds_in_a_folder_count_their_samples_and_labels(tmp_path: Path) -> None:
    for index, rows in enumerate((2, 3)):
        save(tmp_path, f"{index}.npz", x=floats(rows, 3).astype(np.float64), labels=np.full(rows, index))
    data = open_dataset(tmp_path, [X])
    assert data.size == 5
    assert [batch.labels.tolist() for batch in data.batches()] == [[0, 0], [1, 1, 1]]
    assert data.notes == ("Input 'x': float64 was cast to float32.",)


def test_a_wrong_shape_in_the_last_file_is_found_when_the_folder_is_opened(tmp_path: Path) -> None:
    save(tmp_path, "a.npz", x=floats(1, 3))
    save(tmp_path, "b.npz", x=floats(1, 4))
    with pytest.raises(DataError, match=r"b\.npz, input 'x'.*axis 1 is 4"):
        open_dataset(tmp_path, [X])


def test_nan_in_the_last_file_is_found_as_it_streams(tmp_path: Path) -> None:
    save(tmp_path, "a.npz", x=floats(1, 3))
    save(tmp_path, "b.npz", x=np.full((1, 3), np.nan, np.float32))
    data = open_dataset(tmp_path, [X])
    with pytest.raises(DataError, match=r"b\.npz, input 'x': a value is NaN"):
        list(data.batches())


def test_labels_in_some_files_only_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "a.npz", x=floats(1, 3), labels=np.zeros(1, int))
    save(tmp_path, "b.npz", x=floats(1, 3))
    assert "some feeds have labels" in refusal(tmp_path, X)


def test_a_folder_with_two_forms_of_data_is_refused(tmp_path: Path) -> None:
    save(tmp_path, x=floats(1, 3))
    (tmp_path / "cat.jpg").write_bytes(b"")
    assert ".npz files and images" in refusal(tmp_path, X)


def test_images_options_for_other_data_are_told_not_used(tmp_path: Path) -> None:
    data = open_dataset(save(tmp_path, x=floats(1, 3)), [X], images="crop=224")
    assert "--images was not used" in data.notes[-1]


def write_test_data(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        (folder / f"input_{index}.pb").write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())
    (folder / "output_0.pb").write_bytes(b"not looked at")


def test_onnx_test_data_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for index in range(11):
        write_test_data(tmp_path / f"test_data_set_{index}", floats(1, 8), floats(2, 1, 4), np.array(index))
    data = open_dataset(tmp_path, STATEFUL)
    assert [int(batch.feed["sr"]) for batch in data.batches()] == list(range(11))
    assert open_dataset(tmp_path / "test_data_set_3", STATEFUL).size == 1


def test_onnx_test_data_that_is_not_tensors_is_refused(tmp_path: Path) -> None:
    write_test_data(tmp_path / "few" / "test_data_set_0")
    assert "0 files input_K.pb for 1 inputs" in refusal(tmp_path / "few", X)
    sequence = onnx.numpy_helper.from_list([floats(1, 3)])
    for name, content, said in (("seq", sequence.SerializeToString(), "a sequence"), ("bad", b"\xff\xff\xff", "not a tensor")):
        write_test_data(tmp_path / name / "test_data_set_0", floats(1, 3))
        (tmp_path / name / "test_data_set_0" / "input_0.pb").write_bytes(content)
        text = refusal(tmp_path / name, X)
        assert said in text
        assert "input_0.pb" in text


# ------------------------------------------------------------------------------------------------------------- functions

FUNCTIONS = """
import numpy as np

def feeds():
    for index in range(3):
        yield {"x": np.full((2, 3), index, np.float32)}

def labelled():
    return [(feed, [index, index]) for index, feed in enumerate(feeds())]

def random():
    rng = np.random.default_rng()
    yield {"x": rng.standard_normal((1, 3), np.float32)}

def nothing():
    return []

def fails():
    yield {"x": np.ones((1, 3), np.float32)}
    raise KeyError("column")

def arrays():
    yield np.ones((1, 3), np.float32)

def nan():
    yield {"x": np.ones((1, 3), np.float32)}
    yield {"x": np.full((1, 3), np.nan, np.float32)}

number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"feeds_of_{request.node.name.split('[')[0]}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # restores sys.path afterwards
    importlib.invalidate_caches()
    return name


def test_a_function_beside_the_user_yields_feeds(module: str) -> None:
    data = open_dataset(f"{module}:feeds", [X])
    assert [data.size, data.labelled] == [6, False]
    assert gather(data)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert gather(data).tolist() == gather(data).tolist()
    assert data.first(3).size == 2
    labelled = open_dataset(f"{module}:labelled", [X])
    assert [batch.labels.tolist() for batch in labelled.batches()] == [[0, 0], [1, 1], [2, 2]]
    assert labelled.fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("random", "the same each time"),
        ("nothing", "nothing was yielded"),
        ("fails", "feed 1: raised KeyError: 'column'"),
        ("arrays", "the feed is ndarray, not a dict"),
        ("nan", "feed 1, input 'x': a value is NaN"),
        ("feedz", "Did you mean 'feeds'?"),
        ("number", "not a function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_with_the_reason(module: str, function: str, said: str) -> None:
    assert said in refusal(f"{module}:{function}", X)


def test_a_module_that_cannot_be_imported_is_refused() -> None:
    assert "ModuleNotFoundError" in refusal("no_such_module_at_all:feeds", X)

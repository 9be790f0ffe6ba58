"""Models run on made-up inputs: sizes and integer ranges come from the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import model as models
from graphopt import registry, targets
from graphopt.contracts import Feed
from graphopt.dataset import Dataset
from graphopt.dataset.generate import generate
from graphopt.errors import DataError, UsageError

from helpers import from_text, run, small_cnn


def model(text: str) -> ir.Model:
    return ir.from_proto(from_text(text))


def feeds(data: Dataset) -> list[Feed]:
    return [batch.feed for batch in data.batches()]


def values(data: Dataset, name: str) -> np.ndarray:
    return np.concatenate([feed[name].reshape(-1) for feed in feeds(data)])


def identity(declared: str, name: str = "x") -> ir.Model:
    return model(f"agraph ({declared} {name}) => ({declared} y) {{ y = Identity({name}) }}")


def test_samples_are_single_marked_as_generated_and_repeatable() -> None:
    cnn = ir.from_proto(small_cnn())
    data = generate(cnn, samples=5)
    assert (data.size, data.generated, data.labelled) == (5, True, False)
    assert [feed["x"].shape for feed in feeds(data)] == [(1, 3, 8, 8)] * 5
    assert data.notes == ("Sizes of generated inputs: N = 1.",)
    np.testing.assert_array_equal(values(data, "x"), values(generate(cnn, samples=5), "x"))
    assert data.fingerprint == generate(cnn, samples=5).fingerprint != generate(cnn, samples=5, seed=1).fingerprint
    assert not np.array_equal(feeds(data)[0]["x"], feeds(data)[1]["x"])
    assert abs(values(data, "x").mean()) < 0.2
    assert 0.8 < values(data, "x").std() < 1.2


def test_a_fixed_batch_is_filled() -> None:
    data = generate(ir.from_proto(small_cnn(batch=4)), samples=6)
    assert [batch.samples for batch in data.batches()] == [4, 4]
    assert data.size == 8


def test_one_symbol_gets_one_size_in_all_inputs() -> None:
    two = model("agraph (float[N, T, 4] a, float[N, 4, T] b) => (float[N, T, T] y) { y = MatMul(a, b) }")
    for feed in feeds(generate(two, samples=2)):
        run(two, feed)
        assert feed["a"].shape[1] == feed["b"].shape[2]


def test_an_expression_follows_its_symbols() -> None:
    cache = model("agraph (float[batch, past] a, float[batch, m] b) => (float[batch, k] y) { y = Concat <axis = 1> (a, b) }")
    cache.graph.inputs[1].shape = ir.Shape([ir.SymbolicDim("batch"), ir.SymbolicDim("past + 1")])
    (feed, *_) = feeds(generate(cache, dims={"past": 7}))
    assert [feed["a"].shape, feed["b"].shape] == [(1, 7), (1, 8)]
    decoder = model("""
        agraph (int64[batch_size, sequence_length] ids, int64[batch_size, total_sequence_length] attention_mask,
                float[batch_size, 2, past_sequence_length, 8] past) => (int64[batch_size, sequence_length] y)
        { y = Identity(ids) }""")
    (feed, *_) = feeds(generate(decoder))
    assert feed["attention_mask"].shape[1] == feed["ids"].shape[1] + feed["past"].shape[2] == 32


def test_the_user_gives_sizes_by_symbol_or_by_axis() -> None:
    shape = "float[N, T, 8]"
    assert feeds(generate(identity(shape), dims={"T": 5, "N": 3}))[0]["x"].shape == (3, 5, 8)
    assert feeds(generate(identity(shape), dims={"x:1": 5}))[0]["x"].shape == (1, 5, 8)
    assert feeds(generate(identity("float[N, ?, 8]"), dims={"x:1": 0}))[0]["x"].shape == (1, 0, 8)
    for wrong, said in (({"S": 5}, "unknown dynamic dimension"), ({"T": -1}, "no size"), ({"T": 1, "x:1": 2}, "two sizes")):
        with pytest.raises(UsageError, match=said):
            generate(identity(shape), dims=wrong)
    with pytest.raises(UsageError):
        generate(identity(shape), dims={"x:2": 8})


def test_images_tokens_waveforms_and_states_get_sizes_of_their_kind() -> None:
    for declared, shape in (
        ("float[N, 3, H, W]", (1, 3, 224, 224)),
        ("float[?, ?, ?, 3]", (1, 224, 224, 3)),
        ("float[N, 3, a, a]", (1, 3, 224, 224)),
        ("int64[batch_size, sequence_length]", (1, 16)),
        ("float[N, S]", (1, 512)),
        ("float[2, ?, 128]", (2, 1, 128)),
        ("float[1, ?, 80]", (1, 16, 80)),
    ):
        assert feeds(generate(identity(declared)))[0]["x"].shape == shape


def test_sizes_are_tried_until_the_model_runs() -> None:
    seen: list[int] = []

    def runs(feed: Feed) -> bool:
        seen.append(feed["x"].shape[1])
        return feed["x"].shape[1] == 64

    data = generate(identity("float[N, T, 8]"), runs=runs)
    assert seen[-1] == 64 == feeds(data)[0]["x"].shape[1]
    assert len(seen) == len(set(seen)) > 1


def test_when_nothing_runs_the_user_is_asked_for_sizes() -> None:
    tries: list[Feed] = []

    def never(feed: Feed) -> bool:
        tries.append(feed)
        return False

    with pytest.raises(DataError, match="--dim T=64"):
        generate(identity("float[4, T, 8]"), runs=never)
    assert len(tries) <= 12
    with pytest.raises(DataError, match=r"does not run on generated inputs(.|\n)*--data"):
        generate(identity("float[4, 8]"), runs=never)


def test_indices_stay_within_their_table_wherever_they_pass() -> None:
    embedding = model("""
        agraph (int64[N, T] ids) => (float[N, A, B] y)
        <float[11, 2] table = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21}, int64[2] shape = {1, -1},
         int64 two = {2}, int64[1] axes = {0}>
        { narrow = Cast <to = 6> (ids)
          flat = Reshape(narrow, shape)
          more = Unsqueeze(flat, axes)
          small = Cast <to = 7> (more)
          shifted = Add(small, two)
          y = Gather(table, shifted) }""")
    data = generate(embedding, samples=40)
    for feed in feeds(data):
        run(embedding, feed)
    assert set(values(data, "ids")) == set(range(-2, 9))


def test_the_smallest_table_decides() -> None:
    two = model("""
        agraph (int64[N] i) => (float[N] y)
        <float[9] large = {0,1,2,3,4,5,6,7,8}, float[3] small = {0,1,2}>
        { a = Gather(large, i)
          b = Gather(small, i)
          y = Add(a, b) }""")
    assert set(values(generate(two, samples=60), "i")) == {0, 1, 2}


def test_an_index_into_another_input_stays_within_its_generated_size() -> None:
    pick = model("agraph (float[N, T, 4] x, int64[K] i) => (float[N, K, 4] y) { y = Gather <axis = 1> (x, i) }")
    data = generate(pick, dims={"T": 3, "K": 50})
    assert set(values(data, "i")) == {0, 1, 2}


def test_indices_are_followed_into_functions_and_bodies() -> None:
    function = model("""
        <ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        agraph (int64[N] i) => (float[N] y) <float[5] t = {0,1,2,3,4}> { y = local.look(t, i) }
        <domain: "local", opset_import: ["" : 20]> look (t, i) => (y) { y = Gather(t, i) }""")
    body = model("""
        agraph (int64[N] i, bool c) => (float[N] y) <float[5] t = {0,1,2,3,4}>
        { y = If (c) <then_branch = a () => (float[N] p) { p = Gather(t, i) },
                      else_branch = b () => (float[N] q) { q = Cast <to = 1> (i) }> }""")
    for each in (function, body):
        assert set(values(generate(each, samples=60), "i")) == set(range(5))


def test_a_switch_is_one_of_the_constants_it_is_compared_with() -> None:
    switch = model("""
        agraph (int64 rate, float[N, T] x) => (float[N, T] y) <int64 low = {8000}, int64 high = {16000}, bool yes = {1}>
        { is_low = Equal(rate, low)
          y = If (is_low) <then_branch = a () => (float[N, T] p) { p = Identity(x) },
                           else_branch = b () => (float[N, T] q) { is_high = Equal(rate, high)
                                                                   r = Cast <to = 1> (is_high)
                                                                   q = Mul(x, r) }> }""")
    assert set(values(generate(switch, samples=40), "rate")) == {8000, 16000}


def test_a_padding_token_that_is_compared_does_not_make_all_tokens_padding() -> None:
    padded = model("""
        agraph (int64[N, T] ids) => (float[N, T] y) <float[9] table = {0,1,2,3,4,5,6,7,8}, int64 pad = {0}>
        { a = Gather(table, ids)
          p = Equal(ids, pad)
          q = Cast <to = 1> (p)
          y = Add(a, q) }""")
    assert len(set(values(generate(padded), "ids"))) == 9


def test_masks_are_ones_bools_are_random_and_bytes_take_every_value() -> None:
    assert set(values(generate(identity("int64[N, T]", "attention_mask")), "attention_mask")) == {1}
    assert set(values(generate(identity("bool[N, T]")), "x")) == {False, True}
    assert set(values(generate(identity("int64[N, T]")), "x")) == {0, 1}
    pixels = values(generate(identity("uint8[N, 3, 16, 16]")), "x")
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert values(generate(identity("float16[N, 4]")), "x").dtype == np.float16


def test_text_cannot_be_made_up() -> None:
    with pytest.raises(DataError, match=r"input 'words': it takes text(.|\n)*--data"):
        generate(identity("string[N]", "words"))


ZOO = (
    "cifar_resnet20 cifar_resnet20_legacy cifar_resnet56 mobilenet_v1_025 squeezenet1_1 mobilenet_v2 mnist_8 nanodet_m "
    "silero_vad ppocr_cls gtcrn_simple stories260k"
)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO.split())
def test_every_zoo_model_runs_on_its_generated_inputs(zoo: Path, name: str) -> None:
    path = zoo / "models" / f"{name}.onnx"
    with registry.runtime("onnxruntime").open(path, targets.load("cpu")) as session:
        data = generate(models.load(path), samples=2, runs=lambda feed: bool(session.run(feed)))
        for batch in data.batches():
            for output in session.run(batch.feed).values():
                assert np.isfinite(output).all()


@pytest.mark.zoo
def test_a_language_model_gets_tokens_of_its_whole_vocabulary(zoo: Path) -> None:
    ids = values(generate(models.load(zoo / "models" / "stories260k.onnx"), samples=100), "ids")
    assert ids.min() >= 0
    assert 500 < ids.max() < 512

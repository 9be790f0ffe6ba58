"""Saving and loading: nothing is lost, nothing is half written, and no weights pass through memory."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import model
from graphopt.errors import ModelError, UsageError
from graphopt.model import reading, saving, writing

import random_graphs
from helpers import assert_same_outputs, from_text, run, small_cnn, write


def everywhere(elements: int = 400) -> onnx.ModelProto:
    """Weights of several types in initializers and Constants of a graph, of branches and of a function."""
    proto = from_text("""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        agraph (float[N] x, bool c) => (float[N] y, float[N] small) {
            k = Constant <value = float {1}> ()
            a = Add (x, w)
            b = local.more (a)
            y = If (c) <
                then_branch = then () => (float[N] t) { d = Cast <to = 1> (half) t = Mul (b, d) },
                else_branch = other () => (float[N] e) { q = Constant <value = float {1}> () e = Sub (k, q) }
            >
            scale = Constant <value = float {0.5}> ()
            small = DequantizeLinear (bits, scale)
        }
        <domain: "local", opset_import: ["" : 21]>
        more (x) => (y) { k = Constant <value = float {1}> () y = Add (x, k) }
    """)
    rng = np.random.default_rng(1)

    def floats(name: str, dtype: type = np.float32) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(rng.standard_normal(elements).astype(dtype), name)

    branches = {attribute.name: attribute.g for attribute in proto.graph.node[3].attribute}
    proto.graph.initializer.append(floats("w"))
    proto.graph.initializer.add(
        name="bits", data_type=onnx.TensorProto.INT4, dims=[elements], raw_data=rng.bytes((elements + 1) // 2)
    )
    proto.graph.node[0].attribute[0].t.CopyFrom(floats("k"))
    branches["then_branch"].initializer.append(floats("half", np.float16))
    branches["else_branch"].node[0].attribute[0].t.CopyFrom(floats("q"))
    proto.functions[0].node[0].attribute[0].t.CopyFrom(floats("k"))
    for dim in (info.type.tensor_type.shape.dim[0] for info in (proto.graph.input[0], *proto.graph.output)):
        dim.dim_value = elements
    return proto


def feeds() -> list[dict[str, np.ndarray]]:
    x = np.linspace(-1, 1, 400, dtype=np.float32)
    return [{"x": x, "c": np.array(chosen)} for chosen in (True, False)]


def assert_same_everywhere(a: onnx.ModelProto | Path, b: Path) -> None:
    for feed in feeds():
        assert_same_outputs(a, b, feed, rtol=0)


def data_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".data")


# ------------------------------------------------------------------------------------------------------ nothing is lost


def test_what_is_not_graph_survives(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.producer_name, proto.producer_version, proto.domain = "maker", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "about the model"
    proto.metadata_props.add(key="author", value="somebody")
    proto.opset_import.add(domain="com.microsoft", version=1)
    proto.graph.doc_string = "about the graph"
    proto.graph.node[0].doc_string = "about conv1"
    proto.graph.node[0].metadata_props.add(key="scope", value="/conv1")
    proto.graph.initializer[0].doc_string = "about w1"
    proto.graph.initializer[0].metadata_props.add(key="from", value="here")
    proto.graph.input[0].doc_string = "about x"
    proto.graph.value_info.add(name="w1", doc_string="about w1 as a value")
    annotation = proto.graph.quantization_annotation.add(tensor_name="c1")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    before = write(proto, tmp_path / "in.onnx")
    for external in ("never", "always"):
        after = onnx.load(model.save(model.load(before), tmp_path / "out.onnx", external).path)  # type: ignore[arg-type]
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
            assert getattr(after, field) == getattr(proto, field)
        assert after.metadata_props == proto.metadata_props
        assert after.opset_import == proto.opset_import
        assert after.graph.doc_string == proto.graph.doc_string
        assert after.graph.name == proto.graph.name
        assert after.graph.quantization_annotation == proto.graph.quantization_annotation
        assert after.graph.input == proto.graph.input
        assert after.graph.output == proto.graph.output
        assert after.graph.node == proto.graph.node
        assert after.graph.value_info[0].doc_string == "about w1 as a value"
        assert after.graph.initializer[0].doc_string == "about w1"
        assert after.graph.initializer[0].metadata_props == proto.graph.initializer[0].metadata_props


def described() -> onnx.ModelProto:
    """A model with what is said of graphs, nodes, values and tensors, and with attributes of many kinds."""
    proto = from_text("""<ir_version: 10, opset_import: ["" : 21, "own" : 1], producer_name: "maker">
        agraph (float[N, 4] x, seq(float[2]) s, optional(float) o, float[?] loose) => (float[N, 4] y, float[N, 4] z) {
            a = own.Op <i = 1, is = [1, 2], f = 0.5, fs = [0.5], s = "t", ss = ["u", "v"], t = float {1}> (x, , s)
            b = own.Op <i = 1, is = [1, 2], f = 0.5, fs = [0.5], s = "t", ss = ["u", "v"]> (a, o)
            y, , z, = own.Op (b, w, loose)
        }
    """)
    graph = proto.graph
    graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], float_data=[1, 2], doc_string="about w")
    for kind in (onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.INT32):
        graph.initializer.add(name=f"k{kind}", data_type=kind, dims=[2], int32_data=[0, 1])
    graph.initializer.add(name="strings", data_type=onnx.TensorProto.STRING, dims=[1], string_data=[b"text"])
    graph.initializer.add(name="loose", data_type=onnx.TensorProto.INT64, dims=[], int64_data=[3])
    for info in (graph.value_info.add(name="a"), graph.input[0], graph.output[0]):
        info.type.tensor_type.elem_type, info.doc_string = onnx.TensorProto.FLOAT, f"about {info.name}"
        info.type.tensor_type.shape.dim.add(denotation="DATA_CHANNEL")
    for owner in (proto, graph, graph.node[0], graph.value_info[0], graph.initializer[0], graph.output[0]):
        owner.metadata_props.add(key="scope", value="here")
    proto.doc_string, graph.doc_string, graph.node[1].doc_string, proto.model_version = "model", "graph", "node", 3
    return proto


@pytest.mark.parametrize("number", range(12))
def test_a_model_is_represented_as_the_library_represents_it(number: int, tmp_path: Path) -> None:
    proto = onnx.shape_inference.infer_shapes(random_graphs.model(number)) if number else described()
    loaded = model.load(write(proto, tmp_path / "in.onnx"))
    assert with_raw_data(ir.to_proto(loaded)) == with_raw_data(ir.to_proto(ir.from_proto(proto)))


@pytest.mark.parametrize("number", range(12))
def test_a_model_is_written_as_the_library_writes_it(number: int) -> None:
    protos = {0: described(), 1: everywhere()}
    loaded = ir.from_proto(protos.get(number) or onnx.shape_inference.infer_shapes(random_graphs.model(number)))
    if number == 1:
        loaded.functions[("local", "more", "")].inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        loaded.ir_version = 9  # types of functions' values are in the main graph then
    ours, theirs = writing.message(loaded, lambda _owner: None), ir.to_proto(loaded)
    assert as_text(ours) == as_text(theirs)
    assert len(ours.SerializeToString()) <= len(theirs.SerializeToString())


def as_text(proto: onnx.ModelProto) -> str:
    """A model's message as text, without types of initializers, which only say again what their tensors say."""
    with_raw_data(proto)
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        tensors = {tensor.name for tensor in graph.initializer}
        kept = [info for info in graph.value_info if info.name not in tensors or info.doc_string or info.metadata_props]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        waiting += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return str(proto)


def with_raw_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Small tensors in one form; their metadata, which the library writes twice for some, once."""
    constants = [attribute.t for node in proto.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*proto.graph.initializer, *constants):
        if tensor.data_type != onnx.TensorProto.STRING:
            same = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
            same.doc_string = tensor.doc_string
            same.metadata_props.extend(tensor.metadata_props[:1])
            tensor.CopyFrom(same)
    return proto


@pytest.mark.parametrize("external", ["never", "always"])
@pytest.mark.parametrize("in_place", [False, True])
def test_weights_survive_wherever_they_are(
    external: str, in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_place:  # as with large files: weights are read from the file when they are asked for
        monkeypatch.setattr(reading, "IN_PLACE_BYTES", 0)
    proto = everywhere()
    before = write(proto, tmp_path / "in.onnx")
    saved = model.save(model.load(before), tmp_path / "out.onnx", external)  # type: ignore[arg-type]
    assert (saved.data_path is not None) == (external == "always")
    assert_same_everywhere(proto, saved.path)
    again = model.load(saved.path)
    model.check(again)
    for (name, tensor), (_, other) in zip(model.weights(model.load(before)), model.weights(again), strict=True):
        assert tensor.dtype == other.dtype
        assert tensor.numpy().shape == other.numpy().shape
        assert tensor.numpy().tobytes() == other.numpy().tobytes(), name
        assert tensor.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("axes", [(2, 1, 0), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.BOOL])
def test_a_transposed_weight_is_written_in_its_order(axes: tuple[int, ...], dtype: ir.DataType, tmp_path: Path) -> None:
    loaded = model.load(write(everywhere(), tmp_path / "in.onnx"))
    array = np.arange(70 * 3 * 130).reshape(70, 3, 130).astype(dtype.numpy()).transpose(axes)[:, ::-1]
    loaded.graph.initializers.add(ir.Value(name="turned", const_value=ir.Tensor(array, dtype)))
    again = model.load(model.save(loaded, tmp_path / "out.onnx").path)
    written = dict(model.weights(again))["turned"]
    assert (written.dtype, written.tobytes()) == (dtype, array.tobytes())


def test_a_small_model_is_written_byte_by_byte_as_protobuf_would(tmp_path: Path) -> None:
    saved = model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), tmp_path / "out.onnx")
    data = saved.path.read_bytes()
    assert len(onnx.ModelProto.FromString(data).SerializeToString()) == len(data) == saved.bytes
    assert hashlib.sha256(data).hexdigest() == model.file_sha256(saved.path)


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    source = write(everywhere(), tmp_path / "in.onnx")
    for external in ("never", "always"):
        one = model.save(model.load(source), tmp_path / "one.onnx", external)  # type: ignore[arg-type]
        content = one.path.read_bytes()
        two = model.save(model.load(source), tmp_path / "one.onnx", external)  # type: ignore[arg-type]
        assert two == one
        assert two.path.read_bytes() == content
        assert len(data_files(tmp_path)) == (external == "always")


def test_initializers_get_no_types_that_repeat_their_tensors(tmp_path: Path) -> None:
    proto = small_cnn()
    saved = model.save(model.load(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx")
    assert not onnx.load(saved.path).graph.value_info


def test_quantized_values_get_no_types_that_repeat_what_they_are_made_of(tmp_path: Path) -> None:
    proto = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[N, 3] x) => (float[N, 3] y)
        <float s = {0.1}, uint8 z = {128}, uint8[N, 3] q, float[N, 3] d, float[M, 3] e> {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            e = DequantizeLinear (q, s, z)
            y = Add (d, e)
        }""")
    saved = model.save(model.load(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx")
    assert [info.name for info in onnx.load(saved.path).graph.value_info] == ["e"], "what says something else stays"
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(4, 3)
    assert_same_outputs(proto, onnx.load(saved.path), {"x": x})


# -------------------------------------------------------------------------------------------------- where weights are put


def test_weights_are_embedded_until_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model.load(write(everywhere(), tmp_path / "in.onnx"))
    assert model.save(loaded, tmp_path / "out.onnx").data_path is None
    monkeypatch.setattr(saving, "EMBED_LIMIT_BYTES", model.weight_bytes(loaded))
    saved = model.save(loaded, tmp_path / "out.onnx")
    assert saved.data_path is not None
    assert re.fullmatch(r"out\.[0-9a-f]{8}\.data", saved.data_path.name)
    assert saved.bytes == saved.path.stat().st_size + saved.data_path.stat().st_size == model.file_bytes(saved.path)
    assert model.save(loaded, tmp_path / "out.onnx", "never").data_path is None
    assert data_files(tmp_path) == []


def test_external_weights_begin_where_a_runtime_can_map_them(tmp_path: Path) -> None:
    proto = from_text("agraph (float[1] x) => (float[1] y) { a = Add (x, z) b = ReduceSum <keepdims = 0> (a) y = Add (x, b) }")
    for name, size in (("z", 300), ("large", 1 << 18)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(size, np.float32), name))
    saved = model.save(model.load(write(proto, tmp_path / "in.onnx")), tmp_path / "out.onnx", "always", data_name="w.bin")
    assert saved.data_path == tmp_path / "w.bin"
    offsets = [
        int(entry.value)
        for tensor in onnx.load(saved.path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets == [0, 4096]


def test_a_tensor_that_two_places_share_is_stored_once(tmp_path: Path) -> None:
    loaded = model.load(write(small_cnn(channels=32), tmp_path / "in.onnx"))
    weights = loaded.graph.initializers
    copy = ir.Value(name="w2.again", const_value=weights["w2"].const_value, type=weights["w2"].type, shape=weights["w2"].shape)
    alone = model.save(loaded, tmp_path / "alone.onnx", "always")
    loaded.graph.register_initializer(copy)
    both = model.save(loaded, tmp_path / "both.onnx", "always")
    assert both.data_path is not None
    assert alone.data_path is not None
    assert both.data_path.stat().st_size == alone.data_path.stat().st_size
    tied = model.save(model.load(both.path), tmp_path / "tied.onnx", "always")
    assert tied.bytes == both.bytes
    assert model.load(tied.path).graph.initializers["w2.again"].const_value.nbytes == 32 * 32 * 9 * 4  # type: ignore[union-attr]


def test_weights_over_2_gb_are_not_embedded(tmp_path: Path) -> None:
    def nobody_reads_them() -> ir.TensorProtocol:
        raise AssertionError

    loaded = model.load(write(small_cnn(), tmp_path / "in.onnx"))
    huge = ir.LazyTensor(nobody_reads_them, ir.DataType.FLOAT, ir.Shape([600_000_000]), name="huge")
    loaded.graph.register_initializer(ir.Value(name="huge", const_value=huge))
    with pytest.raises(UsageError, match=r"would take 2\.4 GB"):
        model.save(loaded, tmp_path / "out.onnx", "never")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


# ------------------------------------------------------------------------------------------- replaced as a whole or not


@pytest.mark.parametrize("data_name", [None, "w.bin"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_replaces_the_files_that_it_lives_in(
    data_name: str | None, in_place: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_place:
        monkeypatch.setattr(reading, "IN_PLACE_BYTES", 0)
    proto = everywhere()
    out = tmp_path / "out.onnx"
    model.save(model.load(write(proto, out)), out, "always", data_name)
    loaded = model.load(out)
    clone = model.clone(loaded)
    first = [tensor.tobytes() for _, tensor in model.weights(loaded)]
    rest = list(loaded.graph.initializers.values())
    loaded.graph.initializers.clear()  # a new weight in front, so that all others move
    loaded.graph.initializers.add(ir.Value(name="extra", const_value=ir.tensor(np.ones(5000, np.float32))))
    for value in rest:
        loaded.graph.initializers.add(value)
    for external in ("always", "never", "always"):
        saved = model.save(loaded, out, external, data_name if external == "always" else None)  # type: ignore[arg-type]
        assert_same_everywhere(proto, saved.path)
    # what was loaded before still reads what it was loaded from
    assert [tensor.tobytes() for _, tensor in model.weights(clone)] == first
    assert model.save(clone, tmp_path / "clone.onnx").path.exists()


def test_the_old_data_file_goes_only_when_it_is_the_models_own(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    others = [tmp_path / name for name in ("out.12345678.data", "other.12345678.data", "out.data")]
    for path in others:
        path.write_bytes(b"not ours")
    first = model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), out, "always")
    assert first.data_path is not None
    second = model.save(model.load(write(everywhere(500), tmp_path / "in.onnx")), out, "always")
    assert second.data_path is not None
    assert not first.data_path.exists()
    assert {*others, second.data_path, out, tmp_path / "in.onnx"} == set(tmp_path.iterdir())
    model.save(model.load(out), out, "always", data_name="w.bin")
    model.save(model.load(out), out, "never")
    assert (tmp_path / "w.bin").exists()


def test_weights_that_changed_after_loading_are_not_read(tmp_path: Path) -> None:
    saved = model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), tmp_path / "out.onnx", "always")
    assert saved.data_path is not None
    loaded = model.load(saved.path)
    saved.data_path.write_bytes(bytes(saved.data_path.stat().st_size))
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    with pytest.raises(ModelError, match="changed or removed since the model was loaded"):
        tensor.numpy()
    with pytest.raises(ModelError, match="changed or removed"):
        model.save(loaded, tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx").exists()


@pytest.mark.parametrize("external", ["never", "always"])
def test_a_full_disk_leaves_the_old_output_and_nothing_else(external: str, tmp_path: Path) -> None:
    source = write(everywhere(100_000), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    model.save(model.load(write(everywhere(), tmp_path / "old.onnx")), out, "always")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    script = f"""
        import resource
        from graphopt import model
        from graphopt.errors import UsageError
        loaded = model.load({str(source)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            model.save(loaded, {str(out)!r}, {external!r})
        except UsageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_rename_that_fails_leaves_the_old_output_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), out, "always")
    other = model.load(write(everywhere(500), tmp_path / "in.onnx"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    replace = saving.os.replace

    def fails_for_the_model(source: Path, target: Path) -> None:
        if target == out:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(saving.os, "replace", fails_for_the_model)
    with pytest.raises(UsageError, match="Input/output error"):
        model.save(other, out, "always")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "in.onnx")
    loaded = model.load(source)
    with pytest.raises(UsageError, match="folder does not exist"):
        model.save(loaded, tmp_path / "missing" / "out.onnx")
    with pytest.raises(UsageError, match="folder does not exist"):
        model.save(loaded, source / "out.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="not a file"):
        model.save(loaded, tmp_path / "folder.onnx")
    for name in ("../w.bin", "", "out.onnx", "/w.bin"):
        with pytest.raises(UsageError, match="plain name"):
            model.save(loaded, tmp_path / "out.onnx", "always", data_name=name)


def test_a_model_that_was_written_elsewhere_is_moved_with_its_data(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    out = tmp_path / "out.onnx"
    old = model.save(model.load(write(everywhere(500), tmp_path / "in.onnx")), out, "always")
    new = model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), tmp_path / "work" / "out.onnx", "always")
    assert old.data_path is not None
    assert new.data_path is not None
    saving.move(new.path, out)
    assert {path.name for path in tmp_path.iterdir()} == {"in.onnx", "out.onnx", new.data_path.name, "work"}
    assert not list((tmp_path / "work").iterdir())
    assert_same_everywhere(everywhere(), out)


def test_permissions_of_the_replaced_file_stay(tmp_path: Path) -> None:
    out = write(small_cnn(), tmp_path / "out.onnx")
    out.chmod(0o640)
    saved = model.save(model.load(write(everywhere(), tmp_path / "in.onnx")), out, "always")
    assert saved.data_path is not None
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(saved.data_path.stat().st_mode) == 0o640


# ---------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("external", ["never", "always"])
def test_memory_does_not_grow_with_the_weights(external: str, tmp_path: Path) -> None:
    elements = 40_000_000
    proto = from_text("agraph (float[40000000] x) => (float[40000000] y) { y = Add (x, w) }")
    weight = proto.graph.initializer.add(name="w", data_type=1, dims=[elements], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * elements)
    script = f"""
        import json, resource
        from graphopt import model
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        loaded = model.load({str(write(proto, tmp_path / "in.onnx"))!r})
        model.check(loaded)
        saved = model.save(loaded, {str(tmp_path / "out.onnx")!r}, {external!r})
        again = model.load(saved.path)
        model.save(again, saved.path, {external!r})
        print(json.dumps([saved.bytes, (peak() - before) * 1024]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    size, grown = json.loads(done.stdout)
    assert size > 4 * elements
    assert grown < 40_000_000


# -------------------------------------------------------------------------------------------------- looking at a model


def test_counts(tmp_path: Path) -> None:
    loaded = model.load(write(everywhere(), tmp_path / "in.onnx"))
    assert model.count_nodes(loaded) == 8
    assert sum(1 for _ in model.nodes(loaded)) == 12
    assert model.opset(loaded) == 21
    assert sorted(name for name, _ in model.weights(loaded)) == ["bits", "half", "k", "k", "q", "scale", "w"]
    assert model.parameters(loaded) == 6 * 400 + 1
    assert model.weight_bytes(loaded) == 4 * 1600 + 800 + 200 + 4


def test_shapes_and_strings_are_no_parameters(tmp_path: Path) -> None:
    proto = from_text("agraph (float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { y = Reshape (x, s) }")
    proto.graph.initializer.add(name="words", data_type=onnx.TensorProto.STRING, dims=[2], string_data=[b"one", b"three"])
    loaded = model.load(write(proto, tmp_path / "in.onnx"))
    assert model.parameters(loaded) == 0
    assert model.weight_bytes(loaded) == 16 + 8
    again = model.load(model.save(loaded, tmp_path / "out.onnx", "always").path)
    assert again.graph.initializers["words"].const_value.numpy().tolist() == [b"one", b"three"]  # type: ignore[union-attr]


def test_specs_are_the_users_contract(tmp_path: Path) -> None:
    proto = from_text("""
        agraph (float[N, 3] x, float[3] bias, string[M] words, bfloat16 scale) => (float[N, 3] y, string[M] same) {
            y = Add (x, bias)
            same = Identity (words)
        }
    """)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "bias"))
    proto.graph.input[0].type.tensor_type.shape.dim.add()
    proto.graph.output[0].type.tensor_type.shape.dim.add()
    loaded = model.load(write(proto, tmp_path / "in.onnx"))
    specs = model.input_specs(loaded)
    assert [(spec.name, spec.shape) for spec in specs] == [("x", ("N", 3, None)), ("words", ("M",)), ("scale", ())]
    assert [spec.dtype.name for spec in specs] == ["float32", "object", "bfloat16"]
    assert [spec.name for spec in model.output_specs(loaded)] == ["y", "same"]


def test_a_clone_shares_tensors_but_no_nodes(tmp_path: Path) -> None:
    loaded = model.load(write(small_cnn(), tmp_path / "in.onnx"))
    clone = model.clone(loaded)
    clone.graph.remove(list(clone.graph)[-1:], safe=False)
    assert model.count_nodes(loaded) == 8
    assert clone.graph.initializers["w1"].const_value is loaded.graph.initializers["w1"].const_value


def test_a_graph_that_a_pass_broke_fails_the_check(tmp_path: Path) -> None:
    loaded = model.load(write(small_cnn(), tmp_path / "in.onnx"))
    model.check(loaded)
    loaded.graph.node("relu1").op_type = "Reloo"
    with pytest.raises(ModelError, match=r"node 'relu1' \(Reloo\)"):
        model.check(loaded)


# ---------------------------------------------------------------------------------------------------------------- the zoo

_DIMS = {
    "ppocr_cls": {"x": (1, 3, 48, 192)},
    "silero_vad": {"input": (1, 512), "state": (2, 1, 128)},
    "stories260k": {"ids": (1, 9)},
}
_ZOO = [
    *("cifar_resnet20", "cifar_resnet20_legacy", "cifar_resnet56", "gtcrn_simple", "mnist_8", "mobilenet_v1_025"),
    *("mobilenet_v2", "nanodet_m", "ppocr_cls", "silero_vad", "squeezenet1_1", "stories260k"),
]


@pytest.mark.zoo
@pytest.mark.parametrize("name", _ZOO)
def test_zoo_models_stay_what_they_are(name: str, zoo: Path, tmp_path: Path) -> None:
    source = zoo / "models" / f"{name}.onnx"
    loaded = model.load(source)
    assert loaded.meta[model.NOTES] == []
    model.check(loaded)
    rng = np.random.default_rng(0)
    feed = {}
    for spec in model.input_specs(loaded):
        shape = _DIMS.get(name, {}).get(spec.name) or tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape or ())
        floating = np.issubdtype(spec.dtype, np.floating)
        feed[spec.name] = (rng.standard_normal(shape) if floating else rng.integers(1, 100, shape)).astype(spec.dtype)
    if "sr" in feed:
        feed["sr"] = np.array(16000, np.int64)
    expected = run(source, feed)
    for external in ("never", "always"):
        saved = model.save(loaded, tmp_path / "out.onnx", external)  # type: ignore[arg-type]
        assert model.load(saved.path).meta[model.NOTES] == []
        for output, array in run(saved.path, feed).items():
            np.testing.assert_array_equal(array, expected[output], err_msg=output)
    assert saved.data_path is not None

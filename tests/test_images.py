"""Images reach the model as ``--images`` says: checked against hand-made pixels and against known accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graphopt import metrics, registry, targets
from graphopt.contracts import TensorSpec
from graphopt.dataset import Dataset, open_dataset
from graphopt.errors import DataError, MissingError, UsageError

FLOAT = np.dtype(np.float32)
RNG = np.random.default_rng(0)


def spec(*shape: int | str | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec("x", np.dtype(dtype), shape)


NCHW = spec("N", 3, 8, 8)


def picture(path: Path, height: int = 8, width: int = 8, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = RNG.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def only(folder: Path, of: TensorSpec, options: str | None = None) -> np.ndarray:
    (batch,) = open_dataset(folder, [of], images=options).batches()
    return batch.feed["x"][0]


def labels(data: Dataset) -> list[int]:
    return [int(label) for batch in data.batches() for label in batch.labels]


def test_the_formula_is_pixel_over_scale_minus_mean_over_std(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png").astype(np.float64)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    got = only(tmp_path, NCHW, "scale=255,mean=0.1:0.2:0.3,std=0.5:0.6:0.7")
    np.testing.assert_allclose(got, ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    assert got.dtype == FLOAT


def test_bgr_takes_its_mean_in_its_own_order(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png").astype(np.float32)
    got = only(tmp_path, NCHW, "channels=bgr,scale=1,mean=104:117:123")
    np.testing.assert_array_equal(got, (pixels[:, :, ::-1] - [104, 117, 123]).transpose(2, 0, 1))


def test_layout_and_gray_come_from_the_models_input(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", mode="L").astype(np.float32)
    np.testing.assert_array_equal(only(tmp_path, spec(1, 8, 8, 1), "scale=1")[:, :, 0], pixels)
    np.testing.assert_array_equal(only(tmp_path, spec(1, 1, 8, 8), "scale=1")[0], pixels)
    assert only(tmp_path, spec("N", 8, 8, 3)).shape == (8, 8, 3)
    assert only(tmp_path, spec(None, None, None, None), "layout=nhwc").shape == (8, 8, 3)


def test_integer_inputs_get_the_pixels_as_they_are(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    got = only(tmp_path, spec("N", 3, 8, 8, dtype="uint8"))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got.transpose(1, 2, 0), pixels)


def test_crop_alone_cuts_the_centre_and_resizes_nothing(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 12, 20).astype(np.float32)
    got = only(tmp_path, NCHW, "crop=8,scale=1")
    np.testing.assert_array_equal(got.transpose(1, 2, 0), pixels[2:10, 6:14])


def test_resize_sets_the_shorter_side_with_antialiasing(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 40, 60)
    expected = np.asarray(Image.fromarray(pixels).resize((24, 16), Image.Resampling.BILINEAR), np.float32)
    got = only(tmp_path, spec("N", 3, None, None), "resize=16,scale=1")
    np.testing.assert_array_equal(got.transpose(1, 2, 0), expected)
    assert only(tmp_path, NCHW, "resize=16").shape == (3, 8, 8)


def test_without_options_images_cover_the_models_size_and_the_assumptions_are_told(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "small.png", 8, 8)
    picture(tmp_path / "wide.png", 10, 31)
    data = open_dataset(tmp_path, [NCHW])
    (batch,) = data.batches()
    assert batch.feed["x"].shape == (2, 3, 8, 8)
    np.testing.assert_allclose(batch.feed["x"][0].transpose(1, 2, 0), pixels / 255, rtol=1e-6)
    for assumed in ("rgb", "divided by 255", "no mean", "8x8"):
        assert assumed in data.notes[0]


def test_numeric_class_folders_are_the_label_itself(tmp_path: Path) -> None:
    for name in ("0010", "0002", "7"):
        picture(tmp_path / name / "a.png")
    assert labels(open_dataset(tmp_path, [NCHW])) == [2, 10, 7]
    assert labels(open_dataset(tmp_path, [NCHW], images="label-offset=1")) == [3, 11, 8]


def test_named_class_folders_are_numbered_in_sorted_order_and_told(tmp_path: Path) -> None:
    for name in ("dog", "7", "cat"):
        picture(tmp_path / name / "a.png")
    data = open_dataset(tmp_path, [NCHW])
    assert labels(data) == [0, 1, 2]
    assert "7 = 0, cat = 1, dog = 2" in data.notes[-1]


def test_a_flat_folder_has_no_labels_and_hidden_files_are_not_seen(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png", ".cache/c.png"):
        picture(tmp_path / name)
    data = open_dataset(tmp_path, [NCHW])
    assert [data.size, data.labelled] == [2, False]
    picture(tmp_path / "class" / "a.png")
    with pytest.raises(DataError, match="beside the class folders"):
        open_dataset(tmp_path, [NCHW])


def test_palette_alpha_and_cmyk_are_converted_and_deep_pixels_refused(tmp_path: Path) -> None:
    rgb = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8))
    for name, mode in (("p.png", "P"), ("a.png", "RGBA"), ("l.png", "L"), ("c.jpg", "CMYK")):
        rgb.convert(mode).save(tmp_path / name)
    assert open_dataset(tmp_path, [NCHW]).size == 4
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*8 bits"):
        open_dataset(tmp_path, [NCHW])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 64, 64)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    data = open_dataset(tmp_path, [NCHW])  # its header is whole
    with pytest.raises(DataError, match=r"b\.png: the image cannot be read"):
        list(data.batches())
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"c\.png"):
        open_dataset(tmp_path, [NCHW])


def test_sizes_that_cannot_work_are_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 8, 8)
    picture(tmp_path / "b.png", 8, 9)
    with pytest.raises(DataError, match=r"smaller than the crop 9x9(.|\n)*resize="):
        open_dataset(tmp_path, [spec("N", 3, None, None)], images="crop=9")
    with pytest.raises(DataError, match="8x8 and 8x9"):
        open_dataset(tmp_path, [spec("N", 3, None, None)])
    with pytest.raises(DataError, match="axis 2 is 7 instead of 8"):
        open_dataset(tmp_path, [NCHW], images="crop=7")


def test_models_without_one_image_input_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="the model has 2"):
        open_dataset(tmp_path, [NCHW, NCHW])
    with pytest.raises(DataError, match="no batch of images"):
        open_dataset(tmp_path, [spec("N", 64)])
    with pytest.raises(DataError, match="4 channels"):
        open_dataset(tmp_path, [spec("N", 4, 8, 8)], images="layout=nchw")
    with pytest.raises(DataError, match="layout="):
        open_dataset(tmp_path, [spec("N", 4, 8, 8)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("scal=255", "Did you mean 'scale'"),
        ("scale=0", "above 0"),
        ("scale", "scale has no value"),
        ("resize=big", "whole number"),
        ("crop=-4", "whole number"),
        ("mean=1:2", "one value, or three"),
        ("std=0:1:1", "above 0"),
        ("mean=nan", "must be a number"),
        ("layout=hwc", "nchw or nhwc"),
        ("crop=8,crop=9", "given twice"),
        ("channels=gray,mean=1:2:3,layout=nchw", "mean has 3 values for 1 channel"),
    ],
)
def test_a_wrong_option_is_refused_with_a_hint(tmp_path: Path, options: str, said: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError) as caught:
        open_dataset(tmp_path, [spec("N", None, 8, 8)], images=options)
    assert said in str(caught.value)


def test_without_pillow_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingError, match=r"graphopt\[images\]"):
        open_dataset(tmp_path, [NCHW])


def test_the_fingerprint_follows_pixels_labels_and_options(tmp_path: Path) -> None:
    picture(tmp_path / "1" / "a.png")
    seen = {open_dataset(tmp_path, [NCHW], images=options).fingerprint for options in (None, "scale=1", "label-offset=1")}
    assert len(seen) == 3
    assert open_dataset(tmp_path, [NCHW]).fingerprint in seen
    picture(tmp_path / "1" / "a.png")
    assert open_dataset(tmp_path, [NCHW]).fingerprint not in seen


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("model", "options", "top1"),
    [
        ("mobilenet_v1_025", "crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb", 0.530),
        ("squeezenet1_1", "crop=224,scale=1,mean=104:117:123,channels=bgr", 0.610),
        ("mobilenet_v2", "crop=224,scale=127.5,mean=1,channels=rgb,label-offset=1", 0.8625),
    ],
)
def test_known_models_reach_their_known_accuracy(zoo: Path, model: str, options: str, top1: float) -> None:
    with registry.runtime("onnxruntime").open(zoo / "models" / f"{model}.onnx", targets.load("cpu")) as session:
        data = open_dataset(zoo / "data" / "imagenet" / "eval", session.inputs, images=options)
        meter = metrics.choose("top1", session.outputs, data.labelled)()
        for batch in data.batches():
            outputs = session.run(batch.feed)
            meter.update(outputs, outputs, batch.labels, batch.feed)
    assert data.size == 400
    assert meter.value() == pytest.approx(top1)

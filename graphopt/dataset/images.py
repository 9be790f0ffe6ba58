"""A folder of images as the input of a model, as ``--images`` describes it: x = (pixel / scale - mean) / std, per channel.

    option        meaning                                                                      default
    ------------  ---------------------------------------------------------------------------  ---------------------------
    resize        the shorter side in pixels; bilinear with antialiasing, aspect ratio kept    see below
    crop          side of the square cut from the centre, in pixels                            the model's height and width
    scale         what pixels (0..255) are divided by                                          255; 1 for integer inputs
    mean, std     one value, or one per channel separated by ``:``, in the order of channels   0 and 1
    layout        ``nchw`` or ``nhwc``                                                         from the model's input shape
    channels      ``rgb``, ``bgr`` or ``gray``                                                 rgb; gray for one channel
    label-offset  added to every label; 1 where class 0 is "background"                        0

With neither resize nor crop, each image is resized so that it just covers the model's height and width, and the rest is
cut off evenly; so images of the model's own size stay as they are. With crop alone nothing is resized. All other
defaults that were used are told in a note. Modes (palette, alpha, CMYK) are converted; the EXIF orientation is not
applied.

Class sub-folders give the labels. If all their names are numbers, the number is the label; otherwise folders are
numbered from 0 in sorted order. A flat folder has no labels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from graphopt.contracts import Array, TensorSpec
from graphopt.dataset import IMAGE_SUFFIXES, Batch, Dataset, Span, batch_spans
from graphopt.errors import DataError, MissingError, UsageError
from graphopt.registry import unknown_name

from .preflight import check_shapes, is_fixed, shape_text

if TYPE_CHECKING:
    from PIL import Image

Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]


@dataclass(frozen=True)
class ImageOptions:
    """What ``--images`` says; None is left to the model's input."""

    resize: int | None = None
    crop: int | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout | None = None
    channels: Channels | None = None
    label_offset: int = 0


@dataclass(frozen=True)
class _Recipe:
    """How an image becomes an array; every choice made."""

    resize: int | None
    crop: tuple[int, int] | None
    """Height and width."""
    cover: bool
    """Resize so that the image just covers the crop."""
    scale: float
    mean: Array
    std: Array
    layout: Layout
    channels: Channels
    dtype: np.dtype


def parse_options(text: str | None) -> ImageOptions:
    """Read ``key=value,...``.

    Raises:
        UsageError: An option is unknown (with the nearest names), given twice, or its value is wrong.
    """
    found: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not (part := part.strip()):
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _READERS:
            raise unknown_name("option of --images", key, _READERS)
        field = key.replace("-", "_")
        if field in found:
            raise UsageError(f"{key!r} is given twice", where="--images")
        try:
            found[field] = _READERS[key](value)
        except ValueError as error:
            given = f"{key}={value}" if equals else f"{key} has no value"
            raise UsageError(f"{given}: {error}", where="--images", hint="Example: resize=256,crop=224,scale=255") from None
    return ImageOptions(**found)


def open_images(folder: Path, specs: Sequence[TensorSpec], options: str | None, batch_size: int) -> Dataset:
    """The images of a folder, read and prepared batch by batch. The headers of all are checked now, and the first one's pixels.

    Args:
        folder: With images, or with one sub-folder per class.
        specs: The model's inputs; there must be one.
        options: As ``--images`` gives them.
        batch_size: Images a batch where the model leaves it open.

    Raises:
        DataError: An image is broken or too small, or the model's input is no image.
        UsageError: An option is unknown or wrong.
        MissingError: Pillow is not installed.
    """
    pillow = _pillow()
    given = parse_options(options)
    if len(specs) != 1:
        hint = "Prepare the feeds and give them as .npz files or by module:function."
        raise DataError(f"images feed one input, the model has {len(specs)}", where=str(folder), hint=hint)
    spec = specs[0]
    recipe, notes = _decide(spec, given, str(folder))
    files, labels, told = _list_images(folder, given.label_offset)
    sizes = {_image_size(pillow, path, recipe) for path in files}
    if len(sizes) > 1:
        raise DataError(f"the images differ in size after resizing: {_two(sizes)}", where=str(folder), hint="Give crop=.")
    spans, splittable, left_out = batch_spans(len(files), specs, batch_size, str(folder))
    first = _prepare(pillow, files[0], recipe)
    check_shapes({spec.name: (1, *first.shape)}, specs, str(files[0]), samples_first=True)

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        for start, stop in wanted:
            batch = np.empty((stop - start, *first.shape), recipe.dtype)
            for row, path in enumerate(files[start:stop]):
                batch[row] = _prepare(pillow, path, recipe)
            yield Batch({spec.name: batch}, None if labels is None else labels[start:stop], stop - start)

    def content() -> str:
        found = hashlib.sha256(f"{recipe} ".encode() + (b"" if labels is None else labels.tobytes()))
        for path in files:
            found.update(path.read_bytes())
        return found.hexdigest()

    labels_dtype = None if labels is None else labels.dtype
    return Dataset(str(folder), spans, stream, content, labels_dtype, (*notes, *told, *left_out), splittable)


# --------------------------------------------------------------------------------------------------------------- options


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("must be a whole number above 0")
    return int(text)


def _number(text: str) -> float:
    number = float(text) if text else math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def _nonzero(text: str) -> float:
    if (number := _number(text)) <= 0:
        raise ValueError("must be above 0")
    return number


def _per_channel(read: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def values(text: str) -> tuple[float, ...]:
        found = tuple(read(part) for part in text.split(":"))
        if len(found) not in (1, 3):
            raise ValueError("must be one value, or three separated by ':'")
        return found

    return values


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def choice(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return text.lower()

    return choice


_READERS: Mapping[str, Callable[[str], Any]] = {
    "resize": _whole,
    "crop": _whole,
    "scale": _nonzero,
    "mean": _per_channel(_number),
    "std": _per_channel(_nonzero),
    "layout": _one_of(get_args(Layout)),
    "channels": _one_of(get_args(Channels)),
    "label-offset": int,
}


def _decide(spec: TensorSpec, given: ImageOptions, where: str) -> tuple[_Recipe, tuple[str, ...]]:
    """Fill in from the model's input what was not given."""
    shape = spec.shape if spec.shape is not None else (None,) * 4
    place = f"{where}, input {spec.name!r}"
    if len(shape) != 4 or spec.dtype.kind not in "fiu":
        raise DataError(f"the model takes {spec.dtype} {shape_text(shape)}, which is no batch of images", where=place)
    axes: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
    fitting = [layout for layout, axis in axes.items() if shape[axis] in (1, 3)]
    layout = given.layout or (fitting[0] if fitting else None)
    if layout is None and not any(is_fixed(shape[axis]) for axis in (1, 3)):
        layout = "nchw"
    if layout is None:
        raise DataError(
            f"neither axis 1 nor axis 3 of {shape_text(shape)} is 1 or 3 channels", where=place, hint="Give layout=."
        )
    depth, height, width = (shape[axis] for axis in ((1, 2, 3) if layout == "nchw" else (3, 1, 2)))
    channels: Channels = given.channels or ("gray" if depth == 1 else "rgb")
    count = 1 if channels == "gray" else 3
    if is_fixed(depth) and depth != count:
        raise DataError(f"the model takes {depth} channels, {channels} images have {count}", where=place)
    for name, values in (("mean", given.mean), ("std", given.std)):
        if len(values) not in (1, count):
            raise UsageError(f"{name} has {len(values)} values for {count} channel", where="--images")
    crop = None
    if given.crop is not None:
        crop = (given.crop, given.crop)
    elif isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        crop = (height, width)
    integer = spec.dtype.kind in "iu"
    scale = given.scale or (1.0 if integer else 255.0)
    cover = given.resize is None and given.crop is None and crop is not None
    recipe = _Recipe(
        resize=given.resize,
        crop=crop,
        cover=cover,
        scale=scale,
        mean=np.asarray(given.mean, np.float32),
        std=np.asarray(given.std, np.float32),
        layout=layout,
        channels=channels,
        dtype=spec.dtype,
    )
    assumed = {
        f"layout {layout}": given.layout is None and not fitting,
        f"channels in the order {channels}": given.channels is None and count == 3,
        f"pixels divided by {scale:g}": given.scale is None,
        "no mean subtracted": given.mean == ImageOptions.mean,
        f"resized and cropped to {crop and f'{crop[0]}x{crop[1]}'}": cover,
    }
    told = ", ".join(what for what, is_assumed in assumed.items() if is_assumed)
    return recipe, (f"Images: {told} (assumed; --images says otherwise).",) if told else ()


# ----------------------------------------------------------------------------------------------------------------- files


def _list_images(folder: Path, label_offset: int) -> tuple[list[Path], Array | None, tuple[str, ...]]:
    """All images in sorted order, the label of each if there are class folders, and how folders became labels."""

    def images(items: Iterator[Path]) -> list[Path]:
        shown = (item for item in items if not any(part.startswith(".") for part in item.relative_to(folder).parts))
        return sorted(item for item in shown if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file())

    flat = images(folder.iterdir())
    classes = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    files = {item.name: images(item.rglob("*")) for item in classes}
    in_classes = sum(map(len, files.values()))
    if flat and in_classes:
        hint = "Either all images are in class folders, or none is."
        raise DataError(f"{len(flat)} images are beside the class folders", where=str(folder), hint=hint)
    if not flat and not in_classes:
        raise DataError("there are no images", where=str(folder))
    if flat:
        return flat, None, ()
    numeric = all(name.isdecimal() for name in files)
    numbers = {name: (int(name) if numeric else index) + label_offset for index, name in enumerate(files)}
    labels = np.repeat(np.array(list(numbers.values()), np.int64), [len(found) for found in files.values()])
    shown = ", ".join(f"{name} = {number}" for name, number in list(numbers.items())[:5])
    more = ", ..." if len(numbers) > 5 else ""
    told = () if numeric else (f"The {len(numbers)} class folders were numbered in sorted order: {shown}{more}.",)
    return [path for found in files.values() for path in found], labels, told


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("reading images needs pillow", hint="pip install 'graphopt[images]'") from None
    return Image


def _opened(pillow: ModuleType, path: Path, use: Callable[[Image.Image], Any]) -> Any:
    """What ``use`` makes of the image; what pillow raises for a broken file becomes a DataError that names it."""
    try:
        with pillow.open(path) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=str(path), hint="Mend or remove the file.") from error


def _image_size(pillow: ModuleType, path: Path, recipe: _Recipe) -> tuple[int, int]:
    """Height and width that the image will have, from its header."""
    (width, height), mode = _opened(pillow, path, lambda image: (image.size, image.mode))
    if mode.startswith(("I", "F")):
        raise DataError(f"pixels of mode {mode!r} have more than 8 bits", where=str(path), hint="Convert the image to 8 bits.")
    height, width = _resized(height, width, recipe)
    if recipe.crop is None:
        return height, width
    if height < recipe.crop[0] or width < recipe.crop[1]:
        what = f"the image is {height}x{width}, smaller than the crop {recipe.crop[0]}x{recipe.crop[1]}"
        raise DataError(what, where=str(path), hint="Give resize= in --images.")
    return recipe.crop


def _resized(height: int, width: int, recipe: _Recipe) -> tuple[int, int]:
    """Height and width after resizing."""
    if recipe.cover and recipe.crop is not None:
        ratio = max(recipe.crop[0] / height, recipe.crop[1] / width)
        return max(recipe.crop[0], round(height * ratio)), max(recipe.crop[1], round(width * ratio))
    if recipe.resize is None:
        return height, width
    shorter = min(height, width)
    return recipe.resize * height // shorter, recipe.resize * width // shorter


def _prepare(pillow: ModuleType, path: Path, recipe: _Recipe) -> Array:
    """One image as an array: [C, H, W] or [H, W, C], in the input's type."""

    def pixels(image: Image.Image) -> Array:
        converted = image.convert("L" if recipe.channels == "gray" else "RGB")
        height, width = _resized(converted.height, converted.width, recipe)
        if (width, height) != converted.size:
            converted = converted.resize((width, height), pillow.Resampling.BILINEAR)
        if recipe.crop is not None:
            top, left = round((height - recipe.crop[0]) / 2), round((width - recipe.crop[1]) / 2)
            converted = converted.crop((left, top, left + recipe.crop[1], top + recipe.crop[0]))
        return np.asarray(converted, np.float32)

    array: Array = _opened(pillow, path, pixels)
    array = array[:, :, np.newaxis] if array.ndim == 2 else array
    if recipe.channels == "bgr":
        array = array[:, :, ::-1]
    array = (array / np.float32(recipe.scale) - recipe.mean) / recipe.std
    if recipe.dtype.kind in "iu":
        limits = np.iinfo(recipe.dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    return (array.transpose(2, 0, 1) if recipe.layout == "nchw" else array).astype(recipe.dtype)


def _two(sizes: set[tuple[int, int]]) -> str:
    return " and ".join(f"{height}x{width}" for height, width in sorted(sizes)[:2])

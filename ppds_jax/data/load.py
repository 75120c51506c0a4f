"""Data sets by name, checked before any work: `load(source)`.

* `fashion_mnist_5k`: 5,000 training and 1,000 test images of Fashion-MNIST, balanced,
  28x28 grey, inside this package (see NOTICE).
* `digits`: scikit-learn's 1,797 handwritten digits, 8x8; every fifth is for testing.
* `PATH.npz`: any file with x_train, y_train, x_test, y_test.
* `tfds:NAME`: a data set of tensorflow-datasets, prepared beforehand.
"""

import io
import lzma
from collections.abc import Callable
from importlib import resources, util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from numpy import ndarray as Array

from ppds_jax.types import InputError


class Images(NamedTuple):
    """A checked data set on the host."""

    name: str
    x_train: UInt8[Array, "n h w c"]
    y_train: Int32[Array, " n"]
    x_test: UInt8[Array, "t h w c"]
    y_test: Int32[Array, " t"]
    num_classes: int


def load(source: str) -> Images:
    """Loads and checks a data set; `source` is as described above.

    Images may be uint8, or floats in [0, 1], which are rounded to 8 bits once. Labels
    are integers from 0 on; the classes are those of the training labels.

    Raises:
      InputError: an unknown source, a missing file or field, wrong shapes or types,
        NaN or values outside the range, or a class without training images.
    """
    if source in BUILT_IN:
        arrays = BUILT_IN[source]()
    elif source.startswith("tfds:"):
        arrays = _tfds(source.removeprefix("tfds:"))
    elif source.endswith(".npz"):
        arrays = _npz(Path(source).expanduser())
    else:
        raise InputError(
            f"data={source!r}: use {', '.join(BUILT_IN)}, tfds:NAME, or a file "
            "PATH.npz with x_train, y_train, x_test, y_test"
        )
    return _checked(source, *arrays)


Arrays = tuple[Array, Array, Array, Array]


def _fashion_mnist_5k() -> Arrays:
    packed = resources.files(__package__).joinpath("fashion_mnist_5k.npz.xz")
    with np.load(io.BytesIO(lzma.decompress(packed.read_bytes()))) as file:
        return file["x_train"], file["y_train"], file["x_test"], file["y_test"]


def _digits() -> Arrays:
    if util.find_spec("sklearn") is None:
        raise InputError(
            "data='digits': comes with scikit-learn, which is not installed; "
            "pip install scikit-learn"
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.round(digits.images / 16 * 255).astype(np.uint8)
    y = digits.target
    test = np.arange(len(y)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


BUILT_IN: dict[str, Callable[[], Arrays]] = {
    "fashion_mnist_5k": _fashion_mnist_5k,
    "digits": _digits,
}


def _npz(path: Path) -> Arrays:
    if not path.is_file():
        raise InputError(f"data={str(path)!r}: no such file")
    fields = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in fields if name not in file]
            if missing:
                raise InputError(
                    f"data={str(path)!r}: lacks {', '.join(missing)}; it has "
                    f"{', '.join(file) or 'nothing'}"
                )
            return tuple(file[name] for name in fields)
    except InputError:
        raise
    except Exception as error:  # NumPy raises many kinds for files it cannot read
        raise InputError(f"data={str(path)!r}: not a readable .npz ({error})") from None


def _tfds(name: str) -> Arrays:
    if util.find_spec("tensorflow_datasets") is None:
        raise InputError(
            f"data='tfds:{name}': tensorflow-datasets is not installed; "
            "pip install 'ppds_jax[tfds]'"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:
        detail = str(error).strip().splitlines()[0][:200]
        raise InputError(
            f"data='tfds:{name}': tensorflow-datasets has no such set ({detail})"
        ) from None
    try:  # reads what is there, never downloads
        train, test = (builder.as_data_source(split=s) for s in ("train", "test"))
    except Exception as error:
        detail = str(error).strip().splitlines()[0][:200]
        raise InputError(
            f"data='tfds:{name}': not prepared on this machine as a data source with "
            f"the splits train and test ({detail}); run tfds.builder({name!r}, "
            "file_format='array_record').download_and_prepare() where there is a "
            "network, and point TFDS_DATA_DIR at the result"
        ) from None
    return (*_gather(name, train), *_gather(name, test))


def _gather(name: str, source) -> tuple[Array, Array]:
    if not {"image", "label"} <= set(source[0]):
        raise InputError(
            f"data='tfds:{name}': records hold {', '.join(source[0])}; image and label "
            "are needed"
        )
    records = [source[i] for i in range(len(source))]
    shapes = {np.shape(record["image"]) for record in records}
    if len(shapes) > 1:
        raise InputError(f"data='tfds:{name}': images have {len(shapes)} shapes")
    return (
        np.stack([np.asarray(record["image"]) for record in records]),
        np.array([record["label"] for record in records]),
    )


def _checked(source: str, x_train, y_train, x_test, y_test) -> Images:
    x_train = _pixels(f"data={source!r}: x_train", x_train)
    x_test = _pixels(f"data={source!r}: x_test", x_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(
            f"data={source!r}: x_train has images {x_train.shape[1:]}, x_test "
            f"{x_test.shape[1:]}; they must be alike"
        )
    y_train = _labels(f"data={source!r}: y_train", y_train, len(x_train))
    y_test = _labels(f"data={source!r}: y_test", y_test, len(x_test))
    classes = np.unique(y_train)
    missing = np.flatnonzero(classes != np.arange(classes.size))
    if missing.size:
        raise InputError(
            f"data={source!r}: y_train has no image of class {missing[0]} (labels run "
            f"to {classes[-1]}); number the classes from 0 without gaps"
        )
    if classes.size < 2:
        raise InputError(f"data={source!r}: y_train has one class; 2 are needed")
    if y_test.max() >= classes.size:
        raise InputError(
            f"data={source!r}: y_test has the label {y_test.max()}, which y_train has "
            f"not; labels must run from 0 to {classes.size - 1}"
        )
    y_train, y_test = y_train.astype(np.int32), y_test.astype(np.int32)
    num_classes = int(classes.size)
    return Images(source, x_train, y_train, x_test, y_test, num_classes)


def _pixels(field: str, x: Array) -> Array:
    x = np.asarray(x)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or 0 in x.shape:
        raise InputError(
            f"{field} has the shape {x.shape}; must be [n h w] or [n h w c]"
        )
    if x.shape[-1] not in (1, 3):
        raise InputError(
            f"{field} has the shape {x.shape}: {x.shape[-1]} channels; the last axis "
            "must be 1 (grey) or 3 (colour)"
        )
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{field} is {x.dtype}; must be uint8, or floats in [0, 1]")
    if not np.isfinite(x).all():
        raise InputError(
            f"{field} has {(~np.isfinite(x)).sum()} NaN or infinite pixels"
        )
    if x.min() < 0 or x.max() > 1:
        raise InputError(
            f"{field} has floats from {x.min():g} to {x.max():g}; must lie in [0, 1]"
        )
    return np.round(x * 255).astype(np.uint8)


def _labels(field: str, y: Array, count: int) -> Array:
    y = np.asarray(y)
    if y.shape != (count,):
        raise InputError(f"{field} has the shape {y.shape}; must be ({count},)")
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{field} is {y.dtype}; must be integers")
    if y.min() < 0:
        raise InputError(f"{field} has the label {y.min()}; labels start at 0")
    return y

"""Loading: what is accepted, and what is refused with one clear message."""

import numpy as np
import pytest

from ppds_jax.data.load import load
from ppds_jax.types import InputError

X, Y = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 2, 0, 1, 2])


def saved(tmp_path, **changes):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3]} | changes
    path = tmp_path / "set.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


def test_the_embedded_set_is_balanced_and_real():
    images = load("fashion_mnist_5k")
    assert images.x_train.shape == (5000, 28, 28, 1)
    assert images.x_test.shape == (1000, 28, 28, 1)
    assert set(np.bincount(images.y_train)) == {500}
    assert set(np.bincount(images.y_test)) == {100}
    assert images.x_train.std() > 50


def test_digits():
    images = load("digits")
    assert images.x_train.shape == (1437, 8, 8, 1)
    assert images.x_train.max() == 255
    assert images.num_classes == 10


def test_npz_grey_and_colour_bytes_and_floats(tmp_path):
    assert load(saved(tmp_path)).x_train.shape == (6, 4, 4, 1)
    colour = np.full((6, 4, 4, 3), 0.5)
    images = load(saved(tmp_path, x_train=colour, x_test=colour[:3]))
    assert images.x_train.dtype == np.uint8
    assert set(images.x_train.ravel()) == {128}


HALF_NAN = np.where(np.arange(96).reshape(6, 4, 4) % 2, np.nan, 0.5)

REFUSED = {
    "x_train has the shape": {"x_train": X[0]},
    "x_train is int64": {"x_train": X.astype(np.int64)},
    "x_train is bool": {"x_train": X > 0},
    "48 NaN": {"x_train": HALF_NAN},
    "from 0 to 255": {"x_train": X + 255.0 * np.eye(4)},
    "they must be alike": {"x_test": X[:3, :3]},
    "y_train has the shape": {"y_train": Y[:5]},
    "y_train is float64": {"y_train": Y + 0.5},
    "2 channels": {"x_train": np.zeros((6, 4, 4, 2), np.uint8)},
    "to 4294967296": {"y_train": np.array([0, 1, 2, 0, 1, 2**32])},
    "label -1": {"y_train": Y - 1},
    "no image of class 1": {"y_train": np.array([0, 2, 2, 0, 2, 2])},
    "y_test has the label 3": {"y_test": np.array([0, 1, 3])},
    "one class": {"y_train": 0 * Y, "y_test": 0 * Y[:3]},
    "lacks y_test": {"y_test": None},
    "x_test has the shape": {"x_test": X[:0], "y_test": Y[:0]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arrays_are_refused_by_field(message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(saved(tmp_path, **REFUSED[message]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnist", "use fashion_mnist_5k, digits"),
        ("nowhere.npz", "no such file"),
        ("tfds:no_such_set_at_all", "no such set"),
    ],
)
def test_unknown_sources_are_refused(source, message):
    with pytest.raises(InputError, match=message):
        load(source)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        load(str(path))


def test_tfds_mock_data():
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=40):
        images = load("tfds:mnist")
    assert images.x_train.shape == (40, 28, 28, 1)
    assert images.y_test.shape == (40,)


def test_tfds_unprepared_set_is_refused_at_once():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError, match=r"not prepared.*download_and_prepare"):
        load("tfds:kmnist")


def test_tfds_set_built_locally(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = load("digits")

    class TinyDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._rows(images.x_train[:50], images.y_train[:50]),
                "test": self._rows(images.x_test[:20], images.y_test[:20]),
            }

        def _rows(self, x, y):
            for i in range(len(x)):
                yield i, {"image": x[i], "label": int(y[i])}

        def _generate_examples(self):
            raise AssertionError("splits are given as generators")

    builder = TinyDigits(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds, "builder", lambda name: builder)
        loaded = load("tfds:tiny_digits")
    np.testing.assert_array_equal(loaded.x_train, images.x_train[:50])
    np.testing.assert_array_equal(loaded.y_test, images.y_test[:20])

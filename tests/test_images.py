"""The user's own images: what is planted comes back, what can't be meant is refused or said."""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from resfool import experiments
from resfool.archive import ModelSource
from resfool.attacks import presentation
from resfool.classifiers import finding
from resfool.datasets import kinds, sets
from resfool.datasets.lazy import ImageRows
from resfool.datasets.lying import InFile
from resfool.datasets.sets import DATASETS, Dataset, Source, TrainingData, choose
from resfool.datasets.stored import Pool, Stored
from resfool.errors import DataWarning, InputError, UsageError
from resfool.parameters import OwnImages

Array = npt.NDArray[Any]


def load(name: str, **how: Any) -> Dataset:
    """A data set of which there is nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sets.load(name, how=OwnImages(**how))


def told(name: str, **how: Any) -> tuple[Dataset, str]:
    """A data set, and the one sentence that is said of it."""
    with pytest.warns(DataWarning) as said:
        data = sets.load(name, how=OwnImages(**how))
    assert len(said) == 1
    return data, str(said[0].message)


def refusal(name: str, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(name, **how)
    return str(caught.value)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def levels(data: Dataset) -> Array:
    """The test images in levels of 255."""
    return np.rint(data.test.images * 255).astype(int)


# A folder for each class.


def draw(path: Path, pixels: Array, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_a_folder_of_classes_is_all_for_testing(tmp_path: Path) -> None:
    pixels = noise(4, 5, 6, 3)
    draw(tmp_path / "dog" / "b.PNG", pixels[0])
    draw(tmp_path / "dog" / "old" / "a.bmp", pixels[1])
    draw(tmp_path / "cat" / "c.webp", pixels[2], lossless=True)
    draw(tmp_path / "ant" / "d.png", pixels[3])
    for hidden in (".DS_Store", "dog/.DS_Store", ".cache/x.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\0")
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("ant", "cat", "dog") and not data.exact
    assert data.test.labels.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(levels(data), pixels[[3, 2, 0, 1]])
    assert data.image_shape == (5, 6, 3) and len(data.train) == len(data.validation) == 0


def test_a_folder_may_have_folders_for_parts(tmp_path: Path) -> None:
    pixels = noise(4, 5, 6, 3)
    for part, label, image in zip(("train", "Val", "test", "train"), "abab", pixels, strict=True):
        draw(tmp_path / part / label / "0.png", image)
    data = load(f"folder:{tmp_path}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2, 1, 1]
    assert data.train.labels.tolist() == [0, 1] and data.test.labels.tolist() == [0]
    np.testing.assert_array_equal(levels(data), pixels[[2]])
    draw(tmp_path / "c" / "0.png", pixels[0])
    assert "others beside them (c)" in refusal(f"folder:{tmp_path}")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("train", "tram"):
        draw(tmp_path / label / "0.png", noise(2, 2))
    assert load(f"folder:{tmp_path}").class_names == ("train", "tram")


def test_one_picture_in_colour_makes_all_in_colour(tmp_path: Path) -> None:
    grey, colour = noise(5, 6), noise(5, 6, 3)
    draw(tmp_path / "a" / "grey.png", grey)
    deep = grey.astype(np.uint16) * 257
    deep[0] = np.clip(grey[0].astype(int) * 257 + [0, 1, 127, -1, -127, 0], 0, 65535)
    draw(tmp_path / "b" / "deep.png", deep)
    alone = load(f"folder:{tmp_path}")
    assert alone.image_shape == (5, 6, 1)
    np.testing.assert_array_equal(levels(alone)[..., 0], [grey, grey])
    draw(tmp_path / "b" / "rgba.png", np.dstack([colour, noise(5, 6, seed=1)]))
    palette = Image.fromarray(colour).quantize(7)
    palette.save(tmp_path / "b" / "palette.png", transparency=b"\0" * 7)
    both = levels(load(f"folder:{tmp_path}"))
    of_grey = np.repeat(grey[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(both, [of_grey, of_grey, palette.convert("RGB"), colour])
    again = levels(load(f"folder:{tmp_path}", image_size=(5, 6, 1)))
    np.testing.assert_array_equal(again[:2, ..., 0], [grey, grey])
    np.testing.assert_allclose(again[3, ..., 0], colour @ [0.299, 0.587, 0.114], atol=1)


def test_pictures_are_turned_as_their_camera_was(tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture must be turned by 90 degrees clockwise
    for label in "ab":
        draw(tmp_path / label / "0.png", pixels, exif=exif)
    data = load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(levels(data), [np.rot90(pixels, -1)] * 2)


def test_pictures_of_several_sizes_need_one(tmp_path: Path) -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 4:] = 255
    draw(tmp_path / "a" / "0.png", wide)
    draw(tmp_path / "b" / "1.png", wide.T)
    name = f"folder:{tmp_path}"
    message = refusal(name)
    assert "4,8" in message and "8,4" in message and "image_size=" in message
    cut = levels(load(name, image_size=(4, 4)))[..., 0]
    np.testing.assert_array_equal(cut[0], wide[:, 2:6])
    np.testing.assert_array_equal(cut[1], wide[:, 2:6].T)
    squeezed = levels(load(name, image_size="4,4", crop="none"))[0, 0, :, 0]
    assert squeezed[0] == 0 and squeezed[3] == 255 and squeezed[1] + squeezed[2] == 255
    assert load(name, image_size=(4, 4)).digest != load(name, image_size=(4, 4), crop="none").digest
    for given in ("224", "1,2,4", "0,4", "1,2,3,1"):
        with pytest.raises(UsageError, match="image_size"):
            OwnImages.of({"image_size": given})


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "0.jpg", noise(20, 20, 3))
    bad = tmp_path / "b" / "1.jpg"
    bad.parent.mkdir()
    whole = (tmp_path / "a" / "0.jpg").read_bytes()
    bad.write_bytes(whole[:-20])
    data = load(f"folder:{tmp_path}")
    with pytest.raises(InputError, match=r"1\.jpg.*truncated"):
        ImageRows(choose(data, "test", None, 0)).check()
    for content in (b"", b"junk", whole[:20]):
        bad.write_bytes(content)
        assert str(bad) in refusal(f"folder:{tmp_path}")
    bad.unlink()
    Image.fromarray(np.ones((20, 20), np.float32)).save(bad.with_suffix(".tiff"))
    bad.with_suffix(".tiff").rename(bad)
    assert str(bad) in refusal(f"folder:{tmp_path}")


def test_what_is_left_out_or_may_be_meant_otherwise_is_said(tmp_path: Path) -> None:
    name = f"folder:{tmp_path}"
    for label in "ab":
        draw(tmp_path / label / "0.png", noise(2, 2))
    for stray in (tmp_path / "a" / "notes.txt", tmp_path / "0.png"):
        stray.write_text("not a picture")
        assert f"1 files are left out, such as {stray}" in told(name)[1]
        stray.unlink()
    (tmp_path / "c").mkdir()
    data, said = told(name)
    assert "class c has no pictures" in said and data.class_names == ("a", "b", "c")
    for old, new in zip("abc", ("3", "7", "8"), strict=True):
        (tmp_path / old).rename(tmp_path / new)
    draw(tmp_path / "8" / "0.png", noise(2, 2))
    assert "3 is label 0 and 8 is label 2" in told(name)[1]
    alone = tmp_path / "other"
    draw(alone / "a" / "0.png", noise(2, 2))
    assert "one class alone, a" in told(f"folder:{alone}")[1]
    (alone / "a" / "0.png").rename(alone / "0.png")
    assert "no pictures in folders of their classes" in refusal(f"folder:{alone}")


# Parquet.


def encoded(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, cells: Sequence[Any], labels: Sequence[Any], **features: Any) -> None:
    """A file with two rows in a row group."""
    path.parent.mkdir(exist_ok=True)
    table = pyarrow.table({"image": list(cells), "label": list(labels)})
    noted = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def test_a_parquet_file_as_hugging_face_writes_it(tmp_path: Path) -> None:
    pixels, labels = noise(5, 4, 3, 3), [2, 0, 1, 1, 0]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow", "dog"]},
    }
    cells = [{"bytes": encoded(one), "path": "x.png"} for one in pixels]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", cells, labels, **features)
    for name in (f"parquet:{tmp_path / 'data'}", f"parquet:{next((tmp_path / 'data').iterdir())}"):
        data = load(name)
        assert data.class_names == ("ant", "bee", "cow", "dog")
        assert data.test.labels.tolist() == labels
        np.testing.assert_array_equal(levels(data), pixels)
    some = choose(data, "test", 3, 1)
    for image, label in zip(some.images, some.labels, strict=True):
        (row,) = np.flatnonzero((pixels == np.rint(image * 255)).all(axis=(1, 2, 3)))
        assert labels[row] == label
    for part, own in (("train", pixels[:3]), ("validation", pixels[3:])):
        cells = [{"bytes": encoded(one)} for one in own]
        write_parquet(tmp_path / "data" / f"{part}-0.parquet", cells, [0] * len(own), **features)
    data = load(f"parquet:{tmp_path / 'data'}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3, 2, 5]
    np.testing.assert_array_equal(np.rint(data.train.images * 255), pixels[:3])


def test_a_parquet_file_of_bytes_or_of_paths(tmp_path: Path) -> None:
    pixels = noise(3, 4, 3, 3)
    plain, paths = tmp_path / "plain.parquet", tmp_path / "paths.parquet"
    write_parquet(plain, [encoded(one) for one in pixels], ["b", "a", "b"])
    data, said = told(f"parquet:{plain}")
    assert "a, b are 0 to 1" in said and data.test.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(levels(data), pixels)
    for number, one in enumerate(pixels):
        draw(tmp_path / f"{number}.png", one)
    write_parquet(paths, ["0.png", "1.png", "2.png"], [0, 1, 2])
    np.testing.assert_array_equal(levels(load(f"parquet:{paths}")), pixels)
    (tmp_path / "1.png").unlink()
    assert "1.png" in refusal(f"parquet:{paths}")
    write_parquet(paths, [b"junk", encoded(pixels[0])], [0, 1])
    assert "picture 0 of row group 0" in refusal(f"parquet:{paths}")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [0]}), paths)
    assert "no column of pictures" in refusal(f"parquet:{paths}")
    plain.write_bytes(b"junk")
    assert str(plain) in refusal(f"parquet:{plain}")


# Arrays.

IMAGES = noise(6, 5, 7, 3)
LABELS = np.array([0, 2, 1, 2, 0, 1])


def save(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "own.npz", **arrays)
    return f"npz:{folder / 'own.npz'}"


@pytest.mark.parametrize(
    "names",
    [
        ("x_test", "y_test"),
        ("X_test", "y_test"),
        ("x", "y"),
        ("images", "labels"),
        ("test_images", "test_labels"),
        ("data", "target"),
    ],
)
def test_test_images_alone_will_do_by_any_usual_name(tmp_path: Path, names: Sequence[str]) -> None:
    data = load(save(tmp_path, **dict(zip(names, (IMAGES, LABELS), strict=True))))
    np.testing.assert_array_equal(levels(data), IMAGES)
    assert data.test.labels.tolist() == LABELS.tolist() and len(data.train) == 0
    assert isinstance(data.test.stored, InFile)  # so it isn't in memory


@pytest.mark.parametrize(
    ("images", "how"),
    [
        (IMAGES.astype(np.float32), {"value_range": "0,255"}),
        (IMAGES.astype(np.int64), {"value_range": "0,255"}),
        (IMAGES / 127.5 - 1, {"value_range": "-1,1"}),
        ((IMAGES / 127.5 - 1).astype(np.float32), {"value_range": (-1, 1)}),
        (IMAGES.astype(np.uint16) * 257, {"value_range": "0,65535"}),
        (IMAGES / 255, {}),
        (np.asfortranarray(IMAGES), {}),
    ],
)
def test_values_have_a_range(tmp_path: Path, images: Array, how: dict[str, Any]) -> None:
    name = save(tmp_path, x=images, y=LABELS)
    data = load(name, **how)
    np.testing.assert_allclose(data.test.images, IMAGES / np.float32(255), atol=1e-6)
    if how and images.min() >= 0:
        assert f"value_range={how['value_range']}" in refusal(name)  # says what to give


def test_a_range_that_the_values_contradict_is_refused_or_said(tmp_path: Path) -> None:
    name = save(tmp_path, x=IMAGES / 255 * 2 - 1, y=LABELS)
    assert "perhaps value_range=-1,1" in refusal(name)
    assert "must be in value_range=0,1" in refusal(name, value_range=(0, 1))
    assert "from 0 to 1" in told(save(tmp_path, x=IMAGES // 128, y=LABELS))[1]
    assert "value_range=" in told(save(tmp_path, x=IMAGES / 255, y=LABELS), value_range=(-1, 1))[1]
    assert "has no effect" in refusal("digits", value_range=(0, 1))
    assert "folder:PATH or parquet:PATH" in refusal(name, image_size=(2, 2))


def test_channels_may_come_first(tmp_path: Path) -> None:
    data, said = told(save(tmp_path, x=IMAGES.transpose(0, 3, 1, 2), y=LABELS))
    np.testing.assert_array_equal(levels(data), IMAGES)
    assert "(6, 3, 5, 7), taken for (N, C, H, W)" in said


WORDS = np.array(["ant", "cow", "bee"])
SPELLED: dict[str, tuple[Array, tuple[str, ...], str]] = {
    "column": (LABELS[:, np.newaxis], ("0", "1", "2"), ""),
    "one-hot": (np.eye(4)[LABELS], ("0", "1", "2", "3"), ""),
    "floats": (LABELS.astype(float), ("0", "1", "2"), ""),
    "numerals": (LABELS.astype(str), ("0", "1", "2"), ""),
    "from 1": (LABELS + 1, ("0", "1", "2"), "from 1 to 3 and are taken for 0 to 2"),
    "words": (np.sort(WORDS)[LABELS], ("ant", "bee", "cow"), "ant, bee, cow are 0 to 2"),
    "bytes": (np.sort(WORDS)[LABELS].astype("S"), ("ant", "bee", "cow"), "alphabetical"),
}


@pytest.mark.parametrize(("labels", "names", "said"), SPELLED.values(), ids=SPELLED)
def test_labels_may_be_spelled_in_many_ways(
    tmp_path: Path, labels: Array, names: tuple[str, ...], said: str
) -> None:
    name = save(tmp_path, x=IMAGES, y=labels)
    data, sentence = told(name) if said else (load(name), "")
    assert data.test.labels.tolist() == LABELS.tolist() and data.class_names == names
    assert said in sentence


def test_class_names_may_be_given(tmp_path: Path) -> None:
    names = np.array(["ant", "bee", "cow", "dog"])
    data = load(save(tmp_path, x=IMAGES, y=LABELS + 1, class_names=names))
    assert data.class_names == tuple(names) and data.test.labels.min() == 1
    assert data.names_of(6) == (*names, "4", "5")
    words = load(save(tmp_path, x=IMAGES, y=WORDS[LABELS], class_names=names))
    assert words.test.labels.tolist() == [[0, 2, 1][n] for n in LABELS]
    assert "label 4 has no name" in refusal(
        save(tmp_path, x=IMAGES, y=LABELS + 2, class_names=names)
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": IMAGES}, "no images by a usual name"),
        ({"x": IMAGES}, "but no test labels; call them y_test"),
        ({"x": IMAGES, "x_test": IMAGES, "y": LABELS}, "x and x_test are both"),
        ({"x_train": IMAGES, "y_train": LABELS, "x": IMAGES}, "y_test"),
        ({"x": IMAGES, "y": WORDS[LABELS], "x_train": IMAGES, "y_train": LABELS}, "one kind"),
        ({"x": IMAGES, "y": LABELS, "class_names": np.array(["a"])}, "label 2 has no name"),
    ],
)
def test_arrays_that_say_too_little_or_too_much(
    tmp_path: Path, arrays: dict[str, Array], said: str
) -> None:
    assert said in refusal(save(tmp_path, **arrays))


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    for name, array in {"x_test": IMAGES, "y_test": LABELS, "x_train": IMAGES[:1]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert "no train labels" in refusal(f"npy:{tmp_path}")
    np.save(tmp_path / "y_train.npy", LABELS[:1])
    data = load(f"npy:{tmp_path}")
    np.testing.assert_array_equal(levels(data), IMAGES)
    assert len(data.train) == 1 and data.source == str(tmp_path)
    np.save(tmp_path / "y_test.npy", np.array([{}]))
    assert "y_test.npy holds Python objects" in refusal(f"npy:{tmp_path}")
    (tmp_path / "x_test.npy").write_bytes(b"junk")
    assert "x_test.npy" in refusal(f"npy:{tmp_path}")


def test_a_member_with_changed_bytes_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path, x=IMAGES, y=LABELS)
    content = bytearray((tmp_path / "own.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "own.npz").write_bytes(content)
    assert "CRC" in refusal(name)


# What is nearly right, and what is missing.


def test_a_bare_path_is_answered_with_its_prefix(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "a" / "0.png", noise(2, 2))
    np.save(tmp_path / "x_test.npy", IMAGES)
    for bare, prefix in (
        (tmp_path / "pictures", "folder"),
        (tmp_path, "npy"),
        (Path("some.parquet"), "parquet"),
        (Path("some.npz"), "npz"),
    ):
        assert f"did you mean '{prefix}:{bare}'?" in refusal(str(bare))
    for prefix in kinds.KINDS:
        with pytest.raises(InputError, match="there is nothing at"):
            sets.check_name(f"{prefix}:{tmp_path / 'nothing'}")
    for name in (f"npz:{tmp_path}", f"npy:{tmp_path / 'x_test.npy'}"):
        with pytest.raises(InputError, match=f"{name[:3]}:PATH is an? .* is none"):
            sets.check_name(name)


def test_nobody_is_told_of_a_share_or_of_images_that_nobody_gave(tmp_path: Path) -> None:
    test_alone = save(tmp_path, x=IMAGES, y=LABELS)
    for share in (0.0, 0.5):
        with pytest.raises(InputError, match="has no train images, only those for test"):
            sets.load_data(TrainingData(dataset=test_alone, validation_share=share))
    with pytest.raises(InputError, match=r"split=train: .* no train images, only those for test"):
        choose(load(test_alone), "train", None, 0)
    drawn = sets.load(test_alone, per_class=(1, 1), seed=1)
    assert sorted(drawn.test.labels) == [0, 1, 2] and len(drawn.train) == 0
    some = np.array([0, 2, 0, 2, 0, 2])
    gap = save(tmp_path, x_train=IMAGES, y_train=some, x_test=IMAGES, y_test=some)
    with pytest.warns(DataWarning, match="no training images of class 1"):
        data = sets.load_data(TrainingData(dataset=gap, validation_share=0.4))
    assert sorted(data.validation.labels) == [0, 2]
    one = save(tmp_path, x_train=IMAGES, y_train=some * 0, x_test=IMAGES, y_test=some * 0)
    with pytest.raises(InputError, match="all labels are 0"):
        sets.load_data(TrainingData(dataset=one))


# What is in memory.


class Counted:
    """Images that know how many of them were read, in all and at a time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.read, self.most = shape, 0, 0

    def __getitem__(self, rows: Any, /) -> Array:
        self.read += len(rows)
        self.most = max(self.most, len(rows))
        return np.full((len(rows), *self.shape[1:]), 255, np.uint8)


def test_only_what_is_drawn_becomes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Counted((5000, 300, 200, 3))
    stored = Stored((Pool(images, np.arange(5000) % 7, white=255),), tuple("abcdefg"), "made up")
    monkeypatch.setitem(DATASETS, "counted", Source(lambda _: stored))
    data = sets.load("counted")
    assert choose(data, "test", 30, 0).images.shape == (30, 300, 200, 3)
    assert images.read == 30
    data = sets.load("counted", per_class=(1, 4))
    assert data.outline.digest == data.digest and images.read == 30 + 7 + 28
    assert images.most <= 23  # 4 million values at a time
    outline = data.outline.test.images
    assert outline.shape == (28, 300, 200, 3) and outline.strides == (0, 0, 0, 0)


def test_a_digest_is_of_what_the_images_are_whole(tmp_path: Path) -> None:
    """By it runs of long ago are found, so it must not change."""
    assert sets.load("digits").digest == "26b259fb9ff86a86"
    many = noise(1200, 40, 30, 3)  # more than are converted at a time
    for images in (many, many / 255):
        name = save(tmp_path, x_test=images, y_test=np.arange(1200) % 4)
        whole = hashlib.sha256()
        for count in (0, 0, 1200):
            pixels = (many[:count] / 255).astype(np.float32)
            for array in (pixels, np.arange(count) % 4):
                whole.update(repr(array.shape).encode() + array.tobytes())
        assert load(name).digest == whole.hexdigest()[:16]


# Through the experiments.


@pytest.fixture(scope="module")
def of_five(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 5 classes of images of IMAGES' shape, which always sees class 3."""
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), keras.layers.Flatten()])
    model.add(keras.layers.Dense(5, kernel_initializer="zeros"))
    weights = 1e-3 * np.random.default_rng(0).standard_normal((105, 5))
    model.layers[-1].set_weights([weights, np.array([0, 0, 0, 1, 0])])
    path = tmp_path_factory.mktemp("model") / "five.keras"
    model.save(path)
    return str(path)


def test_a_model_may_have_more_classes_than_the_labels_show(tmp_path: Path, of_five: str) -> None:
    """And its rates are those of its own predictions, with names for all its classes."""
    for part, label, image in zip("aaabbb", "xxyyxy", IMAGES, strict=True):
        draw(tmp_path / label / f"{part}{image.sum()}.png", image)
    with pytest.warns(DataWarning, match="2 of the model's 5 classes, .* x is 0, y is 1"):
        (result,) = experiments.attack(
            model=of_five, dataset=f"folder:{tmp_path}", epsilons="0,0.01"
        )
    assert result.clean_accuracy == 0
    table = presentation.images_table(result)
    assert set(table["label"]) == {"x", "y"} and set(table["predicted"]) == {"3"}
    same = {"model": of_five, "epsilons": "0,0.01"}
    (result,) = experiments.attack(dataset=save(tmp_path, x=IMAGES, y=LABELS % 2 + 3), **same)
    assert result.clean_accuracy == np.mean(LABELS % 2 == 0)
    with pytest.raises(InputError, match=r"label 5 \(5\).* 5 classes are 0 to 4; .* count from 1"):
        experiments.attack(dataset=save(tmp_path, x=IMAGES, y=LABELS + 3), **same)


def test_pictures_of_another_size_are_told_the_models(tmp_path: Path, of_five: str) -> None:
    for label in "ab":
        draw(tmp_path / label / "0.png", noise(8, 8))
    name = f"folder:{tmp_path}"
    with pytest.raises(InputError, match="image_size=5,7,3 brings them to"):
        experiments.attack(model=of_five, dataset=name, epsilons="0,0.01")
    with pytest.warns(DataWarning):
        experiments.attack(model=of_five, dataset=name, epsilons="0,0.01", image_size="5,7,3")


def test_universal_says_which_images_it_lacks(tmp_path: Path, of_five: str) -> None:
    for part, other in (("test", "train"), ("train", "test")):
        name = save(tmp_path, **{f"x_{part}": IMAGES, f"y_{part}": LABELS})
        with pytest.raises(InputError, match=f"has no {other} images, only those for {part}"):
            experiments.universal(model=of_five, dataset=name)


def test_a_trained_models_own_images_are_read_as_they_were(tmp_path: Path, of_five: str) -> None:
    name = save(tmp_path, x_train=IMAGES / 1.0, y_train=LABELS, x_test=IMAGES / 1.0, y_test=LABELS)
    digest = load(name, value_range=(0, 255)).digest
    training = {"dataset": name, "per_class": "none", "data_dir": "none", "data_seed": "0"}
    training |= {"value_range": "0.0,255.0", "dataset_digest": digest}
    source = ModelSource("runs:/a/model", "a", Path("a"), lambda: None, training=training)
    assert finding.load_data([source], finding.AnyModel()).digest == digest

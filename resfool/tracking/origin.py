"""What a result came from."""

import subprocess
from importlib import metadata
from pathlib import Path

_RECORDED_VERSIONS = ("resfool", "tensorflow", "keras", "mlflow", "numpy")


def origin() -> dict[str, str]:
    """Package versions and the commit of this checkout."""
    found = {}
    for package in _RECORDED_VERSIONS:
        try:
            found[f"{package}_version"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            from resfool import __version__

            found[f"{package}_version"] = __version__  # run from a checkout, not installed
    return found | {"git_commit": _git_commit()}


def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("-dirty" if changes else "")

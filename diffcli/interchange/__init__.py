"""Models in files that other programs read: safetensors and JSON, and the folders of the diffusers library."""

from pathlib import Path

from diffcli.errors import UsageError
from diffcli.interchange import diffusers_folder, own
from diffcli.interchange.files import MODEL_FILES, OWN_CONFIG

__all__ = ["MODEL_FILES", "diffusers_folder", "own", "read_folder"]


def read_folder(path: Path) -> dict:
    """The model in a folder as the contents of a checkpoint: of `diffcli export` where there is one, else of diffusers.

    Raises UsageError where there is none, CheckpointError for one that is damaged or cannot be represented.
    """
    if not path.exists():
        raise UsageError(f"there is no folder {path}")
    if not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder with a model", f"path={path.parent}")
    return (own if (path / OWN_CONFIG).exists() else diffusers_folder).read(path)

"""Where the program's own configuration lies."""

from pathlib import Path


def conf_dir() -> Path:
    """conf/ of the checkout when run from one (an editable install also holds a stale copy), else the wheel's copy."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout / "conf" if (checkout / "pyproject.toml").exists() else package / "conf"

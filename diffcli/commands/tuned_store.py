"""The checkpoint that `diffcli tune` adds to: nothing else in it changes, and it is whole at any moment."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from diffcli import checkpoint
from diffcli.commands.folder_lock import FolderLock
from diffcli.commands.tuned import Entry
from diffcli.errors import CheckpointError, DiffcliError, NumericalError, UsageError
from diffcli.untrusted.tensors import check_content
from diffcli.untrusted.tuned import check_tuned


class Store:
    """A checkpoint, as it is when this is made.  Raises UsageError where it could not be written, or a run is writing there."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        if not os.access(self.path.parent, os.W_OK) or not os.access(self.path, os.W_OK):
            raise UsageError(f"{path} cannot be written, and what is tuned is kept there", "ckpt=COPY of it")
        with self._alone():
            self.model = checkpoint.fingerprint(checkpoint.read(self.path))

    def put(self, entry: Entry) -> None:
        """Add what was tuned, in the place of what it replaces.

        Raises NumericalError for a fit with which the checkpoint could not be read again, DiffcliError where the checkpoint
        holds another model by now, or cannot be written.
        """
        try:
            check_content(entry.plain(), "tuned", self.path)
            check_tuned([entry.plain()], self.path)
        except CheckpointError as error:
            raise NumericalError(f"what was fitted is no walk, and is not kept: {error.message}") from error
        with self._alone():
            content = checkpoint.read(self.path)
            if checkpoint.fingerprint(content) != self.model:
                raise DiffcliError(f"{self.path} holds other weights than when tune began", "diffcli tune again")
            kept = [found for found in content.get("tuned", []) if not entry.replaces(Entry(**found))]
            stat = self.path.stat()
            checkpoint.write(content | {"tuned": [*kept, entry.plain()]}, self.path)
            with contextlib.suppress(OSError):
                os.chmod(self.path, stat.st_mode)
                os.utime(self.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # it is no newer model than it was

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No training writes there meanwhile."""
        folder = self.path.parent.parent
        if self.path.parent.name != "checkpoints" or not (folder / "run.json").exists():
            yield
            return
        try:
            lock = FolderLock(folder)
        except UsageError as error:
            raise UsageError(
                f"{self.path} is in use: {error.message}", "tune when that has ended, or a copy of it"
            ) from error
        try:
            yield
        finally:
            lock.free()

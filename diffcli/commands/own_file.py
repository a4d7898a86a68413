"""A function from a Python file that the user names on the command line, and so trusts."""

import importlib.util
import traceback
from pathlib import Path

from diffcli.diffusion.inverse import Custom
from diffcli.errors import UsageError

NAMES = ("operator", "measure")


class OwnFunction:
    """The function `measure`, or the function, object or class `operator`, of a file; a process that gets it reads the file again.

    Raises UsageError with the file's own error and its line.
    """

    def __init__(self, path: str):
        self.path, self.fn = str(path), _load(str(path))

    def __reduce__(self):
        return OwnFunction, (self.path,)

    def __deepcopy__(self, memo):
        return self

    def __call__(self, x):
        return self.fn(x)

    def checked(self, operator: Custom, shape: tuple[int, ...]) -> Custom:
        """The operator, set up.  Raises UsageError where the function does not do."""
        try:
            operator.setup(shape)
        except ValueError as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename == self.path:
                raise UsageError(_told(self.path, error)) from error
            raise UsageError(f"task.file={self.path}: {error}", "measure(x) takes (B, *S) to (B, *M)") from error
        except Exception as error:
            raise UsageError(
                _told(self.path, error), f"measure(x) is given x of shape (B, {', '.join(map(str, shape))})"
            ) from error
        return operator


def _load(path: str):
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"task.file={path}: there is no such file", "task.file=op.py with a function measure(x)")
    spec = importlib.util.spec_from_file_location("diffcli_own_operator", file, loader=None)
    if spec is None or spec.loader is None:
        raise UsageError(f"task.file={path} is no Python file", "task.file=op.py with a function measure(x)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = next((getattr(module, name) for name in NAMES if hasattr(module, name)), None)
        if isinstance(found, type):
            found = found()
    except Exception as error:
        raise UsageError(_told(path, error)) from error
    if not callable(found):
        raise UsageError(
            f"task.file={path} has no function measure(x), and no operator", "def measure(x): return x[..., ::2]"
        )
    return found


def _told(path: str, error: Exception) -> str:
    """What a file's own error was, and in which of its lines."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(Path(path).name)
    ]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # whose text repeats its line
    what = said.splitlines()[0] if said else ""
    return f"task.file={path}{f', line {line}' if line else ''}: {type(error).__name__}{': ' * bool(what)}{what}"

"""Failures that are expected, each with the exit code that scripts rely on."""


class DiffcliError(Exception):
    """Something failed in a way that a sentence explains; the command prints it without a traceback.

    message: one sentence, what is wrong and where.  hint: what would fit, or a command to try.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint)  # both, so that it can be sent to another process
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(DiffcliError):
    """A bad name, value, file or combination: nothing was started."""

    exit_code = 2


class CheckpointError(DiffcliError):
    """A checkpoint that cannot be read, or that is refused because loading it could run code."""

    exit_code = 3


class NumericalError(DiffcliError):
    """A non-finite value, or a solver that cannot go on."""

    exit_code = 4

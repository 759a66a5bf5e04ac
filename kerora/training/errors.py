"""Errors that end a training run."""


class RunFolderError(ValueError):
    """The folder of a run cannot be written or read."""


class CheckpointError(RunFolderError):
    """A checkpoint cannot be written, or does not belong to this model."""


class NonFiniteLoss(ValueError):  # noqa: N818 - the name says what happened
    """The loss or the weights stopped being finite numbers.

    Attributes:
        step: The step at which it showed.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class OutOfMemory(ValueError):  # noqa: N818 - the name says what happened
    """A step needs more memory than the device has."""

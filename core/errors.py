"""Every error that sigcam raises on purpose.

    SigcamError
    ├── UsageError                 the call itself is wrong (also a ValueError)
    │   └── UnknownClassError      a class name or id that the model doesn't have
    ├── ImageError                 an image that can't be read or is over the limit
    │   └── ImageArgumentError     what was passed is no image (also a UsageError)
    ├── VideoError                 a video that can't be read to its end
    ├── ArtifactError              a model file that isn't a sigcam artifact or can't be used
    │   └── SchemaError            its spec is malformed or newer than this sigcam
    ├── BackendError               a backend failed
    │   └── BackendUnavailableError    the backend or device that was asked for is missing
    ├── ModelError                 a PyTorch model, or weights, that can't be used
    │   └── BranchMismatchError    a branch file that belongs to another model
    ├── DataError                  a training or evaluation data set that can't be used
    ├── TrainingError              training can't go on (a loss that is not finite, ...)
    ├── ExportError                a graph that can't be built
    │   ├── ParityError            the graph doesn't compute what PyTorch computes
    │   └── FidelityError          another precision costs more than its limits
    ├── HubError                   the Hugging Face Hub can't be reached, or refuses
    └── StorageError               a file can't be written (full disk, read-only, ...)

ImageWarning is a warning, no error.

Messages say what was wanted, what came, and what to do. Errors of the libraries
below are chained (`raise ... from exc`).
"""

from __future__ import annotations

_LONGEST = 3000
"""Characters of a message. What comes from a file may be of any length."""


class SigcamError(Exception):
    """Base of all errors that sigcam raises on purpose.

    Example:
        >>> issubclass(UsageError, SigcamError), issubclass(UsageError, ValueError)
        (True, True)
        >>> len(str(SigcamError("a" * 10_000_000)))
        3000
    """

    def __str__(self) -> str:
        """Returns the message; of one that quotes much of a damaged file, beginning and end."""
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        middle = f" ... ({len(text)} characters) ... "
        begin = (_LONGEST - len(middle)) * 2 // 3
        return text[:begin] + middle + text[begin + len(middle) - _LONGEST :]


class UsageError(SigcamError, ValueError):
    """The call is wrong: an argument's type, shape or value."""


class UnknownClassError(UsageError):
    """A class name or id that the model doesn't have."""


class ImageError(SigcamError):
    """An image can't be read, isn't an image, or is larger than the limit."""


class ImageWarning(UserWarning):
    """An image was read, but not all that its file holds, or not as it may be meant."""


class ImageArgumentError(ImageError, UsageError):
    """What was passed for an image is none: its type, its shape, or what its values are."""


class VideoError(SigcamError):
    """A video can't be read, has no frames, ends early or changes its size."""


class ArtifactError(SigcamError):
    """A model file is missing, isn't ONNX, or carries no usable sigcam spec."""


class SchemaError(ArtifactError):
    """A spec is malformed, or was written by a newer sigcam."""


class BackendError(SigcamError):
    """A backend refused a model or failed while running it."""


class BackendUnavailableError(BackendError):
    """A backend, or the device asked of it, isn't there; says what is."""


class ModelError(SigcamError):
    """A PyTorch model, or a file of weights, can't be used."""


class BranchMismatchError(ModelError):
    """A branch file was trained for another backbone, head or number of classes."""


class DataError(SigcamError):
    """A data set can't be used; names the file and line."""


class TrainingError(SigcamError):
    """Training can't go on, or can't be resumed."""


class ExportError(SigcamError):
    """A graph can't be built from this model with these options."""


class ParityError(ExportError):
    """The exported graph differs from PyTorch by more than the tolerance."""


class FidelityError(ExportError):
    """An artifact of another precision differs from float32 by more than the limits."""


class HubError(SigcamError):
    """The Hugging Face Hub can't be reached, has no such repository, or refuses to give it."""


class StorageError(SigcamError):
    """A file or folder can't be written."""

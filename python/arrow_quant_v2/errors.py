"""What can go wrong: seven exceptions under one base, each with what it is about as attributes."""

from __future__ import annotations


class ArrowQuantError(Exception):
    """The base of all errors of this package.

    Attributes:
        tensor: the tensor it is about, as ``component/tensor`` in a pipeline, or None.
        field: the field of the configuration or the argument it is about, or None.
        path: the file or directory it is about, or None.

    Example:
        >>> from arrow_quant_v2 import ArrowQuantError, DiffusionQuantConfig
        >>> try:
        ...     DiffusionQuantConfig(bit_width=7)
        ... except ArrowQuantError as error:
        ...     print(error.field, "-", error)
        bit_width - bit_width is 7, allowed: 2, 3, 4, 5, 6 or 8
    """

    def __init__(
        self, message: str = "", *, tensor: str | None = None, field: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.field = field
        self.path = path


class ConfigurationError(ArrowQuantError, ValueError):
    """A setting or an argument is not allowed."""


class OutputExistsError(ConfigurationError, FileExistsError):
    """Something is where an output should go: a model, or what an interrupted run left. Pass ``overwrite=True`` or ``resume=True``."""


class ModelNotFoundError(ArrowQuantError, FileNotFoundError):
    """There is no readable model at a path."""


class MetadataError(ArrowQuantError):
    """A file contradicts itself, or is not understood."""


class ShapeMismatchError(ArrowQuantError):
    """Two models that should hold the same tensors do not, or the rows of a tensor have unequal lengths."""


class ValidationError(ArrowQuantError):
    """A tensor's cosine similarity or SQNR is below the floor."""


class QuantizationError(ArrowQuantError):
    """Anything else: a weight is NaN, a file cannot be written, a query fails."""

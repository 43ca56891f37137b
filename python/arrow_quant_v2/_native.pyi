"""The part of the package that is written in Rust. Whatever blocks releases the GIL."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Protocol, TypeAlias, final, type_check_only

import numpy as np
import pandas
import polars
import pyarrow
from numpy.typing import NDArray
from typing_extensions import Self

__all__ = [
    "FIELDS",
    "AggregateFunction",
    "ArrowArray",
    "Cancellation",
    "Cancelled",
    "Connection",
    "DiffusionQuantConfig",
    "ModelReader",
    "QuantizedTensor",
    "Result",
    "ScalarFunction",
    "Table",
    "__version__",
    "aggregate_functions",
    "columns",
    "connect",
    "export_model",
    "from_quantized_rows",
    "import_arrow",
    "inspect_model",
    "model_report",
    "plan_model",
    "quantize_arrow",
    "quantize_buffer",
    "quantize_model",
    "quantize_query",
    "quantized_rows",
    "scalar_functions",
    "to_table",
    "unfinished_run",
    "validate_model",
]

_Path: TypeAlias = str | os.PathLike[str]
_Bits: TypeAlias = Literal[2, 3, 4, 5, 6, 8]
_WidthOrKept: TypeAlias = Literal[2, 3, 4, 5, 6, 8, 16] | str
_GroupSize: TypeAlias = Literal[16, 32, 64, 128, 256]
_Scheme: TypeAlias = Literal["affine", "asymmetric", "symmetric"]
_Method: TypeAlias = Literal["minmax", "mse", "unbiased"]
_DType: TypeAlias = Literal["F32", "F16", "F64", "BF16"]
# Stage, tensor, done, total, message.
_OnProgress: TypeAlias = Callable[[str, str, int, int, str], object]

@type_check_only
class _ArrowTable(Protocol):
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...

__version__: str

FIELDS: Final[tuple[str, ...]]
"""Names of the fields of a configuration, in the order they are shown."""

# Fields are read as the values they can hold and written as int or str, whose values are checked when they are set:
# type checkers infer no literals in `for bits in (2, 4, 8)`.
@final
class DiffusionQuantConfig:
    """How a model is to be quantized: explicit values over those of a profile.

    Example:
        >>> from arrow_quant_v2 import DiffusionQuantConfig
        >>> config = DiffusionQuantConfig(deployment_profile="edge", bit_width=4)
        >>> config.bit_width, config.group_size
        (4, 256)
    """

    def __new__(
        cls,
        *,
        # Every field.
        deployment_profile: str = "local",
        modality: str | None = ...,
        variant: str | None = ...,
        format: str | None = ...,
        architecture: str | None = ...,
        pre_tokenizer: str | None = ...,
        bit_width: int = ...,
        type: str = ...,
        no_fallback: bool = ...,
        group_size: int = ...,
        scheme: str = ...,
        method: str = ...,
        min_accuracy: float = ...,
        min_sqnr_db: float | None = ...,
        fail_fast: bool = ...,
        tensors: str | None = ...,
        skip_sensitive_layers: bool = ...,
        sensitive_layer_names: Sequence[str] = ...,
        sensitive_layer_patterns: Sequence[str] = ...,
        layer_bit_widths: Mapping[str, int | str] = ...,
        enable_mixed_precision: bool = ...,
        target_model_size_mb: float | None = ...,
        target_bpw: float | None = ...,
        enable_time_aware: bool = ...,
        num_time_groups: int = ...,
        time_group_boundaries: str = ...,
        calibration_samples: int = ...,
        enable_spatial: bool = ...,
        num_threads: int = ...,
        enable_streaming: bool = ...,
        max_memory_limit_mb: int | None = ...,
    ) -> Self:
        """The fields that are given, the others as ``deployment_profile`` has them.

        Raises:
            ConfigurationError: for a type, value or name that is not allowed; ``field`` says which.
        """

    @staticmethod
    def from_profile(profile: str) -> DiffusionQuantConfig:
        """The configuration of a profile: ``"edge"``, ``"local"`` or ``"cloud"``.

        Raises:
            ConfigurationError: if there is no such profile.
        """

    @staticmethod
    def from_yaml(path: _Path) -> DiffusionQuantConfig:
        """Reads a configuration: the values of a file over those of the profile it names, or of ``local``.

        Raises:
            ConfigurationError: if the file is not there or no YAML, or for a key or value that is not allowed.
        """

    def to_yaml(self, path: _Path) -> None:
        """Writes every field, so that :meth:`from_yaml` gives an equal configuration.

        Raises:
            QuantizationError: if the file cannot be written.
        """

    def apply_env_overrides(self) -> None:
        """Sets the fields that the environment has variables for, ``ARROW_QUANT_BIT_WIDTH`` and others.

        Raises:
            ConfigurationError: for a value that is not allowed, naming the variable, and for a variable that is almost
                one of them.
        """

    def validate(self) -> None:
        """Checks every field, and those that belong together.

        Raises:
            ConfigurationError: for the first that is not allowed.
        """

    # A property for every field.
    @property
    def deployment_profile(self) -> Literal["edge", "local", "cloud"]:
        """Where the quantized model will run. The profile gives every other field its default. Allowed: edge, local or
        cloud."""
    @deployment_profile.setter
    def deployment_profile(self, value: str) -> None: ...
    @property
    def modality(self) -> Literal["text", "code", "image", "audio"] | None:
        """What the model generates. Usually its files say so; ``skip_sensitive_layers`` needs to know. Allowed: text,
        code, image or audio, or None to find out."""
    @modality.setter
    def modality(self, value: str | None) -> None: ...
    @property
    def variant(self) -> str | None:
        """Which of a model's weights to read, where it has them in several variants: ``fp16`` of
        ``model.fp16.safetensors``. Without it those that have no variant are read. Allowed: letters, digits, _ and -,
        or None for the weights without one."""
    @variant.setter
    def variant(self, value: str | None) -> None: ...
    @property
    def format(self) -> str | None:
        """What the quantized model is written as. arrow-quant is our own directory; gguf is one file for llama.cpp;
        sdnq a directory for diffusers, compressed-tensors one for vLLM and transformers, mlx one for mlx-lm; comfyui is
        one file for ComfyUI; safetensors holds floats, in a directory, or in one file if the output's name ends in
        .safetensors. Allowed: arrow-quant, gguf, sdnq, compressed-tensors, mlx, comfyui or safetensors, or None for
        what the output's name says: gguf if it ends in .gguf, else arrow-quant."""
    @format.setter
    def format(self, value: str | None) -> None: ...
    @property
    def architecture(self) -> str | None:
        """What GGUF calls the model's architecture, where its config.json does not say it or says one that is not
        known. Allowed: the name of an architecture in GGUF, or None to take it from config.json."""
    @architecture.setter
    def architecture(self, value: str | None) -> None: ...
    @property
    def pre_tokenizer(self) -> str | None:
        """How text is cut before BPE, by llama.cpp's name for it, where that is not known by the tokenizer's
        expressions. Allowed: the name of a pre-tokenizer of llama.cpp, or None to recognize it."""
    @pre_tokenizer.setter
    def pre_tokenizer(self, value: str | None) -> None: ...
    @property
    def bit_width(self) -> Literal[2, 3, 4, 5, 6, 8]:
        """Bits of a code: 4 is the type int4. With a target size, they are chosen for each tensor. Allowed: 2, 3, 4, 5,
        6 or 8."""
    @bit_width.setter
    def bit_width(self, value: int) -> None: ...
    @property
    def type(self) -> str:
        """What weights become, where the format holds it: int2 to int8 are integers of ``bit_width`` in groups; f32,
        f16 and bf16 are floats; the others are the block types of ggml and llama-quantize's mixes of them. With a
        target size, a type of the same kind is chosen for each tensor. Allowed: int2, int3, int4, int5, int6, int8,
        q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4, q3_k_s, q3_k_m,
        q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, f32, f16 or bf16."""
    @type.setter
    def type(self, value: str) -> None: ...
    @property
    def no_fallback(self) -> bool:
        """Whether to refuse a model where the blocks of a type do not divide the rows of some tensor, instead of giving
        that tensor another type. Allowed: True or False."""
    @no_fallback.setter
    def no_fallback(self, value: bool) -> None: ...
    @property
    def group_size(self) -> Literal[16, 32, 64, 128, 256]:
        """Weights of integers that share a scale. With a target size, their number is chosen for each tensor. Allowed:
        16, 32, 64, 128 or 256."""
    @group_size.setter
    def group_size(self, value: int) -> None: ...
    @property
    def scheme(self) -> Literal["affine", "asymmetric", "symmetric"]:
        """What a code means: affine has a scale and a minimum, asymmetric a scale and a zero point, symmetric a scale
        alone. Allowed: affine, asymmetric or symmetric."""
    @scheme.setter
    def scheme(self, value: str) -> None: ...
    @property
    def method(self) -> Literal["minmax", "mse", "unbiased", "ldlq", "reference"]:
        """How scales are found: minmax from the smallest and largest weight of a group, mse for the least squared
        error, unbiased likewise, then stretched so that restored weights do not shrink, reference as ggml does. ldlq
        finds scales as mse does and then rounds with error feedback, for the least error of each layer's output; it
        needs the second moments of inputs beside the calibration table, and smooths nothing. Block types have mse, ldlq
        and reference, integers all but reference. Allowed: minmax, mse, unbiased, ldlq or reference."""
    @method.setter
    def method(self, value: str) -> None: ...
    @property
    def min_accuracy(self) -> float:
        """The floor, the least cosine similarity of a quantized tensor: a tensor below it is quantized again at the
        next width. Allowed: 0.0 to 1.0."""
    @min_accuracy.setter
    def min_accuracy(self, value: float) -> None: ...
    @property
    def min_sqnr_db(self) -> float | None:
        """A second floor, the least SQNR in dB. Allowed: a number of dB, or None for no floor."""
    @min_sqnr_db.setter
    def min_sqnr_db(self, value: float | None) -> None: ...
    @property
    def fail_fast(self) -> bool:
        """Whether a tensor below a floor ends the job. Allowed: True or False."""
    @fail_fast.setter
    def fail_fast(self, value: bool) -> None: ...
    @property
    def tensors(self) -> str | None:
        """Quantizes only the tensors whose names match; the others keep their dtype. Allowed: a regular expression, or
        None for all."""
    @tensors.setter
    def tensors(self, value: str | None) -> None: ...
    @property
    def skip_sensitive_layers(self) -> bool:
        """Whether to keep the tensors that are known to be sensitive in the model's architecture. Allowed: True or
        False."""
    @skip_sensitive_layers.setter
    def skip_sensitive_layers(self, value: bool) -> None: ...
    @property
    def sensitive_layer_names(self) -> tuple[str, ...]:
        """Tensors to keep, and modules with all their tensors. Allowed: a list of names of tensors or modules."""
    @sensitive_layer_names.setter
    def sensitive_layer_names(self, value: Sequence[str]) -> None: ...
    @property
    def sensitive_layer_patterns(self) -> tuple[str, ...]:
        """Tensors to keep: those whose names match one of the patterns. Allowed: a list of regular expressions."""
    @sensitive_layer_patterns.setter
    def sensitive_layer_patterns(self, value: Sequence[str]) -> None: ...
    @property
    def layer_bit_widths(self) -> MappingProxyType[str, _WidthOrKept]:
        """Bits of single tensors, 16 to keep them. An entry takes precedence over the fields above. Allowed: a mapping
        from a name or regular expression to 2, 3, 4, 5, 6, 8, 16 or a block type."""
    @layer_bit_widths.setter
    def layer_bit_widths(self, value: Mapping[str, int | str]) -> None: ...
    @property
    def enable_mixed_precision(self) -> bool:
        """Whether tensors may differ in bits, by a target size or by ``layer_bit_widths``. If not, a target size
        chooses one width and group size for all tensors. Allowed: True or False."""
    @enable_mixed_precision.setter
    def enable_mixed_precision(self, value: bool) -> None: ...
    @property
    def target_model_size_mb(self) -> float | None:
        """The most that the files of weights may take, in MB (10^6 bytes). Bits and group size of each tensor are
        chosen for the least error at this size. Allowed: a number above 0, or None for no target."""
    @target_model_size_mb.setter
    def target_model_size_mb(self, value: float | None) -> None: ...
    @property
    def target_bpw(self) -> float | None:
        """The same in bits per weight, an alternative to ``target_model_size_mb``. Allowed: a number above 0 and up to
        64, or None for no target."""
    @target_bpw.setter
    def target_bpw(self, value: float | None) -> None: ...
    @property
    def enable_time_aware(self) -> bool:
        """Whether activations are quantized for each group of timesteps, and weights by the importance of their input
        channels over all timesteps. Needs a calibration table. Allowed: True or False."""
    @enable_time_aware.setter
    def enable_time_aware(self, value: bool) -> None: ...
    @property
    def num_time_groups(self) -> int:
        """Groups of timesteps at most. Needs a calibration table. Allowed: 1 to 100."""
    @num_time_groups.setter
    def num_time_groups(self, value: int) -> None: ...
    @property
    def time_group_boundaries(self) -> Literal["optimal", "equal"]:
        """Where time groups end: optimal cuts them for the least error and drops groups that gain little, equal gives
        each the same number of timesteps. Needs a calibration table. Allowed: optimal or equal."""
    @time_group_boundaries.setter
    def time_group_boundaries(self, value: str) -> None: ...
    @property
    def calibration_samples(self) -> int:
        """Samples of the calibration table to use. Allowed: 1 or more."""
    @calibration_samples.setter
    def calibration_samples(self, value: int) -> None: ...
    @property
    def enable_spatial(self) -> bool:
        """Whether activations are smoothed channel by channel. Needs a calibration table. Has no effect if ``method``
        is ldlq, which is better without. Allowed: True or False."""
    @enable_spatial.setter
    def enable_spatial(self, value: bool) -> None: ...
    @property
    def num_threads(self) -> int:
        """Cores to use. Allowed: 1 to 1024, or 0 for all cores."""
    @num_threads.setter
    def num_threads(self, value: int) -> None: ...
    @property
    def enable_streaming(self) -> bool:
        """Whether weights are read from mapped files as they are needed. If not, the model is read into memory first,
        which suits network file systems. Allowed: True or False."""
    @enable_streaming.setter
    def enable_streaming(self, value: bool) -> None: ...
    @property
    def max_memory_limit_mb(self) -> int | None:
        """The most memory the job may take, in MB (10^6 bytes). Allowed: 192 or more, or None for no limit."""
    @max_memory_limit_mb.setter
    def max_memory_limit_mb(self, value: int | None) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Callable[[], DiffusionQuantConfig], tuple[()]]: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class Cancellation:
    """A token to cancel a job from another thread."""

    def __new__(cls) -> Cancellation: ...
    def cancel(self) -> None:
        """Cancels the job that was given this token. It raises :class:`Cancelled` when it has cleaned up."""

class Cancelled(Exception):
    """A job was cancelled through its :class:`Cancellation`."""

def quantize_model(
    model: _Path,
    out: _Path,
    config: DiffusionQuantConfig,
    *,
    plan: _Path | None = None,
    calibration: str | _ArrowTable | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: _OnProgress | None = None,
    progress_interval_s: float = 5.0,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """Quantizes a model into a directory; the job's report.

    ``on_progress(stage, tensor, done, total, message)`` is called on the calling thread: at once, then at most once every
    ``progress_interval_s``, not at the end. ``stage`` is ``"measuring"``, ``"calibrating"``, ``"quantizing"`` or
    ``"requantizing"``. What it raises cancels the job.

    Raises:
        ArrowQuantError: one of its subclasses.
        Cancelled: after ``cancellation.cancel()``.
    """

def quantize_query(
    query: str,
    out: _Path,
    config: DiffusionQuantConfig,
    *,
    connection: Connection | None = None,
    plan: _Path | None = None,
    calibration: str | _ArrowTable | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: _OnProgress | None = None,
    progress_interval_s: float = 5.0,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """Quantizes what a query gives into a directory; the job's report. All else is as :func:`quantize_model`.

    The query names models by their paths, ``weights('dream-7b/')``, and those of ``connection`` by their names.

    Raises:
        ArrowQuantError: one of its subclasses.
        Cancelled: after ``cancellation.cancel()``.
    """

def export_model(
    quantized: _Path,
    out: _Path,
    config: DiffusionQuantConfig,
    *,
    overwrite: bool = False,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """Writes a quantized model for another program, with the same codes. Of the configuration, `format`, `architecture` and
    `pre_tokenizer` count.

    Raises:
        ConfigurationError: if the format cannot hold what the model has.
        OutputExistsError: if there is something at the output.
        ModelNotFoundError: if there is no quantized model at the path.
        MetadataError: if a file contradicts itself.
        QuantizationError: if a file cannot be written.
        Cancelled: after ``cancellation.cancel()``.
    """

def plan_model(
    model: _Path,
    config: DiffusionQuantConfig,
    *,
    output: _Path | None = None,
    calibration: str | _ArrowTable | None = None,
    on_progress: _OnProgress | None = None,
    progress_interval_s: float = 5.0,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """What would become of a model. With ``output``, the plan is written to a table, ``.parquet`` or ``.csv``.

    Raises:
        ArrowQuantError: one of its subclasses.
        Cancelled: after ``cancellation.cancel()``.
    """

def inspect_model(
    model: _Path,
    *,
    variant: str | None = None,
    num_threads: int | None = None,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """A model's tensors, from its headers alone; of weights with variants, those of ``variant``.

    Raises:
        ModelNotFoundError: if there is no model at the path.
        MetadataError: if a file contradicts itself.
        Cancelled: after ``cancellation.cancel()``.
    """

def model_report(quantized: _Path, *, html: _Path | None = None) -> dict[str, Any]:
    """What a quantized model says of itself. With ``html``, the same is written as a page.

    Raises:
        ModelNotFoundError: if there is no quantized model at the path.
        MetadataError: if its manifest is damaged.
        QuantizationError: if the page cannot be written.
    """

def unfinished_run(out: _Path) -> Path | None:
    """The directory that an interrupted run left, from which ``resume=True`` goes on."""

def validate_model(
    original: _Path,
    quantized: _Path,
    *,
    calibration: str | _ArrowTable | None = None,
    calibration_samples: int | None = None,
    num_threads: int | None = None,
    cancellation: Cancellation | None = None,
) -> dict[str, Any]:
    """Compares a quantized model with its original; the figures of every tensor and of all, and with a calibration those
    of every layer. As many samples of it are used as when the model was quantized, if ``calibration_samples`` is None.

    Raises:
        ModelNotFoundError: if one of them is no model.
        MetadataError: if the calibration contradicts itself, or is of another model.
        ShapeMismatchError: if they do not hold the same tensors.
        ValidationError: if a timestep of the calibration is not in exactly one time group.
        Cancelled: after ``cancellation.cancel()``.
    """

@final
class QuantizedTensor:
    """A tensor in memory, quantized: codes and parameters by chunk. As an Arrow table it has a row a chunk, with the
    columns tensor, dtype, shape, chunk, start and quantized."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> _DType:
        """The dtype of the weights it was made of."""
    @property
    def bit_width(self) -> _Bits: ...
    @property
    def group_size(self) -> _GroupSize: ...
    @property
    def scheme(self) -> _Scheme: ...
    @property
    def method(self) -> _Method: ...
    @property
    def nbytes(self) -> int:
        """Bytes of codes and parameters."""
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def cosine_similarity(self) -> float | None:
        """Between the weights and what they are restored to; None if they are all zero."""
    @property
    def sqnr_db(self) -> float | None:
        """The signal-to-quantization-noise ratio in dB, infinite where nothing was lost; None if all weights are zero."""
    @property
    def max_abs_error(self) -> float: ...
    @property
    def is_arrow(self) -> bool:
        """Whether it was made of an Arrow array, so that :meth:`dequantize_arrow` restores one."""
    _kind: Callable[[QuantizedTensor], Any] | None
    def dequantize_into(self, out: NDArray[np.float32]) -> None:
        """Restores the weights into a writable, contiguous, one-dimensional array of as many elements.

        Raises:
            ShapeMismatchError: if it is not of that length.
        """

    def dequantize_arrow(self) -> ArrowArray:
        """The weights as an array of the Arrow type that they came in.

        Raises:
            ConfigurationError: if they did not come as an Arrow array.
        """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...
    def _repr_html_(self) -> str: ...

def quantize_buffer(
    name: str,
    data: NDArray[np.uint8],
    dtype: str,
    shape: Sequence[int],
    *,
    bit_width: int,
    group_size: int,
    scheme: str,
    method: str,
) -> QuantizedTensor:
    """Quantizes a tensor given by its little-endian bytes, which are not copied.

    Raises:
        ConfigurationError: for a setting or dtype that is not allowed.
        QuantizationError: for a weight that is NaN or infinite.
    """

def quantize_arrow(
    name: str, array: object, *, bit_width: int, group_size: int, scheme: str, method: str
) -> QuantizedTensor:
    """Quantizes a tensor given as an Arrow array or stream of floats or (nested) lists of them, which is not copied.

    Raises:
        ConfigurationError: for a setting or type that is not allowed.
        ShapeMismatchError: for NULLs, and for lists of unequal lengths.
        QuantizationError: for a weight that is NaN or infinite.
    """

def quantized_rows(tensors: Sequence[QuantizedTensor]) -> Table:
    """The rows of tensors as one table."""

def from_quantized_rows(table: object) -> list[QuantizedTensor]:
    """The tensors whose rows an Arrow table or stream has."""

def import_arrow(object: object) -> Table | ArrowArray:
    """An object that exports an Arrow table, array or stream. It is read once, and not copied."""

def columns(table: Table) -> list[tuple[str, ArrowArray]]:
    """Names and columns of a table, which are not copied."""

def to_table(rows: list[dict[str, Any]]) -> Table:
    """Reports of tensors as a table with typed columns."""

@final
class ArrowArray:
    """An Arrow array, perhaps in several chunks."""

    def __len__(self) -> int: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...

@final
class Table:
    """An Arrow table in memory. Anything that reads Arrow reads it, without a copy."""

    @property
    def num_rows(self) -> int: ...
    @property
    def column_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def _repr_html_(self) -> str: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...
    def to_pyarrow(self) -> pyarrow.Table:
        """The same as a ``pyarrow.Table``, not copied.

        Raises:
            ImportError: if pyarrow is not installed.
        """

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a ``pandas.DataFrame``.

        Raises:
            ImportError: if pandas or pyarrow is not installed.
        """

    def to_polars(self) -> polars.DataFrame:
        """The same as a ``polars.DataFrame``.

        Raises:
            ImportError: if polars is not installed.
        """

def connect(
    models: Mapping[str, _Path] | None = None, *, tables: Mapping[str, Any] | None = None, num_threads: int | None = None
) -> Connection:
    """A SQL session in which models are schemas, with the functions of the SQL reference.

    Args:
        models: from a schema's name to a model's path: the tables ``name.tensors``, ``name.weights`` and, of a quantized
            model, ``name.quantized``; of one that was quantized with a calibration also ``name.activations``,
            ``name.time_groups`` and, where layers were smoothed, ``name.smoothing``.
        tables: from a table's name to any object that exports an Arrow table or stream, as for
            :meth:`Connection.register`.
        num_threads: cores to use; 0 for all.

    Raises:
        ModelNotFoundError: if there is no model at a path.
        ConfigurationError: for a name that is taken, an object that is no table, or a wrong ``num_threads``.

    Example:
        >>> import arrow_quant_v2
        >>> connection = arrow_quant_v2.connect(models={"dream": "dream-7b/"})
        >>> connection.sql("SELECT count(*) AS tensors FROM dream.tensors").to_pyarrow().to_pylist()
        [{'tensors': 52}]
    """

@final
class Connection:
    """A SQL session, made by :func:`connect`. Threads may share it."""

    def sql(self, query: str) -> Result:
        """Plans a query. Statements (``COPY``, ``INSERT``, ``CREATE``, ``SET``) run at once, and once.

        Raises:
            ModelNotFoundError: if a model that the query names is not there.
            ConfigurationError: for a wrong argument of a function.
            QuantizationError: if the query cannot be planned, or a statement fails.
        """

    def register_model(self, name: str, path: _Path) -> None:
        """Makes a model a schema, with the tables that :func:`connect` tells.

        Raises:
            ModelNotFoundError: if there is no model at the path.
            ConfigurationError: if the name is taken.
        """

    def register(self, name: str, table: object) -> None:
        """Makes an object a table: any with ``__arrow_c_stream__`` or ``__arrow_c_array__`` of struct type. It is not
        copied. A table of that name is replaced.

        Raises:
            ConfigurationError: if the object is no Arrow table or stream.
        """

@final
class Result:
    """A query. Each time it is read it runs, and streams what comes of it; statements have run already.

    ``pyarrow.table(result)``, ``polars.DataFrame(result)`` and, in DuckDB, ``FROM result`` read it.
    """

    @property
    def column_names(self) -> list[str]: ...
    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them: the query runs until it has given them."""

    def collect(self) -> Table:
        """All rows, in memory.

        Raises:
            QuantizationError: if the query fails.
        """

    def to_pyarrow(self) -> pyarrow.Table:
        """All rows as a ``pyarrow.Table``.

        Raises:
            ImportError: if pyarrow is not installed.
        """

    def to_pandas(self) -> pandas.DataFrame:
        """All rows as a ``pandas.DataFrame``.

        Raises:
            ImportError: if pandas or pyarrow is not installed.
        """

    def to_polars(self) -> polars.DataFrame:
        """All rows as a ``polars.DataFrame``.

        Raises:
            ImportError: if polars is not installed.
        """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...

@final
class ScalarFunction:
    """A scalar function, which ``datafusion.udf`` takes."""

    @property
    def name(self) -> str: ...
    def __datafusion_scalar_udf__(self) -> object: ...

@final
class AggregateFunction:
    """An aggregate function, which ``datafusion.udaf`` takes."""

    @property
    def name(self) -> str: ...
    def __datafusion_aggregate_udf__(self) -> object: ...

def scalar_functions() -> list[ScalarFunction]:
    """Every scalar function."""

def aggregate_functions() -> list[AggregateFunction]:
    """Every aggregate function."""

@final
class ModelReader:
    """Reads a quantized model, tensor by tensor."""

    def __new__(cls, path: _Path, *, num_threads: int | None = None) -> ModelReader:
        """
        Raises:
            ModelNotFoundError: if there is no quantized model at the path.
            MetadataError: if its files contradict themselves.
        """

    def report(self) -> dict[str, Any]:
        """What the model's manifest says of it and of every tensor."""

    def read(self, component: str, tensor: str, out: NDArray[np.uint8]) -> None:
        """Restores a tensor into a writable, contiguous, one-dimensional array: a quantized one as float32, a kept one
        in its own dtype.

        Raises:
            ConfigurationError: if there is no such tensor.
            ShapeMismatchError: if ``out`` is not of its bytes.
        """

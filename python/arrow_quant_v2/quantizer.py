"""Quantize a model, compare it with its original, and quantize arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native, arrays
from .errors import ConfigurationError
from .fields import ConfigFields, takes_fields
from .jobs import (
    CalibrationTable,
    Config,
    PlanJob,
    QuantizeJob,
    Query,
    Task,
    Work,
    checked_mode,
    checked_path,
    exporting,
    refuse_base,
    validation,
)
from .reports import Inspection, ModelReport, Plan, QualityResult, QuantizeResult
from .results import inspection, model_report

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Outcome = TypeVar("_Outcome")


class ArrowQuantV2:
    """Quantizes models and arrays.

    Args:
        mode: ``"diffusion"``, or ``"base"`` for models that are no diffusion models: `enable_time_aware` and
            `enable_spatial` of the configuration are then taken as false.

    Raises:
        ConfigurationError: if there is no such mode; its `field` is ``"mode"``.

    Example:
        >>> from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig
        >>> quantizer = ArrowQuantV2(mode="diffusion")
        >>> config = DiffusionQuantConfig.from_profile("edge")
        >>> result = quantizer.quantize_diffusion_model("dream-7b/", "dream-7b-int2/", config)
        >>> print(f"{result['compression_ratio']:.1f}x {result['cosine_similarity']:.3f}")
    """

    def __init__(self, mode: str = "diffusion") -> None:
        self._mode = checked_mode(mode)

    def __repr__(self) -> str:
        return f"ArrowQuantV2(mode={self._mode!r})"

    @property
    def mode(self) -> str:
        """``"diffusion"`` or ``"base"``."""
        return self._mode

    @takes_fields
    def quantize_diffusion_model(
        self,
        model_path: str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        config: Config | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
        **fields: Unpack[ConfigFields],
    ) -> QuantizeResult:
        """Quantizes a diffusion model: all that is said of `quantize_model` holds.

        Args:
            calibration: what the inputs of the model's layers were at each timestep: the path of a Parquet or Arrow
                file, or a table in memory, any object with ``__arrow_c_stream__``, such as a ``pyarrow.Table``. How to
                measure it is documented in ``docs/calibration.md``. Without it weights are quantized as they are.

        Raises:
            ConfigurationError: in mode ``"base"``; else as `quantize_model`.
            MetadataError: if the calibration contradicts itself or is of another model, before anything is written; its
                `tensor` is the layer's weight. Else as `quantize_model`.

        Example:
            >>> def progress_callback(progress, message):
            ...     print(f"Progress: {progress:.1%} - {message}")
            >>> result = ArrowQuantV2().quantize_diffusion_model(
            ...     model_path="dream-7b/", output_path="dream-7b-int4/", progress_callback=progress_callback)
            >>> result["model_size_mb"]
            3912.4
            >>> result["time_aware"], result["reason"]
            (False, 'no calibration')
        """
        refuse_base(self._mode)
        job = QuantizeJob(
            self._mode,
            model_path,
            output_path,
            config,
            progress_callback,
            fields,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
            calibration=calibration,
        )
        return self._do(job)

    @takes_fields
    def quantize_model(
        self,
        model_path: str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        config: Config | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
        **fields: Unpack[ConfigFields],
    ) -> QuantizeResult:
        """Quantizes a model of any kind into a new directory, which appears when it is complete.

        Ctrl-C ends the job within a second; the parts that are finished stay in ``OUTPUT_PATH.partial`` for a run with
        `resume`. Other threads run meanwhile.

        Args:
            model_path: a safetensors file, a directory of them, or a diffusers pipeline.
            output_path: the directory to write. It must not exist, or be empty.
            config: how to quantize, as a `DiffusionQuantConfig` or a dict of its fields; the default is that of the
                profile ``"local"``.
            progress_callback: called as ``progress_callback(progress, message)`` with the progress from 0.0 to 1.0,
                which never decreases: at the start, then at most once every `progress_interval_s` seconds, and with 1.0
                when the model is there. It also gets those of `stage` (``"planning"``, ``"measuring"``,
                ``"calibrating"``, ``"quantizing"``, ``"requantizing"`` or ``"done"``), `tensor` (the one worked on
                last, or ``""``), `done` and `total` (int, weights of this stage) that it has parameters for, and all of
                them if it takes any keyword argument. An exception that it raises is logged once and does not end the
                job.
            progress: whether to show a bar; needs tqdm.
            progress_interval_s: the least time between two calls, in seconds; 0 for as many as there are.
            resume: whether to go on with what an interrupted run left. If there is nothing, or nothing of use, the job
                begins anew.
            overwrite: whether to replace a quantized model at `output_path`, with all that is in its directory, once the new
                one is complete. Nothing else is ever replaced.
            plan: a file that says what becomes of each tensor, as ``arrow-quant plan --output`` writes it.
            calibration: what the inputs of the model's layers were, as `quantize_diffusion_model` takes it; of a language
                model there is one timestep, 0. Or the path of an importance matrix of llama.cpp.
            fields: fields of the configuration by their names, over those of `config`: ``bit_width=4``.

        Returns:
            A dict:

            - `quantized_path` (str): `output_path` as it was given.
            - `compression_ratio` (float): bytes of the original ÷ bytes stored.
            - `cosine_similarity`, `sqnr_db` (float): of all quantized tensors as one; 1.0 and infinite if none was.
            - `model_size_mb` (float): of the files of weights, and of what a calibration became, in 10⁶ bytes.
            - `bits_per_weight` (float): 8 × bytes stored ÷ weights, everything included.
            - `modality` (str or None): what the model makes.
            - `bit_width` (int): that of the configuration.
            - `quantization_time_s` (float)
            - `fallbacks` (list of dicts): tensors that were below the floor: `tensor`, `bits` in the end, or None if it
              was kept, and `attempts`, what was tried before: `bits`, `group_size`, `cosine_similarity`, `sqnr_db`.
            - `kept` (list of dicts): tensors that stayed as they are: `tensor`, `because`.
            - `tensors` (TensorTable): what became of every tensor, as dicts and as an Arrow table.
            - `time_aware` (bool): whether timesteps had a part in it, which takes a calibration.
            - `reason` (str or None): why they had not.
            - `layers` (list of dicts): what became of the inputs of each layer, and what each step gained, if there is
              a calibration: `tensor`, `state`, `channels`, `timesteps`, `time_groups`, `smoothing_alpha` (None: not
              smoothed), and in dB `activation_sqnr_db`, `worst_activation_sqnr_db`, `clipping_gain_db`,
              `time_groups_gain_db`, `worst_time_groups_gain_db`, `smoothing_gain_db` and `importance_gain_db` (None:
              not used), estimated from the table.
            - `notes` (list of str): what else there is to know.
            - `resumed_parts` (int): parts that an interrupted run had finished.

        Raises:
            ConfigurationError: if a field or an argument is not allowed, or the target size cannot be met.
            OutputExistsError: if the output exists, which is a `FileExistsError` too.
            ModelNotFoundError: if there is no readable model at `model_path`.
            MetadataError: if a file of the model contradicts itself.
            ValidationError: if a tensor is below the floor, with `fail_fast`.
            QuantizationError: if a weight is NaN or infinite, or a file cannot be written.
            ImportError: if `progress` is asked for and tqdm is not installed.
            KeyboardInterrupt: if it was interrupted.

        Example:
            >>> result = ArrowQuantV2(mode="base").quantize_model("smol-lm/", "smol-lm-int4/", bit_width=4, progress=True)
            >>> result["tensors"].to_polars().sort("sqnr_db").head()
        """
        job = QuantizeJob(
            self._mode,
            model_path,
            output_path,
            config,
            progress_callback,
            fields,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
            calibration=calibration,
        )
        return self._do(job)

    @takes_fields
    def quantize_query(
        self,
        query: str,
        output_path: str | os.PathLike[str],
        config: Config | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        connection: _native.Connection | None = None,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        resume: bool = False,
        overwrite: bool = False,
        plan: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
        **fields: Unpack[ConfigFields],
    ) -> QuantizeResult:
        """Quantizes what a query gives into a new directory: all else that is said of `quantize_model` holds.

        The query runs once. While the job runs, its rows are in ``OUTPUT_PATH.source``, which takes as much disk as the
        weights do. Configuration files of models that the query names are not copied. With `resume` the query runs again,
        and the job goes on if it gives the same.

        Args:
            query: a query with the columns `tensor`, `shape`, `start`, `weights` and, for a pipeline, `component`, as the
                table ``weights`` has them; rows may be in any order.
            connection: whose models and tables the query may name. Without one, it names models by their paths:
                ``weights('dream-7b/')``.
            calibration: as `quantize_diffusion_model` takes it.

        Raises:
            ConfigurationError: also if the query lacks a column, or has one of a wrong type; its `field` is ``"query"``.
            QuantizationError: also if the query is not valid, or its rows are not every element of each tensor once.

        Example:
            >>> connection = arrow_quant_v2.connect(models={"a": "dream-7b/", "b": "dream-7b-tuned/"})
            >>> result = ArrowQuantV2().quantize_query(
            ...     "SELECT a.tensor, a.shape, a.start, weighted_sum(0.5, a.weights, 0.5, b.weights) AS weights "
            ...     "FROM a.weights a JOIN b.weights b ON a.tensor = b.tensor AND a.chunk = b.chunk",
            ...     "dream-7b-mean-int4/", connection=connection)
        """
        job = QuantizeJob(
            self._mode,
            Query(query, connection),
            output_path,
            config,
            progress_callback,
            fields,
            progress=progress,
            progress_interval_s=progress_interval_s,
            resume=resume,
            overwrite=overwrite,
            plan=plan,
            calibration=calibration,
        )
        return self._do(job)

    def export(
        self,
        quantized_path: str | os.PathLike[str],
        output_path: str | os.PathLike[str],
        *,
        format: str | None = None,
        architecture: str | None = None,
        pre_tokenizer: str | None = None,
        overwrite: bool = False,
    ) -> QuantizeResult:
        """Writes a quantized model for another program, with the codes that it has, as ``arrow-quant export`` does.

        Args:
            quantized_path: a directory that a job wrote in the format ``"arrow-quant"``.
            output_path: the file or directory to write, which must not exist.
            format: ``"gguf"``, ``"sdnq"``, ``"compressed-tensors"``, ``"mlx"`` or ``"comfyui"``; by default that which
                the ending of `output_path` names.
            architecture: what GGUF calls the model's architecture, where its ``config.json`` does not say it.
            pre_tokenizer: how text is cut before BPE, by llama.cpp's name for it.
            overwrite: whether to replace a quantized model at `output_path`.

        Returns:
            A dict with the keys of what `quantize_model` returns.

        Raises:
            ConfigurationError: if an argument is not allowed, or the format cannot hold what the model has.
            OutputExistsError: if the output exists, which is a `FileExistsError` too.
            ModelNotFoundError: if there is no quantized model at `quantized_path`.
            MetadataError: if a file of the model contradicts itself.
            QuantizationError: if a file cannot be written.

        Example:
            >>> quantizer = ArrowQuantV2(mode="base")
            >>> quantizer.quantize_model("smol-lm/", "smol-lm-int4/", group_size=64)
            >>> quantizer.export("smol-lm-int4/", "smol-lm-mlx/", format="mlx")["bits_per_weight"]
            4.51
        """
        fields = {"format": format, "architecture": architecture, "pre_tokenizer": pre_tokenizer}
        return self._do(exporting(quantized_path, output_path, fields, overwrite))

    def validate_quality(
        self,
        original_path: str | os.PathLike[str],
        quantized_path: str | os.PathLike[str],
        *,
        min_accuracy: float | None = None,
        calibration: CalibrationTable | None = None,
    ) -> QualityResult:
        """Compares a quantized model with its original, weight by weight, and with a calibration layer by layer.

        Args:
            original_path: the model that was quantized.
            quantized_path: the directory that came of it.
            min_accuracy: the least cosine similarity of a quantized tensor, 0.0 to 1.0; the default is the floor that
                is recorded with the quantized model.
            calibration: what the inputs of layers were, as `quantize_diffusion_model` takes it, for a model that was
                quantized with a calibration. As many samples are used as then.

        Returns:
            A dict:

            - `cosine_similarity`, `sqnr_db` (float): of all quantized tensors as one; 1.0 and infinite if none is.
            - `compression_ratio` (float): bytes of the original ÷ bytes stored.
            - `model_size_mb` (float): of the files of weights, and of what a calibration became, in 10⁶ bytes.
            - `passed` (bool): whether no quantized tensor is below `min_accuracy`.
            - `per_layer_accuracy` (dict): from the name of each quantized tensor, ``component/tensor`` in a pipeline,
              to its cosine similarity.
            - `layers` (list of dicts): how good the parameters of each layer's inputs are, if there is a calibration:
              `tensor`, `state`, `timesteps`, `time_groups`, `activation_sqnr_db`, `worst_activation_sqnr_db`, `loss_db`
              and `worst_loss_db` (over each timestep's own best parameters), `smoothing_error` (relative; None: not
              smoothed), `output_sqnr_db` and `worst_output_sqnr_db` (of the layer's output, weights and inputs both
              quantized).

        Raises:
            ConfigurationError: if an argument is not allowed.
            ModelNotFoundError: if there is no readable model at one of the paths.
            MetadataError: if a file or the calibration contradicts itself, or the calibration is of another model.
            ShapeMismatchError: if they do not have the same tensors of the same shapes.
            ValidationError: if a timestep of the calibration is not in exactly one time group of the model, or the
                model was quantized without a calibration.

        Example:
            >>> quality = ArrowQuantV2().validate_quality("dream-7b/", "dream-7b-int4/", min_accuracy=0.99)
            >>> quality["passed"], min(quality["per_layer_accuracy"].values())
            (True, 0.9931)
        """
        return self._do(validation(original_path, quantized_path, min_accuracy, calibration))

    @takes_fields
    def plan(
        self,
        model_path: str | os.PathLike[str],
        config: Config | None = None,
        progress_callback: Callable[..., object] | None = None,
        *,
        output: str | os.PathLike[str] | None = None,
        calibration: CalibrationTable | None = None,
        progress: bool = False,
        progress_interval_s: float = 5.0,
        **fields: Unpack[ConfigFields],
    ) -> Plan:
        """Says what would become of a model, and estimates quality, size, time and memory, as ``arrow-quant plan`` does.

        Args:
            model_path: as `quantize_model` takes it.
            config: as `quantize_model` takes it, and so `fields`.
            progress_callback: as `quantize_model` takes it, and so `progress` and `progress_interval_s`.
            output: a file, ``.parquet`` or ``.csv``, to write the plan to. When it was edited,
                ``quantize_model(…, plan=output)`` does what it says. An older one is replaced.
            calibration: as `quantize_diffusion_model` takes it.

        Returns:
            A dict with the keys of ``arrow-quant plan --json``: `tensors` (list of dicts: `component`, `tensor`, `bits`,
            None to keep it, `group_size`, `because`, `bytes`, `sqnr_db` and others), `weights`, `original_bytes`,
            `stored_bytes`, `bits_per_weight`, `compression_ratio`, `sqnr_db`, `estimated_time_s`,
            `estimated_memory_mb`, `notes` and `layers`.

        Raises:
            ArrowQuantError: as `quantize_model` does.

        Example:
            >>> plan = ArrowQuantV2().plan("dream-7b/", target_bpw=3.5, output="plan.csv")
            >>> plan["stored_bytes"], [tensor["tensor"] for tensor in plan["tensors"] if tensor["bits"] == 8]
            (3331200000, ['lm_head.weight'])
        """
        job = PlanJob(
            self._mode,
            model_path,
            config,
            progress_callback,
            fields,
            output=output,
            calibration=calibration,
            progress=progress,
            progress_interval_s=progress_interval_s,
        )
        return self._do(job)

    def inspect(self, model_path: str | os.PathLike[str], *, variant: str | None = None) -> Inspection:
        """Lists a model's tensors, from its headers alone, as ``arrow-quant inspect`` does.

        Args:
            model_path: a model, quantized or not.
            variant: which of its weights to look at, where it has them in several variants: ``"fp16"`` of
                ``model.fp16.safetensors``.

        Returns:
            A dict with the keys of ``arrow-quant inspect --json``: `model`, `weights`, `bytes`, `files` (those that the
            weights are in), `left_out` (what is beside them, and why it is not part of the model), `quantized_by` (how
            another program quantized the weights, or None) and `tensors`, dicts of `component`, `tensor`, `dtype`,
            `shape`, `elements` and `bytes`.

        Raises:
            ConfigurationError: if an argument is not allowed, or there is no such variant.
            ModelNotFoundError: if there is no readable model at `model_path`.
            MetadataError: if a file of the model contradicts itself.

        Example:
            >>> ArrowQuantV2().inspect("dream-7b/")["weights"]
            7615616512
        """
        path = checked_path(model_path, "model_path")
        if variant is not None and not isinstance(variant, str):
            message = f"variant is {variant!r}, allowed: the name of a variant, as str, or None"
            raise ConfigurationError(message, field="variant")

        def listed(token: _native.Cancellation | None) -> Inspection:
            return inspection(_native.inspect_model(path, variant=variant, cancellation=token))

        return self._do(Task(listed))

    def report(
        self, quantized_path: str | os.PathLike[str], *, html: str | os.PathLike[str] | None = None
    ) -> ModelReport:
        """What a quantized model says of itself, as ``arrow-quant report`` shows it.

        Args:
            quantized_path: the directory that a job wrote.
            html: a file to write the same to, as a page that needs nothing else. An older one is replaced.

        Returns:
            A dict with the keys of ``arrow-quant report --json``: `name`, `settings`, `tensors`, `layers`, `notes`,
            `bits_per_weight`, `compression_ratio`, `cosine_similarity`, `sqnr_db` and others.

        Raises:
            ModelNotFoundError: if there is no quantized model at `quantized_path`.
            MetadataError: if its manifest is damaged.
            QuantizationError: if the page cannot be written.

        Example:
            >>> ArrowQuantV2().report("dream-7b-int4/", html="report.html")["bits_per_weight"]
            4.31
        """
        path = checked_path(quantized_path, "quantized_path")
        page = None if html is None else checked_path(html, "html")
        return self._do(Task(lambda _: model_report(_native.model_report(path, html=page))))

    def quantize(
        self, weights: Any, bit_width: int = 4, group_size: int = 128, scheme: str = "affine", method: str = "mse"
    ) -> Any:
        """Quantizes arrays in memory.

        Args:
            weights: a mapping from names to arrays, an Arrow table whose columns are tensors, or one array. Arrays are
                NumPy arrays, torch tensors or objects with the Arrow PyCapsule interface, of float32, float16, float64
                or bfloat16, and of any shape.
            bit_width: bits of a code: 2, 3, 4, 5, 6 or 8.
            group_size: weights that share a scale: 16, 32, 64, 128 or 256.
            scheme: what a code means: ``"affine"``, ``"asymmetric"`` or ``"symmetric"``.
            method: how scales are found: ``"mse"``, ``"unbiased"`` or ``"minmax"``.

        Returns:
            `QuantizedTensors`, like a dict of what became of each; of one array a `QuantizedTensor`.

        Raises:
            ConfigurationError: if an argument is not allowed, or an array is of no kind that is understood.
            ShapeMismatchError: if an Arrow array has NULLs, or lists of unequal lengths.
            QuantizationError: if an array is of another dtype, or a weight is NaN or infinite.

        Example:
            >>> quantizer = ArrowQuantV2()
            >>> quantized = quantizer.quantize({"w": np.random.randn(256, 1024).astype(np.float32)}, bit_width=4)
            >>> quantized["w"].bits_per_weight
            4.25
        """
        return self._do(Task(lambda _: arrays.quantize(weights, bit_width, group_size, scheme, method)))

    def dequantize(self, quantized: Any) -> Any:
        """Restores arrays in the shape, dtype and kind that `quantize` was given.

        Args:
            quantized: what `quantize` returned, or an Arrow table that was made of it.

        Returns:
            One array for a `QuantizedTensor`, a table for a table that was quantized, else a dict from names to arrays.

        Raises:
            ConfigurationError: if it is none of these.
            ShapeMismatchError: if a table does not have all rows of a tensor.

        Example:
            >>> quantizer = ArrowQuantV2()
            >>> quantizer.dequantize(quantizer.quantize({"w": np.ones((256, 1024), np.float16)}))["w"].dtype
            dtype('float16')
        """
        return self._do(Task(lambda _: arrays.dequantize(quantized)))

    def _do(self, work: Work[_Outcome]) -> _Outcome:
        """Does work on this thread, and calls its callback there."""
        if work.callback is None:
            return work.run(None)
        work.callback.refuse_coroutines()
        return work.run(work.callback.tell)

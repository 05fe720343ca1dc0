"""Writes a model as ONNX in several precisions, and measures what each of them loses.

    python -m classifier.publish onnx runs/vit --precision fp32 fp16 int8

fp32    onnx/model.onnx, as `export.complete` writes it
fp16    onnx/model_fp16.onnx: the weights in float16, half the size. It computes in float32, in every engine.
int8    onnx/model_int8.onnx: weights and activations of convolutions and matrix products in 8 bits, with ranges from
        training images (static quantization, arXiv:1712.05877); of models with attention the weights alone, with ranges
        of the activations from each input (dynamic quantization)

The names are those that transformers.js looks for. An export that labels fewer validation images correctly than the
model, by more than `MAX_LOSS`, is refused.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from classifier import runs
from classifier.data.loaders import image_batches
from classifier.data.splits import Splits, load_splits, sample_by_class
from classifier.errors import ModelError, first_few, first_sentence
from classifier.evaluation import metrics
from classifier.files import move_files
from classifier.models import backbone
from classifier.models.predictor import Predictor, load_predictor
from classifier.publish import export
from classifier.records import Export, Exports, Machine
from classifier.runs import RunFolder

FILES = {"fp32": export.ONNX, "fp16": Path("onnx/model_fp16.onnx"), "int8": Path("onnx/model_int8.onnx")}
MAX_LOSS = 0.005  # of the accuracy on validation
BATCH_SIZE = 32
CALIBRATION_IMAGES = 256  # of train, for the ranges of activations
SMALL = 256  # values: weights with fewer, such as biases, stay in float32
LATENCY_RUNS = 30


def write_exports(folder: Path, precisions: Sequence[str], dataset: str | None = None) -> Exports:
    """Writes a model folder's ONNX files and onnx/exports.json, which says what each loses; all of them or none.

    Files of other precisions, of an earlier call, are deleted.

    Args:
        folder: what train.py or finetune_vit.py wrote.
        precisions: keys of `FILES`.
        dataset: Hub id or folder with the labels of the model; the one that run.json names if None.

    Raises:
        ModelError: the folder is no finished model, the architecture can't be written with such a precision, or an
            export loses too much.
        DataError: the dataset can't be loaded.
    """
    predictor = load_predictor(folder, device="cpu")
    splits = load_data(folder, dataset)
    if set(splits.labels) != set(predictor.labels):
        raise ModelError(
            f"{splits.name} has the labels {first_few(splits.labels)}, {folder} {first_few(predictor.labels)}: "
            "give the --dataset that the model was trained on"
        )
    with TemporaryDirectory() as temporary:
        new = Path(temporary)
        (new / "onnx").mkdir()
        write_precisions(new, predictor, precisions, splits)
        found = measure(predictor, {each: new / FILES[each] for each in precisions}, splits)
        found.n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for each in found.exports:
            if each.accuracy < found.accuracy - MAX_LOSS:
                raise ModelError(
                    f"{each.precision} labels {each.accuracy:.2%} of the validation images correctly, where the model "
                    f"labels {found.accuracy:.2%}: it may lose {100 * MAX_LOSS:g} points at most, so leave this one out"
                )
        found.write(new / "onnx" / "exports.json")
        move_files({new: folder}, remove=[folder / file for each, file in FILES.items() if each not in precisions])
    return found


def load_data(folder: Path, dataset: str | None) -> Splits:
    """Train and validation images as in the run of a model folder, which names the dataset unless it is given."""
    run = RunFolder(folder).finished_run()
    names = ("image_column", "label_column", "label_names", "max_eval_samples")
    settings: dict[str, Any] = {name: run.settings.get(name) for name in names}
    return load_splits(
        dataset or run.dataset,
        splits=("train", "validation"),
        validation=run.settings["validation_fraction"],
        skip_unreadable=True,
        **settings,
    )


def write_precisions(folder: Path, predictor: Predictor, precisions: Sequence[str], splits: Splits) -> None:
    """Writes the ONNX files into a folder that has onnx/; `splits` has the training images that int8 needs."""
    exact = folder / FILES["fp32"]
    export.write_onnx(exact, predictor)
    if "fp16" in precisions:
        halve_weights(exact, folder / FILES["fp16"])
    if "int8" in precisions:
        quantize(exact, folder / FILES["int8"], predictor, splits)
    if "fp32" not in precisions:
        exact.unlink()


def halve_weights(exact: Path, file: Path) -> None:
    """Stores the weights of an ONNX file as float16, each with a Cast to float32, which an engine does once.

    Raises:
        ModelError: a weight is too large for float16.
    """
    model = onnx_ir.load(exact)
    graph, casts = model.graph, []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < SMALL:
            continue
        with np.errstate(over="ignore"):
            rounded = tensor.numpy().astype(np.float16)
        if not np.isfinite(rounded).all():
            raise ModelError(f"a weight of {name} is too large for float16: leave fp16 out")
        half = onnx_ir.val(f"{name}_float16", const_value=onnx_ir.tensor(rounded))
        whole = onnx_ir.val(f"{name}_float32", dtype=onnx_ir.DataType.FLOAT, shape=value.shape)
        casts.append(onnx_ir.node("Cast", [half], {"to": onnx_ir.DataType.FLOAT}, outputs=[whole]))
        value.replace_all_uses_with(whole)
        del graph.initializers[name]
        graph.register_initializer(half)
    graph.insert_before(graph.node(0), casts)
    onnx_ir.save(model, file)


def quantize(exact: Path, file: Path, predictor: Predictor, splits: Splits) -> None:
    """Stores an ONNX file with weights of 8 bits; the module's docstring tells how. Errors as `write_exports`."""
    prepared = file.with_suffix(".prepared")
    # Weights of 7 bits: products of 8 bits overflow on processors without VNNI, and in WebAssembly.
    options: dict = {"per_channel": True, "reduce_range": True}
    refused: tuple[type[Exception], ...] = (*export.onnx_errors(), ValueError)
    try:
        # Folding batch norms would give each view of a scratch CNN a copy of the weights.
        has_views = getattr(predictor.model.config, "views", 1) > 1
        quant_pre_process(exact, prepared, skip_symbolic_shape=True, skip_optimization=has_views)
        if backbone.has_attention(predictor.model):
            quantize_dynamic(prepared, file, op_types_to_quantize=["MatMul", "Gemm"], **options)
        else:
            quantize_static(prepared, file, TrainingPixels(predictor, splits), **options)
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except refused as error:
        raise ModelError(
            f"onnxruntime can't quantize {type(predictor.model).__name__} ({first_sentence(error)}): leave int8 out"
        ) from error
    prepared.unlink()


class TrainingPixels(CalibrationDataReader):
    """Some training images of each class, one at a time, as the input of the model."""

    def __init__(self, predictor: Predictor, splits: Splits):
        labels = splits.class_indices["train"]
        rows = sample_by_class(labels, CALIBRATION_IMAGES, seed=0) if len(labels) > CALIBRATION_IMAGES else None
        part = splits if rows is None else splits.select("train", rows)
        batches = image_batches("train", part, 1)
        self.inputs = ({"pixel_values": predictor.pixel_values(images).numpy()} for images, _ in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None after the last one."""
        return next(self.inputs, None)


def measure(predictor: Predictor, files: Mapping[str, Path], splits: Splits) -> Exports:
    """How far ONNX files are from their model on validation images, and how fast they are; `n_bytes` of it is 0."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sessions = {
        precision: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for precision, file in files.items()
    }
    order = np.array([predictor.labels.index(label) for label in splits.labels])
    labels: list[int] = []
    exact: list[np.ndarray] = []
    logits: dict[str, list[np.ndarray]] = {precision: [] for precision in files}
    for images, batch_labels in image_batches("validation", splits, BATCH_SIZE):
        labels += order[batch_labels].tolist()
        exact.append(predictor.logits(images, BATCH_SIZE))
        pixels = predictor.pixel_values(images).numpy()
        for precision, session in sessions.items():
            logits[precision].append(run_session(session, pixels))
    expected, answers = np.array(labels), np.concatenate(exact)

    def accuracy(of: np.ndarray) -> dict:
        right = (of.argmax(axis=1) == expected).astype(float)
        return {"accuracy": float(right.mean()), "accuracy_ci95": metrics.bootstrap_interval(right)}

    exports = []
    for precision, session in sessions.items():
        own = np.concatenate(logits[precision])
        exports.append(
            Export(
                precision=precision,
                file=files[precision].name,
                n_bytes=files[precision].stat().st_size,
                max_difference=float(np.abs(own - answers).max()),
                changed=float((own.argmax(axis=1) != answers.argmax(axis=1)).mean()),
                latency_ms=latency(session, pixels[:1]),
                **accuracy(own),
            )
        )
    machine = Machine.from_json(runs.machine(), Path())
    return Exports(n=len(labels), n_bytes=0, exports=exports, machine=machine, **accuracy(answers))


def run_session(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """Logits (N, C) for pixel values (N, 3, H, W)."""
    return session.run(["logits"], {"pixel_values": pixels})[0]


def latency(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> float:
    """The median time of a call, in milliseconds."""
    seconds = []
    for _ in range(LATENCY_RUNS):
        began = time.perf_counter()
        run_session(session, pixels)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def describe(found: Exports) -> str:
    """A line for the model and for each export."""
    low, high = found.accuracy_ci95
    lines = [
        f"model: {found.accuracy:.2%} of {found.n:,} validation images ({low:.2%} to {high:.2%}), "
        f"{found.n_bytes / 1e6:.1f} MB"
    ]
    lines += [
        f"{each.precision}: {each.accuracy:.2%}, other labels for {each.changed:.2%}, logits differ by "
        f"{each.max_difference:.2g} at most, {each.n_bytes / 1e6:.1f} MB, {each.latency_ms:.1f} ms an image"
        for each in found.exports
    ]
    return "\n".join(lines)

"""Writes a trained model as a folder that `transformers` loads anywhere, and proves that it does.

    save(model, processor, folder)   # config.json, model.safetensors, preprocessor_config.json, a scratch CNN's code
    complete(folder)                 # adds onnx/model.onnx, for a Hub repository
    prove_parity(folder, images)     # loads the folder in a process without this project and compares probabilities

onnx/model.onnx is where transformers.js looks for it, with input `pixel_values` (batch, 3, H, W) and output `logits`
(batch, C). transformers.js reads the processor from preprocessor_config.json only, so `complete` writes one for timm's,
too. The model card says how to load each kind of model there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from classifier.errors import ModelError, first_sentence
from classifier.files import move_files, write_json
from classifier.models import cnn
from classifier.models.predictor import Predictor, load_predictor
from classifier.models.processor import timm_settings

# `save_pretrained` copies cnn.py beside a scratch CNN and names it in config.json, for users without this project.
cnn.CifarCnnConfig.register_for_auto_class()
cnn.CifarCnnForImageClassification.register_for_auto_class("AutoModelForImageClassification")
CODE = Path(cnn.__file__)
AUTO_MAP = {
    cls._auto_class: f"{CODE.stem}.{cls.__name__}" for cls in (cnn.CifarCnnConfig, cnn.CifarCnnForImageClassification)
}

ONNX = Path("onnx/model.onnx")
ONNX_OPSET = 18  # torch writes it without conversion; transformers.js reads up to 21 since version 3
LOGIT_TOLERANCE = 1e-3
PROBABILITY_TOLERANCE = 1e-4

# Code of a process without this project. It classifies all images of the working directory by the model in a folder.
# Arguments: the folder, and whether its code may be run.
PIPELINE_SCRIPT = """
import json, sys
from pathlib import Path
from transformers import pipeline

folder, code = sys.argv[1:]
classify = pipeline("image-classification", model=folder, trust_remote_code=code == "code", device="cpu")
images = [str(path) for path in sorted(Path().glob("*.png"))]
answers = classify(images, top_k=classify.model.config.num_labels)
Path("answers.json").write_text(json.dumps(answers), encoding="utf-8")
"""


class NotExportableError(ModelError):
    """A model of an architecture that torch can't write as ONNX."""


def save(model: PreTrainedModel, processor: BaseImageProcessor, output_dir: Path) -> None:
    """Writes config.json, model.safetensors, preprocessor_config.json and the code of the scratch CNN, each atomically.

    The settings of timm's processor are in config.json; it has no file of its own.

    Weights are stored in float16, which halves their size. `dtype` in config.json is float32, so that every way of
    loading computes in float32. The weights of `model` itself are rounded to float16, too.
    """
    folder = output_dir / ".save"
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed here
    folder.mkdir()
    try:
        model.half().save_pretrained(folder)
        model.float()
        if not isinstance(processor, TimmWrapperImageProcessor):
            processor.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(
            json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
        )
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable for the owner only
        # config.json is last, so that a folder that has one is complete.
        for file in sorted(folder.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
            file.replace(output_dir / file.name)
    except SafetensorError as error:  # a full disk, which is an OSError for the other files
        raise OSError(f"can't write {output_dir / 'model.safetensors'} ({error})") from error
    finally:
        shutil.rmtree(folder)


def complete(folder: Path) -> None:
    """Adds onnx/model.onnx, for the scratch CNN the current cnn.py, and for timm's models preprocessor_config.json.

    After an error it has added none. Weights do not change, nor does what the processor does. A model that torch can't
    write as ONNX goes without, which a line on stderr says; an ONNX file that the folder has is kept if it is right.

    Raises:
        ModelError: the folder is no model, or the ONNX file would give other logits.
    """
    predictor = load_predictor(folder, device="cpu")
    with TemporaryDirectory() as temporary:
        new = Path(temporary)
        try:
            write_onnx(new / ONNX, predictor)
        except NotExportableError as error:
            (new / ONNX).unlink(missing_ok=True)
            if (folder / ONNX).is_file():  # of an earlier time, or made by other means
                check_onnx(folder / ONNX, predictor)
            else:
                print(f"{folder.name} goes without {ONNX}: {error}", file=sys.stderr)
        if predictor.model.is_remote_code():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            for part in (predictor.model.config, predictor.model):
                custom_object_save(part, new, config=config)  # as `save_pretrained` does
            write_json(new / "config.json", dict(sorted(config.items())))
        if isinstance(predictor.processor, TimmWrapperImageProcessor):
            _write_timm_processor(new / "preprocessor_config.json", predictor.model.config)
        move_files({new: folder})


def _write_timm_processor(file: Path, config: PreTrainedConfig) -> None:
    """Writes the settings of timm's processor, unless this file can't express them.

    transformers 5 reads only the class from the file, and the settings from config.json; transformers 4 takes
    `pretrained_cfg` and `architecture` from the file; transformers.js the other settings.
    """
    if settings := timm_settings(config.pretrained_cfg):
        arguments = {"architecture": config.architecture, "pretrained_cfg": config.pretrained_cfg}
        write_json(file, {"image_processor_type": TimmWrapperImageProcessor.__name__} | arguments | settings)


def to_onnx(folder: Path) -> float:
    """Writes onnx/model.onnx (float32, any batch size) from a model folder, atomically and after a check.

    Returns:
        The largest difference of its logits from those of the model, from `check_onnx`.

    Raises:
        NotExportableError: torch can't write the architecture as ONNX.
        ModelError: the folder is no model, or the ONNX file would give other logits.
    """
    predictor = load_predictor(folder, device="cpu")
    with TemporaryDirectory() as temporary:
        difference = write_onnx(Path(temporary) / ONNX, predictor)
        move_files({Path(temporary): folder})
    return difference


def write_onnx(file: Path, predictor: Predictor) -> float:
    """Writes the model as ONNX (float32) into a file, and checks it. Returns and errors as `to_onnx`."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # here, because a training run does not need it

    try:
        program = torch.onnx.export(
            predictor.model,
            kwargs={"pixel_values": _samples(predictor)[:2]},  # a batch of 1 would become a constant
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes={"pixel_values": {0: "batch"}},
            opset_version=ONNX_OPSET,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise NotExportableError(
            f"torch.onnx can't export {type(predictor.model).__name__} ({first_sentence(error)}); for a model with an "
            "ONNX file, use another architecture"
        ) from error
    assert program is not None  # torch.onnx.export returns None only with dynamo=False
    ClearMetadataAndDocStringPass()(program.model)  # removes stack traces, which contain local paths
    file.parent.mkdir(exist_ok=True)
    program.save(file, external_data=False)
    return check_onnx(file, predictor)


def onnx_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a file that it can't compute."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # as below

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )


def check_onnx(file: Path, predictor: Predictor) -> float:
    """The largest difference between the logits of onnxruntime and of torch, for a batch of one and of three images.

    Raises:
        NotExportableError: onnxruntime can't compute it.
        ModelError: the difference is above 1e-3.
    """
    import onnxruntime  # here, because the import takes a while and a training run does not need it

    pixel_values = _samples(predictor)
    with torch.inference_mode():
        ours = predictor.model(pixel_values=pixel_values).logits.numpy()
    differences = []
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for n in (1, len(pixel_values)):
            [theirs] = session.run(["logits"], {"pixel_values": pixel_values[:n].numpy()})
            differences.append(float(np.abs(theirs - ours[:n]).max()))
    except onnx_errors() as error:
        raise NotExportableError(
            f"onnxruntime can't compute the ONNX file of {predictor.name} ({first_sentence(error)}); it belongs to "
            "another model, or an operator is missing"
        ) from error
    if not max(differences) <= LOGIT_TOLERANCE:  # nor NaN
        raise ModelError(
            f"the ONNX file of {predictor.name} gives logits that differ by {max(differences):.2g} from the weights' "
            f"(at most {LOGIT_TOLERANCE:g}): it belongs to other weights, or an operator was exported wrongly"
        )
    return max(differences)


def _samples(predictor: Predictor) -> torch.Tensor:
    """Pixel values (3, 3, H, W) of three reproducible images of coloured blotches."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(values).resize((320, 240), Image.Resampling.BICUBIC) for values in colours]
    return predictor.processor(images=images, return_tensors="pt")["pixel_values"]


def prove_parity(folder: Path, images: Sequence[Image.Image]) -> float:
    """Loads the folder by `transformers.pipeline` in a process without this project, and compares probabilities.

    The process gets the folder, the images as PNG, an empty cache and no network. It runs code from the folder only if
    it is this project's cnn.py, byte for byte. The images, mode RGB, are a few dozen of the kind that the model was
    trained on.

    Returns:
        The largest difference of its probabilities from those of `load_predictor` in float32.

    Raises:
        ModelError: the difference is above 1e-4, the process can't load the folder, or the folder has other code.
    """
    code = _has_code(folder)
    predictor = load_predictor(folder, device="cpu")
    ours = [sorted(zip(predictor.labels, row, strict=True)) for row in predictor.probabilities(images).tolist()]
    with TemporaryDirectory() as temporary:
        for index, image in enumerate(images):
            image.save(Path(temporary, f"{index:06}.png"))
        # -I: Python searches neither the working directory nor PYTHONPATH for modules
        command = [sys.executable, "-I", "-c", PIPELINE_SCRIPT, str(folder.resolve()), "code" if code else "no code"]
        environment = os.environ | {
            "HF_HOME": temporary,
            "HF_MODULES_CACHE": f"{temporary}/modules",
            "HF_HUB_OFFLINE": "1",
        }
        ran = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True)
        if ran.returncode:
            raised = re.findall(r"^[\w.]*(?:Error|Exception): .*", ran.stderr, re.MULTILINE) or [
                f"exit code {ran.returncode}"
            ]
            raise ModelError(
                f"transformers.pipeline can't load {folder} where this project is not at hand ({raised[-1]})"
            )
        answers = json.loads(Path(temporary, "answers.json").read_text(encoding="utf-8"))
    theirs = [sorted((entry["label"], entry["score"]) for entry in answer) for answer in answers]
    # Sorted pairs, because two labels can have the same name, such as "crane" in ImageNet.
    pairs = [pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True)]
    difference = float(np.max([abs(p - q) if label == other else np.inf for (label, p), (other, q) in pairs]))
    if not difference <= PROBABILITY_TOLERANCE:  # nor NaN
        raise ModelError(
            f"transformers.pipeline gives probabilities for {folder} that differ by {difference:.2g} from this "
            f"project's (at most {PROBABILITY_TOLERANCE:g}): compare config.json (dtype) and preprocessor_config.json "
            "with a saved run's"
        )
    return difference


def _has_code(folder: Path) -> bool:
    """Whether users without this project need the code in the folder to load it.

    Raises:
        ModelError: the code is not this project's cnn.py.
    """
    config, *processors = (
        json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        for name in ("config.json", "preprocessor_config.json", "processor_config.json")
    )
    if "auto_map" not in config:
        return False
    code = folder / CODE.name
    same = code.is_file() and code.read_bytes() == CODE.read_bytes()
    has_more = "custom_pipelines" in config or "auto_map" in json.dumps(processors)
    if not same or config["auto_map"] != AUTO_MAP or has_more:
        raise ModelError(
            f"the code in {folder} is not this project's {CODE.name}: complete the folder again, or look at it"
        )
    return True

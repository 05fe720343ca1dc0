"""A model loaded with its own processor: images in, probabilities out, the same in every part of this project.

    from classifier import load_predictor
    load_predictor("runs/cnn")(["a.jpg", image], top_k=3)

An image passes through `classifier.images` (bytes to upright RGB) and through the processor saved beside the weights,
and nothing else, so that app, API, evaluation and `transformers.pipeline` agree to 1e-4. Weights are read from
safetensors and computed in float32. Code from a model repository is never run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from classifier.errors import ModelError, first_sentence
from classifier.files import read_json
from classifier.images.convert import to_rgb
from classifier.images.workers import decode_many
from classifier.models.loading import OodSettings, default_device, load_processor, load_weights, locate, read_ood
from classifier.models.logit_scores import SCORES
from classifier.records import Evaluation, ModelEvaluation
from classifier.runs import RunFolder

ImageInput = str | Path | bytes | Image.Image


def load_predictor(
    path_or_id: str | Path, *, device: str | torch.device | None = None, patience: float | None = None
) -> "Predictor":
    """Loads a model folder, a Hub model (`user/name`) or a revision of one (`user/name@revision`).

    Args:
        path_or_id: if both a folder and a Hub id have this name, the folder is loaded.
        device: where to compute; by default CUDA if available, else MPS if available, else the CPU.
        patience: seconds to wait for a slow Hub before the cached revision is used; None waits without limit.

    Raises:
        HubError: the Hub can't be reached, and nothing is cached.
        ModelError: a file is missing or corrupted, or `transformers` does not know the architecture. The message is one
            line that names the folder and the next step.
    """
    folder, name, revision, notice = locate(path_or_id, patience=patience)
    config = read_json(folder / "config.json")
    model, absent = load_weights(folder)
    if absent:  # transformers fills these with random values
        raise ModelError(
            f"the weights in {folder} don't fit config.json ({len(absent)} missing or of another shape, first "
            f"{absent[0]}): a backbone without a classifier has to be fine-tuned first"
        )
    return Predictor(
        optimize_for_inference(model.to(torch.device(device or default_device()))),  # type: ignore[arg-type]
        load_processor(folder),
        name=name,
        revision=revision,
        notice=notice,
        evaluation=RunFolder(folder).evaluation,
        ood=read_ood(config),
        reduce_to=config.get("reduce_to"),
        folder=folder,
    )


class OneDNNLinear(torch.nn.Linear):
    """A linear layer that uses oneDNN when no gradient is needed. PyTorch uses MKL in float32, slow on AMD."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in_features) -> (…, out_features)."""
        unsupported = torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        if unsupported or torch.jit.is_tracing():  # the graph of a trace should have PyTorch's own operations
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def optimize_for_inference(model: PreTrainedModel) -> PreTrainedModel:
    """Changes the model to channels-last convolutions and oneDNN linear layers, and returns it.

    `benchmarks/inference.py` measures the gain. The order of summation differs, so logits change by less than 1e-5.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    has_onednn = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if model.device.type == "cpu" and has_onednn:
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = OneDNNLinear
    return model


class Predictor:
    """A model in evaluation mode with its processor. Safe to call from several threads.

    Attributes:
        forward: function from pixel values (N, 3, H, W) to logits (N, C); the model's forward pass or a compiled one.
        name: name of the folder, or Hub id.
        revision: commit of the Hub, or "local".
        notice: why the revision is not the current one of the Hub, "" if it is.
        labels: names of the C classes, in the order of the logits.
        n_parameters: number of parameters of the model.
        evaluation: evaluation.json beside the weights, None if there is none.
        ood_threshold: an image with a lower score (`logits_and_scores`) is out-of-distribution; None if not set.
        ood_resize_to: pixels a side to which a larger image is squashed for a second score; None if not set.
        ood_score: name of the score, a key of `logit_scores.SCORES`.
        reduce_to: pixels to which `decode` may shrink a large file first; None if not set.
        folder: with the weights and their records; None if the model was not loaded from a folder.
        bf16: whether to compute in bfloat16 (autocast), which changes the third digit of probabilities; initially
            False.
        most_at_once: largest number of images in a call of `predict_with_ood` so far, to decide whether `compile` pays
            off.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        *,
        name: str,
        revision: str = "local",
        notice: str = "",
        evaluation: Evaluation | None = None,
        ood: OodSettings = OodSettings(),  # noqa: B008  an immutable default
        reduce_to: int | None = None,
        folder: Path | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.forward: Callable[[torch.Tensor], torch.Tensor] = lambda pixel_values: self.model(pixel_values).logits
        self.name = name
        self.revision = revision
        self.notice = notice
        config: Any = model.config  # its attributes are typed as optional
        self.labels: list[str] = [config.id2label[i] for i in range(config.num_labels)]
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.evaluation = evaluation
        self.ood_threshold, self.ood_resize_to, self.ood_score = ood
        self.bf16 = False
        self.reduce_to = reduce_to
        self.folder = folder
        self.most_at_once = 0

    def compile(self) -> None:
        """Compiles the forward pass for this CPU, which takes seconds and pays off for many images.

        Other threads can use the predictor meanwhile. On another device nothing happens.

        Raises:
            ModelError: as `openvino.compile_model`.
        """
        if self.model.device.type == "cpu":
            # Imported here because timm takes a second to import.
            from classifier.models import openvino, processor

            self.forward = openvino.compile_model(self.model, processor.size_of(self.processor))

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test split, None if the model was not evaluated."""
        return self.measured.accuracy if self.measured else None

    @property
    def accuracy_ci95(self) -> list[float] | None:
        """95% interval of the accuracy, [low, high], None if the model was not evaluated."""
        return list(self.measured.accuracy_ci95) if self.measured else None

    @property
    def measured(self) -> ModelEvaluation | None:
        """What was measured on the test split, None if the model was not evaluated."""
        return self.evaluation.model if self.evaluation else None

    def __call__(self, images: ImageInput | Sequence[ImageInput], top_k: int = 5) -> list:
        """The `top_k` most probable labels of each image, best first, as `transformers.pipeline` gives them.

        Args:
            images: one path, encoded bytes or PIL image, or a list of them.
            top_k: number of labels per image; all of them if there are fewer.

        Returns:
            `[{"label", "score"}, …]` for one image, a list of such lists for a list of images.
        """
        if isinstance(images, str | Path | bytes | Image.Image):
            return self([images], top_k)[0]
        return [self.top(row, top_k) for row in self.probabilities(images)]

    def top(self, probabilities: np.ndarray, top_k: int) -> list[dict]:
        """(C,) probabilities -> the `top_k` highest as `[{"label", "score"}, …]`, best first."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"label": self.labels[i], "score": float(probabilities[i])} for i in order]

    def probabilities(self, images: Sequence[ImageInput], batch_size: int = 32) -> np.ndarray:
        """(N, C) float32 probabilities of N images. Arguments and errors as `logits`."""
        return torch.from_numpy(self.logits(images, batch_size)).softmax(dim=1).numpy()

    def predict_with_ood(
        self, images: Sequence[ImageInput], batch_size: int = 32
    ) -> tuple[np.ndarray, list[bool | None]]:
        """`probabilities` of N images, and whether each is in-distribution: True, False, or None without a threshold.

        An image is out-of-distribution if its score (`logits_and_scores`) is below `ood_threshold`. Arguments and
        errors as `logits`.
        """
        decoded = list(self._decoded(images))
        self.most_at_once = max(self.most_at_once, len(decoded))
        threshold = self.ood_threshold
        resize_to = self.ood_resize_to if threshold is not None else None
        logits, scores = self.logits_and_scores(decoded, resize_to, batch_size)
        known = [None if threshold is None else bool(score >= threshold) for score in scores]
        return torch.from_numpy(logits).softmax(dim=1).numpy(), known

    def logits_and_scores(
        self, images: Sequence[Image.Image], resize_to: int | None, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, C) logits of N decoded images, and their out-of-distribution scores (N,): `ood_score` of the logits.

        The score is higher the more an image resembles the training images. For an image larger than `resize_to`, it is
        the mean of the image's score and that of the image squashed to `resize_to`² pixels: models trained on small
        images are overconfident on sharp ones.
        """
        large, copies = small_copies(images, resize_to)
        logits = self.logits([*images, *copies], batch_size)
        return logits[: len(images)], average_copies(SCORES[self.ood_score](logits), large)

    def logits(self, images: Sequence[ImageInput], batch_size: int = 32) -> np.ndarray:
        """(N, C) float32 logits of N paths, encoded bytes or PIL images.

        Raises:
            ImageError: a file can't be read; the message names it.
            ModelError: the output has NaN or infinity.
        """
        logits = [self._forward(batch) for batch in batched(self._decoded(images), batch_size)]
        return np.concatenate(logits) if logits else np.empty((0, len(self.labels)), np.float32)

    def pixel_values(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """Model input (N, 3, H, W) for N paths, encoded bytes or PIL images, on its device. Errors as `logits`."""
        return self._process(list(self._decoded(images)))

    def _process(self, images: list[Image.Image]) -> torch.Tensor:
        """N RGB images -> pixel values (N, 3, H, W) of the saved processor, on the model's device and in its dtype."""
        parameter = next(self.model.parameters())
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return pixel_values.to(parameter.device, parameter.dtype)

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> np.ndarray:
        """A batch of N RGB images -> (N, C) float32 logits."""
        try:
            pixel_values = self._process(images)
            with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.forward(pixel_values).float().cpu()
        except ValueError as error:  # the processor's file lacks the size that the model takes, or gives another
            raise ModelError(
                f"the image processor of {self.name} does not fit its model ({first_sentence(error)}): correct size, "
                "crop_size and do_resize in preprocessor_config.json"
            ) from error
        if not logits.isfinite().all():
            raise ModelError(f"{self.name} gave NaN or infinity: its weights may be damaged, fetch or train them again")
        return logits.numpy()

    def _decoded(self, images: Iterable[ImageInput]) -> Iterator[Image.Image]:
        """The images in RGB, in order. Files are decoded by the worker processes of `classifier.images`."""
        images = list(images)
        files = decode_many([image for image in images if not isinstance(image, Image.Image)], reduce_to=self.reduce_to)
        for image in images:
            if isinstance(image, Image.Image):
                yield image if is_plain(image) else to_rgb(image)
            elif isinstance(decoded := next(files), Exception):
                raise decoded
            else:
                yield decoded


def small_copies(images: Sequence[Image.Image], resize_to: int | None) -> tuple[list[int], list[Image.Image]]:
    """The indices of the images that are larger than `resize_to`, and copies of these squashed to that size."""
    if not resize_to:
        return [], []
    large = [i for i, image in enumerate(images) if min(image.size) > resize_to]
    return large, [images[i].resize((resize_to, resize_to), Image.Resampling.LANCZOS) for i in large]


def average_copies(scores: np.ndarray, large: list[int]) -> np.ndarray:
    """Scores (N,): each large image's is averaged with its copy's. `scores` (N + len(large),) has the copies' last."""
    scores, of_copies = np.split(scores, [len(scores) - len(large)])
    scores[large] = (scores[large] + of_copies) / 2
    return scores


def is_plain(image: Image.Image) -> bool:
    """Whether `to_rgb` would only copy the image, as is the case for decoded ones."""
    return type(image) is Image.Image and image.mode == "RGB" and not image.info


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` consecutive items, of which the last may be shorter. Items are consumed as they are needed."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])

"""The last step of a fine-tuning: the weights that will be stored, calibrated on validation images."""

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from classifier.data.loaders import image_batches
from classifier.data.splits import Splits
from classifier.evaluation import metrics, ood, ood_scores
from classifier.models import backbone
from classifier.models.loading import update_ood
from classifier.models.predictor import Predictor
from classifier.records import Validation
from classifier.training.photographs import Photographs


def calibrate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    splits: Splits,
    name: str,
    photographs: Photographs | None = None,
) -> Validation:
    """Rounds a model to float16, folds a temperature fitted on validation into its head, and sets `ood.threshold`.

    Stored in the head, so every loader applies it (Guo et al., arXiv:1706.04599). The threshold is the energy that 95%
    of these images reach, and 95% of the correctly labelled photographs that were held out, where there are such.
    Errors as `Predictor.logits`, which names the model `name`.
    """
    model.half().float().eval()
    predictor = Predictor(model, processor, name=name)
    inputs, logits, labels = validate(predictor, splits)
    temperature = metrics.fit_temperature(logits, labels)
    logits = fold(backbone.head(model), temperature, inputs)
    threshold = ood.threshold(ood_scores.energy(logits))
    if photographs:
        of_photographs = predictor.logits(photographs.held_out)
        right = of_photographs.argmax(axis=1) == photographs.held_out_labels
        if right.any():
            threshold = min(threshold, ood.threshold(ood_scores.energy(of_photographs[right])))
    update_ood(model.config, threshold=threshold)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Validation(accuracy=accuracy, nll=metrics.nll(logits, labels), temperature=temperature)


def validate(predictor: Predictor, splits: Splits) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """The head's inputs (N, D) and logits (N, C) in float32, and the labels (N,), of the validation images.

    The predictor decodes and prepares the images, as it does in use.
    """
    inputs: list[torch.Tensor] = []
    logits: list[np.ndarray] = []
    labels: list[int] = []
    hook = backbone.head(predictor.model).register_forward_pre_hook(
        lambda module, args: inputs.append(args[0].float().cpu())
    )
    for images, batch_labels in image_batches("validation", splits, 64):
        logits.extend(predictor.logits(images))
        labels.extend(batch_labels)
    hook.remove()
    return torch.cat(inputs), np.stack(logits), np.array(labels)


def fold(head: torch.nn.Linear, temperature: float, inputs: torch.Tensor) -> np.ndarray:
    """Divides the head by a temperature, rounds it to float16 and returns its logits (N, C) for inputs (N, D)."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(temperature)
        head.half().float()
        return head(inputs.to(head.weight.device)).cpu().numpy()

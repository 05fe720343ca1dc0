"""The last step of a fine-tuning: the weights that will be stored, calibrated on validation images."""

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from classifier.data.loaders import first_images, image_batches
from classifier.data.splits import Splits
from classifier.evaluation import metrics, ood
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.models.loading import update_ood
from classifier.models.logit_scores import SCORES
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
    """Rounds a model to float16, folds a temperature fitted on validation into its head, and sets `config.ood`.

    The temperature is stored in the head, so every loader applies it (Guo et al., arXiv:1706.04599). The score of
    out-of-distribution detection is the one that best tells the held-out photographs of labels from those of none.
    Where there are fewer than `ood.ENOUGH` of either, it is the one that best tells validation images from sets made of
    them. The threshold is the score that 95% of the validation images reach, and 95% of the correctly labelled
    photographs. Errors as `Predictor.logits`, which names the model `name`.
    """
    model.half().float().eval()
    predictor = Predictor(model, processor, name=name)
    inputs, logits, labels = validate(predictor, splits)
    temperature = metrics.fit_temperature(logits, labels)
    logits = fold(backbone.head(model), temperature, inputs)
    update_ood(model.config, **ood_settings(predictor, logits, splits, photographs))
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Validation(accuracy=accuracy, nll=metrics.nll(logits, labels), temperature=temperature)


def ood_settings(
    predictor: Predictor, logits: np.ndarray, splits: Splits, photographs: Photographs | None
) -> dict[str, str | float]:
    """The score and the threshold of out-of-distribution detection, as `calibrate` describes them.

    `logits` (N, C) are those of the validation images.
    """
    known, score = [logits], None
    if photographs:
        of_photographs, labels = predictor.logits(photographs.held_out), photographs.held_out_labels
        known.append(of_photographs[of_photographs.argmax(axis=1) == labels])
        if min((labels >= 0).sum(), (labels < 0).sum()) >= ood.ENOUGH:
            score = ood.best_score(of_photographs[labels >= 0], [of_photographs[labels < 0]])
    if score is None:
        images = first_images("validation", splits, ood.ENOUGH, processors.size_of(predictor.processor))
        score = ood.best_score_on_synthetic(logits, images, lambda made: predictor.logits(ood.as_pictures(made)))
    thresholds = [ood.threshold(SCORES[score](each)) for each in known if len(each)]
    return {"score": score, "threshold": min(thresholds)}


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

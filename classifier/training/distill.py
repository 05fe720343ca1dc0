"""Knowledge distillation: a trained model's probabilities for a crop are the targets of the student that sees it.

Distillation (arXiv:1503.02531) by function matching (arXiv:2106.05237): labels do not enter the loss. A teacher that
has memorised the same training images adds little to their labels, so a teacher helps where the student is trained on
other images, or on few.
"""

import torch
from torch.nn import functional as F

from classifier.errors import ModelError, first_few
from classifier.models import backbone, processor
from classifier.models.predictor import load_predictor
from classifier.training.depthwise import channels_last

TEMPERATURE = 2.0  # of teacher and student; raises the share of unlikely classes in the loss


class Teacher:
    """A model with the student's labels, in whatever order.

    Args:
        path_or_id: as in `load_predictor`.
        labels: the student's.
        mean, std: normalisation of the student's pixels, (3,) each.
        device: where the pixels are.

    Raises:
        ModelError: it has other labels, or can't be loaded.
    """

    def __init__(self, path_or_id: str, labels: list[str], mean: list[float], std: list[float], device: torch.device):
        predictor = load_predictor(path_or_id, device=device)
        if set(predictor.labels) != set(labels):
            raise ModelError(
                f"the teacher {path_or_id} knows {first_few(predictor.labels)}, not {first_few(labels)}: "
                "fine-tune it on this dataset first"
            )
        self.model = predictor.model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.order = [predictor.labels.index(label) for label in labels]
        self.size = processor.size_of(predictor.processor)
        own_mean, own_std = processor.mean_std(predictor.processor)
        of_student, scale, of_teacher, own_scale = (
            torch.as_tensor(x).view(3, 1, 1).to(device) for x in (mean, std, own_mean, own_std)
        )
        self.scale, self.shift = scale / own_scale, (of_student - of_teacher) / own_scale

    @torch.no_grad()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, num_labels) at `TEMPERATURE`, of the student's pixels (N, 3, H, W)."""
        pixels = pixels * self.scale + self.shift
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        logits = backbone.forward(self.model, channels_last(pixels)).float()[:, self.order]
        return (logits / TEMPERATURE).softmax(dim=1)


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats), (N,), of logits (N, C) with a teacher's probabilities, times the temperature squared."""
    return TEMPERATURE**2 * F.cross_entropy(logits / TEMPERATURE, targets, reduction="none")

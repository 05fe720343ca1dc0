"""finetune_vit.py with RandAugment or with averaged weights, to measure whether they help.

    python -m benchmarks.tuners RandAugment --dataset uoft-cs/cifar10 --output_dir runs/randaugment
    python -m benchmarks.tuners Averaged …

The flags are those of finetune_vit.py. benchmarks/ablations.py compares the results with plain finetune_vit.py.
"""

import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from transformers import TrainerCallback

import finetune_vit
from classifier import errors
from classifier.training import finetune_trainer
from classifier.training.runtime import seeded_generator


class RandAugment(finetune_trainer.FinetuneTrainer):
    """Two random operations per image, of magnitude 9 of 31, before the crop (arXiv:1909.13719)."""

    randaugment = v2.RandAugment(num_ops=2, magnitude=9)

    def augmented(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `FinetuneTrainer.augmented`, after RandAugment."""
        with torch.random.fork_rng():
            torch.manual_seed(seeded_generator(self.args.seed, "randaugment", self.state.global_step).initial_seed())
            pixels = torch.stack([self.randaugment(image) for image in pixels])
        return super().augmented(pixels, labels)


class Averaged(finetune_trainer.FinetuneTrainer):
    """Saves an exponential moving average of the weights, over about a hundred steps, instead of the last weights."""

    def train(self, *args, **kwargs):
        """Trains, then loads the average into the model."""
        averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
        self.add_callback(Average(averaged))
        outcome = super().train(*args, **kwargs)
        self.model.load_state_dict(averaged.module.state_dict())
        return outcome


class Average(TrainerCallback):
    """Adds the weights to an average after each step."""

    def __init__(self, averaged: AveragedModel):
        self.averaged = averaged

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Updates the average with the weights of this step."""
        self.averaged.update_parameters(model)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("RandAugment", "Averaged"):
        sys.exit(__doc__)
    finetune_trainer.FinetuneTrainer = globals()[sys.argv.pop(1)]
    errors.run(finetune_vit.main)

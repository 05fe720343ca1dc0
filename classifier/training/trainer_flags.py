"""Flags of `TrainingArguments` that can't work in fine-tuning: told at once, in one line, instead of after an epoch."""

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from classifier.errors import ModelError, first_line

METRICS = ("accuracy", "f1", "loss")  # of validation, for --metric_for_best_model; f1 is the mean over classes

LANGUAGE = "is for language models"
REFUSED = {  # unless they have their defaults
    "deepspeed": "is not supported: start several processes with torchrun, or accelerate launch",
    "fsdp": "is not supported: start several processes with torchrun, or accelerate launch",
    "parallelism_config": "is not supported: start several processes with torchrun, or accelerate launch",
    "train_sampling_strategy": "is for texts of several lengths: images are drawn at random",
    "neftune_noise_alpha": LANGUAGE,
    "use_liger_kernel": LANGUAGE,
    "include_num_input_tokens_seen": LANGUAGE,
    "prediction_loss_only": "leaves no accuracy to choose weights by",
    "batch_eval_metrics": "computes no accuracy of all validation images",
    "eval_do_concat_batches": "computes no accuracy of all validation images",
    "save_only_model": "leaves nothing to resume from: pass --save_strategy no to save no checkpoints",
    "enable_jit_checkpoint": "is not needed: a signal saves a checkpoint anyway",
    "dataloader_persistent_workers": "would cut the same crops in every epoch",
    "hub_strategy": "is not supported: --push_to_hub sends the finished folder once",
    "hub_always_push": "is not supported: --push_to_hub sends the finished folder once",
}
POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def check(args: TrainingArguments) -> None:
    """Sets `metric_for_best_model` to the name that validation has for it.

    Raises:
        ModelError: a flag has a value with which training would fail, or which would be ignored.
    """
    defaults = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu)
    for name, reason in REFUSED.items():
        if getattr(args, name) != getattr(defaults, name):
            raise ModelError(f"--{name} {reason}: leave it out")
    for name in POSITIVE:
        if getattr(args, name) < 1:
            raise ModelError(f"--{name} {getattr(args, name)} is not above 0: pass 1 or more")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise ModelError(f"--num_train_epochs {args.num_train_epochs} trains nothing: pass a number above 0")
    if args.dataloader_num_workers < 0:
        raise ModelError(f"--dataloader_num_workers {args.dataloader_num_workers} is below 0: pass 0 for none")
    if not 0 <= args.label_smoothing_factor < 1:
        raise ModelError(f"--label_smoothing_factor {args.label_smoothing_factor} is a share: pass one in [0, 1)")
    if args.eval_strategy == "no":
        raise ModelError("--eval_strategy no leaves nothing to choose weights by: pass epoch, or steps")
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if metric not in METRICS:
        raise ModelError(
            f"--metric_for_best_model {args.metric_for_best_model} is not measured: pass one of {', '.join(METRICS)}"
        )
    if args.greater_is_better != (metric != "loss"):
        raise ModelError(f"--greater_is_better {args.greater_is_better} keeps the worst {metric}: leave it out")
    args.metric_for_best_model = "nll" if metric == "loss" else metric  # Trainer's loss is a mean of batches' means
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()  # which says whether its package is there
        Trainer.get_optimizer_cls_and_kwargs(args)
        assert not isinstance(args.lr_scheduler_kwargs, str)  # it was parsed
        some = torch.optim.SGD([torch.zeros(1)])
        get_scheduler(args.lr_scheduler_type, some, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        raise ModelError(f"these flags can't work ({first_line(error)}): see --help") from error
    if args.fp16 and args.device.type == "cpu":
        raise ModelError("--fp16 needs a GPU: leave it out, or pass --bf16")

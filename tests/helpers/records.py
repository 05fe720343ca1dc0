"""A run.json for tests of the card and of the report."""

RUN = {
    "command": "finetune_vit.py --model facebook/deit-tiny-patch16-224 --dataset=/elsewhere/my pictures --output_dir "
    "runs/vit",
    "settings": {
        "model": "facebook/deit-tiny-patch16-224@main",
        "dataset": "/elsewhere/my pictures",
        "seed": 7,
        "learning_rate": 0.0005,
        "bf16": False,
    },
    "commit": "c0ffee" * 6,
    "versions": {"torch": "2.14.1", "timm": "1.0.31"},
    "machine": {
        "processor": "AMD EPYC",
        "instructions": "AVX512",
        "threads": 2,
        "accelerator": None,
        "python": "3.11.7",
    },
    "parent": None,
    "data": {"images": 1234, "counts": {"train": [617, 617], "validation": [61, 76]}, "skipped": 3},
    "train_seconds": 754.2,
    "images_seen": 12340,
    "train_flops": 3.21e15,
    "inference_flops": 1.26e9,
    "validation": {"accuracy": 0.9375, "temperature": 1.234567},
}

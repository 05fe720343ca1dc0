"""Writing a trained model as a folder that `transformers` loads."""

import json
import shutil
from pathlib import Path

from transformers import BaseImageProcessor, PreTrainedModel


def save(model: PreTrainedModel, processor: BaseImageProcessor, output_dir: Path) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json, each whole or not at all.

    Weights are stored in float16, half the size, and `dtype` in config.json says float32, so that every way of loading
    them computes in float32. The model itself is rounded to what was stored.
    """
    folder = output_dir / ".save"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    folder.mkdir()
    try:
        model.half().save_pretrained(folder)
        model.float()
        processor.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        # config.json comes last: a folder that has one is complete.
        for file in sorted(folder.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
            file.replace(output_dir / file.name)
    finally:
        shutil.rmtree(folder)

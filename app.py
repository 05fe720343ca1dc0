"""The Space: top-k CIFAR-10 labels for one or many images, as a page and as an API.

python app.py                                   # the embedded models, at http://127.0.0.1:7860
MODELS="user/cifar10-cnn,runs/vit" python app.py    # folders, Hub models, `user/name@revision`; the first is the default
"""

import os
from pathlib import Path

from classifier import errors, load_predictor

EMBEDDED = Path(__file__).resolve().parent / "models"


def load_predictors() -> dict:
    """The models to serve by name, the default first: those of MODELS in its order, or the embedded ones, best first."""
    if chosen := [name.strip() for name in os.environ.get("MODELS", "").split(",") if name.strip()]:
        predictors = [load_predictor(name) for name in chosen]
    else:
        predictors = [load_predictor(config.parent) for config in sorted(EMBEDDED.glob("*/config.json"))]
        predictors.sort(key=lambda predictor: -(predictor.accuracy or 0))
    if not predictors:
        raise errors.ModelError(f"no model in {EMBEDDED}: train one, and name it, MODELS=runs/cnn python app.py")
    names = [predictor.name for predictor in predictors]
    if len(set(names)) < len(names):
        raise errors.ModelError(f"two models have the same name ({', '.join(names)}): rename a folder")
    return dict(zip(names, predictors, strict=True))


def main() -> None:
    """Loads, builds, and serves until told to stop."""
    predictors = load_predictors()

    from space import page, serving  # gradio takes seconds to import: not before the models are known to load

    serving.serve(page.build(predictors), predictors)


if __name__ == "__main__":
    errors.run(main)

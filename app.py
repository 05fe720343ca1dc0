"""The Space: top-k CIFAR-10 labels for one or many images, as a page and as an API.

python app.py                                       # the embedded models, at http://127.0.0.1:7860
MODELS="user/cifar10-cnn,runs/vit" python app.py    # folders, Hub models, `user/name@revision`; first: default
"""

import os
import sys
from pathlib import Path

from classifier import errors, load_predictor

EMBEDDED = Path(__file__).resolve().parent / "models"
HUB_PATIENCE_S = 60  # then what is cached, or embedded, is served


def load_predictors() -> tuple[dict, list[str]]:
    """The models to serve by name, the default first, and what the page has to say about them.

    Those of MODELS in its order, or the embedded ones, best first. A model that the Hub does not give is served as it
    was fetched last, or left out; when none is left, the embedded ones stand in.
    """
    predictors, notices = [], []
    for name in filter(None, map(str.strip, os.environ.get("MODELS", "").split(","))):
        try:
            predictors.append(load_predictor(name, patience=HUB_PATIENCE_S))
            notices.append(predictors[-1].notice)
        except errors.HubError as error:
            notices.append(f"{error}.")
    if not predictors:
        predictors = [load_predictor(config.parent) for config in sorted(EMBEDDED.glob("*/config.json"))]
        predictors.sort(key=lambda predictor: -(predictor.accuracy or 0))
        notices += ["The models that come with the app are served instead."] if notices else []
    if not predictors:
        raise errors.ModelError(f"no model in {EMBEDDED}: train one, and name it, MODELS=runs/cnn python app.py")
    names = [predictor.name for predictor in predictors]
    if len(set(names)) < len(names):
        raise errors.ModelError(f"two models have the same name ({', '.join(names)}): rename a folder")
    return dict(zip(names, predictors, strict=True)), list(filter(None, notices))


def main() -> None:
    """Loads, builds, and serves until told to stop."""
    predictors, notices = load_predictors()
    for notice in notices:
        print(notice, file=sys.stderr)

    from space import page, server  # gradio takes seconds to import: not before the models are known to load
    from space.pictures import PictureClassifier

    classifier = PictureClassifier(predictors)
    server.serve(page.build(classifier, notices), classifier)


if __name__ == "__main__":
    errors.run(main)

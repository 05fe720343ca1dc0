"""The detail view: what each model says about one picture, what it saw, and where it looked."""

from html import escape

from PIL import Image

from classifier.errors import ModelError
from classifier.models import explain
from space.batching import reduced
from space.components import bar, percent
from space.pictures import Picture, PictureClassifier, new_file
from space.validation import FILE_URL

MIN_SIDE = 320  # pixels; smaller figures are enlarged by a whole factor
PLACEHOLDER = '<div class="figures waiting" aria-hidden="true"><span></span><span></span></div>'


def describe(picture: Picture, model: str, top_k: int) -> str:
    """HTML of a picture: its label by `model`, then the bars and figures of `model` and of the other models.

    Figures that were not computed yet are replaced by a placeholder.
    """
    if picture.error:
        return f"<h2>{escape(picture.name)}</h2><p>Could not be read: {escape(picture.error)}</p>"
    best = picture.best(model)
    doubt = '<p class="doubt">This looks like none of the labels.</p>' if picture.is_unknown(model) else ""
    verdict = {None: "", True: "The models agree.", False: "The models disagree."}[picture.models_agree]
    names = [model, *(name for name in picture.top_labels if name != model)]
    return (
        f'<p class="file">{escape(picture.name)}</p><div role="status">'
        f"<h2>{escape(best['label'])} <small>{percent(best['score'])}</small></h2>{doubt}</div><p>{verdict}</p>"
        f'<div class="models">{"".join(section(picture, name, top_k) for name in names)}</div>'
    )


def section(picture: Picture, name: str, top_k: int) -> str:
    """HTML of what one model says about a picture."""
    doubt = ' <span class="doubt">like none of the labels</span>' if picture.is_unknown(name) else ""
    top_labels = picture.top_labels[name][:top_k]
    bars = "".join(bar(entry["label"], entry["score"], percent(entry["score"])) for entry in top_labels)
    figures = picture.figures.get(name, PLACEHOLDER)
    return f'<section><h3>{escape(name)}{doubt}</h3><ol class="bars">{bars}</ol>{figures}</section>'


def figures(classifier: PictureClassifier, picture: Picture, name: str) -> str:
    """HTML of what a model saw of a picture, and where it looked for the label that it found most probable.

    Raises:
        ImageError: the file can't be read, for instance because it was deleted meanwhile.
    """
    predictor, label = classifier.predictors[name], picture.best(name)["label"]
    image = reduced(classifier.images.decode(picture.path), predictor.reduce_to)
    with classifier.turn:
        seen = explain.preprocessed_image(predictor, image)
        parts = [figure(Image.fromarray(seen), f"What {name} saw")]
        try:
            heat = explain.heatmap(predictor, image, predictor.labels.index(label))
        except ModelError as error:  # an architecture without an explanation
            parts.append(f"<p>{escape(str(error))}</p>")
        else:
            parts.append(figure(explain.overlay(seen, heat), f"Where it looked for “{label}”"))
    return f'<div class="figures">{"".join(parts)}</div>'


def figure(image: Image.Image, caption: str) -> str:
    """HTML of an image, which is written into gradio's cache. A small one is enlarged with sharp pixel edges."""
    path = new_file("figure.png")
    factor = max(1, MIN_SIDE // max(image.size))
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
    text = escape(caption)
    return f'<figure><img src="{escape(FILE_URL + str(path))}" alt="{text}"><figcaption>{text}</figcaption></figure>'

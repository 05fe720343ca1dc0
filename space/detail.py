"""One picture in depth: what each model says of it, what it saw, and where it looked."""

from html import escape

from PIL import Image

from classifier.errors import ModelError
from classifier.models import explain
from classifier.models.predictor import Predictor
from space.components import URL, bar, percent
from space.endpoints import new_file
from space.session import Row, agree

SIDE = 320  # pixels that a picture of what a model saw is enlarged to, so that the heat map over it is smooth


def describe(row: Row, model: str, top_k: int) -> str:
    """HTML of a picture: bars of all models, `model`'s first; below each one's figures, where they are there."""
    if row.error:
        return f"<h2>{escape(row.name)}</h2><p>Could not be read: {escape(row.error)}</p>"
    top = row.tops[model][0]
    doubt = '<p class="doubt">This looks like none of the labels.</p>' if row.known[model] is False else ""
    verdict = {None: "", True: "The models agree.", False: "The models disagree."}[agree(row)]
    names = [model, *(name for name in row.tops if name != model)]
    return (
        f'<p class="file">{escape(row.name)}</p><div role="status">'
        f"<h2>{escape(top['label'])} <small>{percent(top['score'])}</small></h2>{doubt}</div><p>{verdict}</p>"
        + "".join(said(row, name, top_k, row.figures.get(name, PLACEHOLDER)) for name in names)
    )


PLACEHOLDER = '<div class="figures waiting" aria-hidden="true"><span></span><span></span></div>'


def said(row: Row, name: str, top_k: int, figures: str) -> str:
    """HTML of what one model says of a picture."""
    doubt = ' <span class="doubt">like none of the labels</span>' if row.known[name] is False else ""
    bars = "".join(bar(entry["label"], entry["score"], percent(entry["score"])) for entry in row.tops[name][:top_k])
    return f'<section><h3>{escape(name)}{doubt}</h3><ol class="bars">{bars}</ol>{figures}</section>'


def look(predictor: Predictor, row: Row, image: Image.Image) -> str:
    """HTML of what a model saw of a picture, decoded for it, and where it looked for its top label."""
    picture = explain.preprocessed_image(predictor, image)
    label = predictor.labels.index(row.tops[predictor.name][0]["label"])
    figures = [figure(Image.fromarray(picture), f"What {predictor.name} saw")]
    try:
        heat = explain.heatmap(predictor, image, label)
    except ModelError as error:  # of an architecture that can't be explained
        return f'<div class="figures">{"".join(figures)}<p>{escape(str(error))}</p></div>'
    figures.append(figure(explain.overlay(picture, heat), f"Where it looked for “{predictor.labels[label]}”"))
    return f'<div class="figures">{"".join(figures)}</div>'


def figure(image: Image.Image, caption: str) -> str:
    """HTML of an image, written where it is served and deleted with the uploads. Small ones keep their pixels'
    edges.
    """
    path = new_file("figure.png")
    zoom = max(1, SIDE // max(image.size))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)
    text = escape(caption)
    return f'<figure><img src="{escape(URL + str(path))}" alt="{text}"><figcaption>{text}</figcaption></figure>'

"""From uploads to pictures: in order, with errors in their place, without decoding a file twice."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier import load_predictor
from classifier.images import workers
from classifier.images.convert import to_rgb
from classifier.images.workers import decode
from space.batching import BATCH_SIZE, reduced
from space.pictures import Picture, PictureClassifier, Upload, uploads
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> PictureClassifier:
    """Two random models that reduce photographs to different sizes."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_vit(folder / "large", reduce_to=48)
    save_tiny_vit(folder / "small", seed=1, reduce_to=16)
    return PictureClassifier({name: load_predictor(folder / name) for name in ("large", "small")})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))


def write(folder: Path, n: int, broken: tuple[int, ...] = ()) -> list[Upload]:
    made = []
    for i in range(n):
        (folder / f"{i}.png").write_bytes(b"no image" if i in broken else encoded(picture(i)))
        made.append(Upload(str(folder / f"{i}.png"), f"IMG_{i}.png"))
    return made


def test_pictures_come_in_order_with_errors_in_their_place(classifier, tmp_path):
    files = write(tmp_path, 70, broken=(3, 69))
    found = list(classifier.classify(files, ["large", "small"], 3))
    assert [made.name for made in found] == [file.name for file in files]
    assert [i for i, made in enumerate(found) if made.error] == [3, 69]
    assert "not an image of a known type" in found[3].error
    for name, predictor in classifier.predictors.items():
        images = [reduced(picture(i), predictor.reduce_to) for i in range(70) if i not in (3, 69)]
        for made, expected in zip([made for made in found if not made.error], predictor(images, top_k=3), strict=True):
            assert made.top_labels[name][0]["label"] == expected[0]["label"]
            scores = [entry["score"] for entry in made.top_labels[name]]
            assert scores == pytest.approx([entry["score"] for entry in expected], abs=1e-2)


def test_a_file_is_decoded_once_for_all_models_and_the_detail_view(classifier, tmp_path, monkeypatch):
    decoded = []

    def counted(source, *, reduce_to=None):
        decoded.append((source, reduce_to))
        return decode(source, reduce_to=reduce_to)

    monkeypatch.setattr(workers, "decode", counted)
    [file] = write(tmp_path, 1)
    classifier.images.prefetch([file.path])
    list(classifier.classify([file], classifier.predictors, 3, previews=True))
    classifier.images.decode(file.path)
    assert decoded == [(file.path, 48)]  # the larger of the two sizes


def test_files_are_not_decoded_further_ahead_than_two_batches(classifier, tmp_path):
    read = []

    class Watched(list):
        def __iter__(self):
            for upload in super().__iter__():
                read.append(upload)
                yield upload

    pictures = classifier.classify(Watched(write(tmp_path, 120)), ["small"], 1)
    next(pictures)
    time.sleep(0.5)
    assert len(read) < 4 * BATCH_SIZE
    assert len(list(pictures)) == 119


def test_previews_are_small_and_upright(tmp_path):
    model = load_predictor(save_tiny_vit(tmp_path / "whole"))  # without reduce_to, images are decoded in full size
    classifier = PictureClassifier({"whole": model})
    picture(0, (1200, 900)).save(tmp_path / "large.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a viewer turns it by 90 degrees
    picture(3).save(tmp_path / "rotated.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    files = [Upload(str(tmp_path / name), name) for name in ("large.tif", "broken.jpg", "rotated.jpg")]
    large, broken, rotated = classifier.classify(files, ["whole"], 5, previews=True)
    with Image.open(large.preview) as image:
        assert image.format == "JPEG" and min(image.size) == 320
    with Image.open(rotated.preview) as image, Image.open(tmp_path / "rotated.jpg") as stored:
        assert image.size == stored.size[::-1]
    assert broken.preview == "" and broken.error


def test_models_agree_if_their_best_labels_do():
    cat, dog = [{"label": "cat", "score": 0.9}], [{"label": "dog", "score": 0.5}]
    assert Picture("a", top_labels={"a": cat, "b": cat}).models_agree is True
    assert Picture("a", top_labels={"a": cat, "b": dog}).models_agree is False
    assert Picture("a", top_labels={"a": cat}).models_agree is None
    assert Picture("a", error="?").models_agree is None


def test_uploads_keep_the_names_of_their_senders():
    found = uploads([{"path": "/x/a.png", "orig_name": "Bäume.png"}, {"path": "/x/b.png"}])
    assert found == [Upload("/x/a.png", "Bäume.png"), Upload("/x/b.png", "b.png")]
    assert uploads({"path": "/x/a.png"}) == [Upload("/x/a.png", "a.png")] and uploads(None) == []


def test_photographs_reduced_in_two_steps_are_classified_as_whole_ones():
    """The app decodes to the largest size that a model needs, and shrinks that for the others."""
    photos = sorted((Path(os.environ.get("HUB_MIRROR", "")).parent / "photos").glob("*/*.jpg"))
    if "HUB_MIRROR" not in os.environ or not photos:
        pytest.skip("needs photographs: a folder `photos` beside HUB_MIRROR")
    predictors = {name: load_predictor(ROOT / "models" / name) for name in ("vit", "mobilenet")}
    predictor, images = predictors["mobilenet"], PictureClassifier(predictors).images
    assert predictor.reduce_to < images.reduce_to
    decoded = [reduced(image, predictor.reduce_to) for image in images.decode_many(map(str, photos))]
    shrunk = predictor.probabilities(decoded)
    whole = predictor.probabilities([to_rgb(decode(photo), reduce_to=predictor.reduce_to) for photo in photos])
    of_labels = np.array([photo.parent.name in predictor.labels for photo in photos])
    assert (shrunk.argmax(axis=1) != whole.argmax(axis=1))[of_labels].sum() <= 1
    assert np.quantile(np.abs(shrunk - whole), 0.95) < 0.03

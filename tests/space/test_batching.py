"""Batches across callers: the same answers as one by one, in order, and an error for its caller alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.images.convert import to_rgb
from space.batching import Batcher, reduced
from tests.helpers.models import save_tiny_vit
from tests.helpers.pictures import picture


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load_predictor(save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny"))


def test_every_caller_gets_the_prediction_of_its_image(predictor):
    images = [picture(i) for i in range(70)]
    with Batcher(predictor, batch_size=8) as batcher:
        futures = [batcher.submit(image) for image in images]
    found = [future.result().probabilities for future in futures]
    np.testing.assert_allclose(found, predictor.probabilities(images), atol=1e-5)


def test_an_image_is_shrunk_to_what_the_model_needs(tmp_path):
    predictor, image = load_predictor(save_tiny_vit(tmp_path / "tiny", reduce_to=16)), picture(0, (90, 60))
    with Batcher(predictor) as batcher:
        found = batcher.submit(image).result().probabilities
    np.testing.assert_allclose(found, predictor.probabilities([to_rgb(image, reduce_to=16)])[0], atol=1e-5)
    assert reduced(image, 16).size == (24, 16) and reduced(image, 60) is image and reduced(image, None) is image


def test_waiting_images_are_computed_in_one_batch(predictor, monkeypatch):
    sizes, judge = [], predictor.predict_with_ood

    def slowly(images, batch_size):
        sizes.append(len(images))
        time.sleep(0.05)
        return judge(images, batch_size)

    monkeypatch.setattr(predictor, "predict_with_ood", slowly)
    with Batcher(predictor, batch_size=8) as batcher, ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda i: batcher.submit(picture(i)).result(), range(20)))
        batcher.submit(picture(0)).result()  # alone, it waits for nobody
    assert sum(sizes) == 21 and len(sizes) <= 6 and max(sizes) == 8 and sizes[-1] == 1


def test_an_error_is_its_callers_and_the_next_batch_goes_on(predictor, monkeypatch):
    judge = predictor.predict_with_ood

    def fails(images, batch_size):
        if images[0].size == (7, 7):
            raise ModelError("it gave NaN")
        return judge(images, batch_size)

    monkeypatch.setattr(predictor, "predict_with_ood", fails)
    with Batcher(predictor) as batcher:
        with pytest.raises(ModelError, match="it gave NaN"):
            batcher.submit(picture(0, (7, 7))).result()
        assert batcher.submit(picture(0)).result().probabilities.shape == (len(predictor.labels),)


def test_models_that_share_a_turn_do_not_compute_at_once(predictor, monkeypatch):
    at_once, most = 0, 0
    judge = predictor.predict_with_ood

    def watched(images, batch_size):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return judge(images, batch_size)

    monkeypatch.setattr(predictor, "predict_with_ood", watched)
    turn = threading.Lock()
    with Batcher(predictor, turn=turn) as one, Batcher(predictor, turn=turn) as other, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: (one, other)[i % 2].submit(picture(i)).result(), range(16)))
    assert most == 1

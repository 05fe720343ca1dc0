"""Batches across callers: the same answers as one by one, in order, and an error for its caller alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from classifier import load_predictor
from classifier.errors import ImageError, ModelError
from space.batching import Batcher
from tests.helpers.models import save_tiny_vit
from tests.helpers.pictures import encoded, picture


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load_predictor(save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny"))


def test_answers_come_in_order_with_errors_in_their_place(predictor):
    files = [encoded(picture(i)) for i in range(70)]
    files[3] = files[69] = b"no image"
    expected = predictor.probabilities([file for file in files if file != b"no image"])
    with Batcher(predictor, batch_size=8) as batcher:
        found = list(batcher.classify(files))
    assert [i for i, answer in enumerate(found) if isinstance(answer, ImageError)] == [3, 69]
    answers = [answer for answer in found if not isinstance(answer, ImageError)]
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-5)
    assert answers[0].image.tobytes() == picture(0).tobytes()


def test_what_waits_is_computed_together(predictor, monkeypatch):
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


def test_it_reads_no_further_ahead_than_two_batches(predictor):
    read = []

    def files():
        for i in range(200):
            read.append(i)
            yield encoded(picture(i))

    with Batcher(predictor, batch_size=4) as batcher:
        answers = batcher.classify(files())
        next(answers)
        time.sleep(0.5)
        assert len(read) < 20
        assert len(list(answers)) == 199


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

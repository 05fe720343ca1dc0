"""Uploads are decoded once, while others arrive, and no more images are kept than there is room for."""

import time
from pathlib import Path

import pytest

from classifier.errors import ImageError, SlowImageError
from classifier.images import workers
from classifier.images.workers import Decoder, decode_many
from space import prefetch
from space.prefetch import DecodedImages
from tests.helpers.pictures import encoded, picture


@pytest.fixture
def images():
    made = DecodedImages(16)
    yield made
    made.close()


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Four photographs, the third of them broken."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(b"no image" if i == 2 else encoded(picture(i, (60, 40))))
    return [str(path) for path in paths]


def prefetch_and_delete(images: DecodedImages, files: list[str]) -> None:
    """Waits until all files were tried, then deletes them, so that only images that are kept can be had."""
    images.prefetch(files)
    images._background.submit(lambda: None).result()
    for file in files:
        Path(file).unlink()


def test_an_image_is_decoded_once(images, files):
    expected = list(decode_many(files, reduce_to=16))
    prefetch_and_delete(images, files)
    for _ in range(2):
        found = list(images.decode_many(files))
        assert isinstance(found[2], ImageError) and len(found) == 4
        for i in (0, 1, 3):
            assert found[i].size == (24, 16) and found[i].tobytes() == expected[i].tobytes()
    assert images.decode(files[0]) is found[0]


def test_an_image_that_was_not_prefetched_is_kept_too(images, files):
    first = images.decode(files[0])
    Path(files[0]).unlink()
    assert images.decode(files[0]) is first


def test_a_file_that_was_not_started_is_not_waited_for(images, files):
    images._background.submit(time.sleep, 5)
    began = time.monotonic()
    images.prefetch(files)
    first, *_ = images.decode_many(files)
    assert first.size == (24, 16) and time.monotonic() - began < 4


def test_a_file_that_was_not_there_yet_is_tried_again(images, tmp_path):
    late = tmp_path / "late.png"
    images.prefetch([str(late)])
    images._background.submit(lambda: None).result()
    late.write_bytes(encoded(picture(0)))
    assert min(images.decode(str(late)).size) == 16


def test_a_gallery_of_slow_files_ends(images, tmp_path, monkeypatch):
    slow, quick = tmp_path / "slow.png", tmp_path / "quick.png"
    slow.write_bytes(encoded(picture(0, (8000, 6000))))
    quick.write_bytes(encoded(picture(1)))
    images.decode(str(quick))  # it is kept, so it needs no time later
    with Decoder(workers=1, time_limit_s=0.1) as decoder:
        monkeypatch.setattr(workers, "decode", decoder.decode)
        found = list(images.decode_many([str(quick), *[str(slow)] * 8, str(quick)]))
    assert min(found[0].size) == 16
    assert all(isinstance(each, SlowImageError) for each in found[1:4])
    assert str(found[-1]) == "not tried, as 3 files before it took too long: send it without these"


def test_no_more_files_wait_than_are_allowed(images, files, monkeypatch):
    monkeypatch.setattr(prefetch, "MAX_PREFETCHED", 1)
    images._background.submit(time.sleep, 0.2)
    prefetch_and_delete(images, files)
    assert [isinstance(each, ImageError) for each in images.decode_many(files)] == [False, True, True, True]


def test_the_least_recently_used_images_are_dropped(images, files, monkeypatch):
    monkeypatch.setattr(prefetch, "MAX_KEPT_BYTES", 2 * 3 * 24 * 16)
    for i in (0, 1, 0, 3):  # the second one is the least recently used
        images.decode(files[i])
    for file in files:
        Path(file).unlink()
    assert [isinstance(each, ImageError) for each in images.decode_many(files)] == [False, True, True, False]


def test_images_that_are_not_used_are_forgotten(images, files):
    prefetch_and_delete(images, files)
    images.forget(60)
    assert images.decode(files[0])
    images.forget(0)
    assert all(isinstance(each, ImageError) for each in images.decode_many(files))

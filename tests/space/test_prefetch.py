"""Decoding while uploads come in: the same pictures, of files that are gone since, and no more than there is room
for.
"""

import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from classifier.errors import ImageError, SlowImageError
from classifier.images import workers
from classifier.images.workers import Decoder, decode_many
from space import prefetch as module
from space.middleware import UPLOAD, RequestLimits, State
from space.prefetch import Prefetcher
from tests.helpers.pictures import encoded, picture


@pytest.fixture
def ahead():
    made = Prefetcher(16)
    yield made
    made.close()


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Four photographs, the third of them broken."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(b"no image" if i == 2 else encoded(picture(i, (60, 40))))
    return [str(path) for path in paths]


def start_and_delete(ahead: Prefetcher, files: list[str]) -> None:
    """Waits until all were tried, then takes the files away, so that only what was decoded before can be had."""
    ahead.start(files)
    ahead._thread.submit(lambda: None).result()
    for file in files:
        Path(file).unlink()


def test_what_was_decoded_ahead_is_given_once(ahead, files):
    expected = list(decode_many(files, reduce_to=16))
    start_and_delete(ahead, files)
    found = list(ahead.decode_many(files, reduce_to=16))
    assert [type(each) for each in found[2:3]] == [ImageError] and len(found) == 4
    for i in (0, 1, 3):
        assert found[i].size == (24, 16) and found[i].tobytes() == expected[i].tobytes()
    assert all(isinstance(each, ImageError) for each in ahead.decode_many(files, reduce_to=16))


def test_another_reduction_is_decoded_by_itself(ahead, files):
    ahead.start(files)
    first, *_ = ahead.decode_many(files, reduce_to=8)
    assert first.size == (12, 8)


def test_what_has_not_begun_is_not_waited_for(ahead, files):
    ahead._thread.submit(time.sleep, 5)
    began = time.monotonic()
    ahead.start(files)
    first, *_ = ahead.decode_many(files, reduce_to=16)
    assert first.size == (24, 16) and time.monotonic() - began < 4


def test_a_file_that_was_not_there_yet_is_tried_again(ahead, tmp_path):
    late = tmp_path / "late.png"
    ahead.start([str(late)])
    ahead._thread.submit(lambda: None).result()
    late.write_bytes(encoded(picture(0)))
    [found] = ahead.decode_many([str(late)], reduce_to=16)
    assert min(found.size) <= 16


def test_a_gallery_of_slow_files_ends(ahead, tmp_path, monkeypatch):
    with Decoder(workers=1, time_limit_s=0.1) as decoder:
        monkeypatch.setattr(workers, "decode", decoder.decode)
        slow, quick = tmp_path / "slow.png", tmp_path / "quick.png"
        slow.write_bytes(encoded(picture(0, (8000, 6000))))
        quick.write_bytes(encoded(picture(1)))
        found = list(ahead.decode_many([str(quick), *[str(slow)] * 8, str(quick)], reduce_to=16))
    assert min(found[0].size) == 16
    assert all(isinstance(each, SlowImageError) for each in found[1:4])
    assert str(found[-1]) == "not tried, as 3 files before it took too long: send it without these"


@pytest.mark.parametrize("bound", ["MAX_WAITING", "MAX_BYTES"])
def test_what_waits_is_bounded(ahead, files, monkeypatch, bound):
    monkeypatch.setattr(module, bound, {"MAX_WAITING": 1, "MAX_BYTES": 3 * 24 * 16}[bound])
    start_and_delete(ahead, files)
    found = list(ahead.decode_many(files, reduce_to=16))
    assert [isinstance(each, ImageError) for each in found] == [False, True, True, True]


def test_what_waits_in_vain_is_forgotten(ahead, files):
    start_and_delete(ahead, files)
    ahead.forget(60)
    assert len(ahead._waiting) == 4
    ahead.forget(0)
    assert all(isinstance(each, ImageError) for each in ahead.decode_many(files, reduce_to=16))


@pytest.mark.parametrize("status", [200, 413])
def test_the_guard_tells_what_arrived(tmp_path, status):
    """Around a stand-in for gradio, which answers an upload with the paths of what it took."""
    told = []

    async def upload(_):
        return JSONResponse(["/uploads/a.png", "/uploads/b.png"], status)

    app = Starlette(routes=[Route(UPLOAD, upload, methods=["POST"])])
    guarded = RequestLimits(app, State(), tmp_path, {}, None, told.extend)
    assert TestClient(guarded).post(UPLOAD, content=b"files").status_code == status
    assert told == (["/uploads/a.png", "/uploads/b.png"] if status == 200 else [])

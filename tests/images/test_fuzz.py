"""Damaged files for the decoder, and calls that make no sense for the endpoints: only our own errors come out."""

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from classifier.images.workers import Decoder, _shared
from tests.helpers.models import save_tiny_vit
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import running_app

QUICK = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def test_samples_are_whole():
    with Decoder() as decoder:
        assert {kind: fuzz.outcome(decoder, data, None) for kind, data in fuzz.SAMPLES.items()} == dict.fromkeys(
            fuzz.SAMPLES, "image"
        )


@settings(max_examples=1500, **QUICK)
@given(damaged=fuzz.damaged(), reduce_to=st.sampled_from([None, 16]))
def test_damaged_files_are_images_or_are_refused(damaged, reduce_to):
    kind, data = damaged
    found = fuzz.outcome(_shared, data, reduce_to)
    event(f"{kind}: {found}")
    assert found in ("image", "refused")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """(address, log file, the path of an upload) of a running app."""
    folder = tmp_path_factory.mktemp("app")
    model = save_tiny_vit(folder / "tiny")
    with running_app([model], folder) as (url, _):
        [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
        yield url, folder / "app.log", path


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
PATHS = st.sampled_from(
    ["/etc/passwd", "../../etc/passwd", "", "\0", "/proc/self/environ", "file:///etc/passwd", "a" * 5000]
)
FILES = st.fixed_dictionaries(
    {"path": PATHS | SCALARS},
    optional={"meta": st.just({"_type": "gradio.FileData"}) | SCALARS, "orig_name": SCALARS, "url": PATHS | SCALARS},
)
VALUES = st.recursive(
    SCALARS | FILES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
CALLS = st.lists(VALUES, max_size=5) | VALUES


@settings(max_examples=150, **QUICK)
@given(endpoint=st.sampled_from(["classify", "classify_gallery", "models"]), data=CALLS)
def test_calls_that_make_no_sense_end_in_an_error_of_their_own(app, endpoint, data):
    url, log, _ = app
    call = f"{url}/gradio_api/call/{endpoint}"
    reply = httpx.post(call, json={"data": data}, timeout=60)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    if reply.status_code == 200:
        text = httpx.get(f"{call}/{reply.json()['event_id']}", timeout=60).text
        assert "event: error" in text or (endpoint == "models" and "event: complete" in text), text
        for private in ("root:", "Traceback", str(Path(log).parent)):
            assert private not in text


EVENTS = SCALARS | st.fixed_dictionaries(
    {},
    optional={"index": SCALARS, "at": SCALARS, "count": SCALARS, "reason": SCALARS, "names": VALUES, "name": SCALARS},
)


@settings(max_examples=150, **QUICK)
@given(data=st.data(), told=EVENTS)
def test_events_that_no_page_sends_end_in_an_error_of_their_own(app, data, told):
    """The page's own functions can be called by a script as well, by their numbers."""
    url, log, path = app
    events = httpx.get(f"{url}/config").json()["dependencies"]
    inputs = {each["id"]: len(each["inputs"]) for each in events if each["backend_fn"]}
    number = data.draw(st.sampled_from(sorted(inputs)))
    files = st.just([]) | st.just([{"path": path, "meta": {"_type": "gradio.FileData"}}])
    values = data.draw(st.lists(SCALARS | files, min_size=inputs[number], max_size=inputs[number]))
    if inputs[number] >= 6 and data.draw(
        st.booleans()
    ):  # what the page is set to, so that more than its check is reached
        values[-6:] = [None, "tiny", 3, "all", 80, ""]
    visit = f"visit {data.draw(st.integers(0, 3))}"
    call = {"fn_index": number, "data": values, "event_data": told, "session_hash": visit}
    reply = httpx.post(f"{url}/gradio_api/queue/join", json=call, timeout=60)
    assert reply.status_code in (200, 422), reply.text
    if reply.status_code == 200:
        with httpx.stream("GET", f"{url}/gradio_api/queue/data", params={"session_hash": visit}, timeout=60) as stream:
            assert any("process_completed" in line for line in stream.iter_lines())
    assert "Traceback" not in log.read_text()


def test_and_it_still_answers(app):
    url, _, path = app
    call = f"{url}/gradio_api/call/classify"
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event_id = httpx.post(call, json={"data": [image, "tiny", 1]}).json()["event_id"]
    text = httpx.get(f"{call}/{event_id}").text
    assert "event: complete" in text
    label, about = json.loads(text.rpartition("data: ")[2])
    assert label["label"] and about["model"] == "tiny"

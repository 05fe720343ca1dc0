"""Calls that gradio could make nothing of: whatever way they come in, one line says what is wrong, and the log has no
trace.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client, handle_file

from space import middleware
from tests.helpers.models import save_tiny_vit
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import running_app

META = {"_type": "gradio.FileData"}
JSON = {"content-type": "application/json"}
NO_FILE = 'not a file: send {"path": what /gradio_api/upload answered, "meta": {"_type": "gradio.FileData"}}'
NO_UPLOAD = "not an upload: send it to /gradio_api/upload first, then the path that this answers"


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """(address, log file) of a running app."""
    folder = tmp_path_factory.mktemp("app")
    with running_app([save_tiny_vit(folder / "tiny")], folder) as (url, _):
        yield url, folder / "app.log"


@pytest.fixture(scope="module")
def upload(app) -> str:
    """The path of an upload."""
    url, log = app
    start = log.stat().st_size
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
    logged(log, start)
    return path


def post(url: str, way: str, endpoint: str, data: list) -> httpx.Response:
    """A call by name (call), or by number, as page and gradio_client send it (queue)."""
    if way == "call":
        return httpx.post(f"{url}/gradio_api/call/{endpoint}", content=json.dumps({"data": data}), headers=JSON)
    dependencies = httpx.get(f"{url}/config").json()["dependencies"]
    [number] = [each["id"] for each in dependencies if each["api_name"] == endpoint]
    body = {"data": data, "fn_index": number, "session_hash": "mine"}
    return httpx.post(f"{url}/gradio_api/queue/join", content=json.dumps(body), headers=JSON)


def logged(log: Path, start: int) -> list[str]:
    """What a log got beyond `start` bytes; the line of a request comes after its reply."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        lines = [line for line in log.read_bytes()[start:].decode().splitlines() if "is compiled" not in line]
        if lines:
            break
        time.sleep(0.05)
    return lines


def malformed(path: str) -> dict[str, tuple[object, str]]:
    """What is sent instead of a file -> what is said of it."""
    file = {"path": path, "meta": META}
    return {
        "no meta": ({"path": path}, NO_FILE),
        "meta of a wrong type": (file | {"meta": 7}, NO_FILE),
        "meta of something else": (file | {"meta": {"_type": "x"}}, NO_FILE),
        "no path": ({"meta": META}, NO_FILE),
        "path of a wrong type": (file | {"path": 7}, NO_FILE),
        "a text": (path, NO_FILE),
        "a number": (7, NO_FILE),
        "a nested list": ([[file]], NO_FILE),
        "size of a wrong type": (file | {"size": "large"}, NO_FILE),
        "name of a wrong type": (file | {"orig_name": 7}, NO_FILE),
        "is_stream of a wrong type": (file | {"is_stream": None}, NO_FILE),
        "a file of the server": (file | {"path": "/etc/passwd"}, NO_UPLOAD),
        "above the uploads": (file | {"path": f"{path}/../../../../app.log"}, NO_UPLOAD),
        "the folder of an upload": (file | {"path": str(Path(path).parent)}, NO_UPLOAD),
        "up": (file | {"path": f"{Path(path).parent}/.."}, NO_UPLOAD),
        "a null byte": (file | {"path": f"{path}\0"}, NO_UPLOAD),
        "a long path": (file | {"path": path + "a" * 300}, NO_UPLOAD),
        "half a character": (file | {"orig_name": "\ud800"}, "not JSON in UTF-8"),
    }


@pytest.mark.parametrize("way", ["call", "queue"])
@pytest.mark.parametrize("endpoint", ["classify", "classify_gallery", "compare"])
def test_values_that_are_no_files_are_refused_in_one_line(app, upload, endpoint, way):
    url, log = app
    for what, (value, message) in malformed(upload).items():
        data = {
            "classify": [value, None, 5],
            "classify_gallery": [[{"path": upload, "meta": META}, value], None, 5],
            "compare": [value, 5],
        }
        start = log.stat().st_size
        reply = post(url, way, endpoint, data[endpoint])
        assert reply.status_code == 422, what
        error = reply.json()["error"]
        where = "" if what == "half a character" else "files[1]: " if "gallery" in endpoint else "image: "
        assert error == where + message, what
        [line] = logged(log, start)
        assert f"INFO POST {'queue/join' if way == 'queue' else f'call/{endpoint}'} 422" in line
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("form", "is_taken"),
    [
        ("{url}/gradio_api/file={path}", True),
        ("https://{host}/some/where/gradio_api/file={path}", True),  # behind a proxy that removes the prefix
        ("/gradio_api/file={path}", True),
        ("/some/where/gradio_api/file={path}", True),
        ("HTTPS://Example.org:443/gradio_api/file={path}", True),  # the first proxy
        ("http://inner:8080/gradio_api/file={path}", True),  # the second
        ("http://elsewhere.org/gradio_api/file={path}", False),
        ("//elsewhere.org/gradio_api/file={path}", False),
        ("http://example.org@elsewhere.org/gradio_api/file={path}", False),
        ("http://example.org:81/gradio_api/file={path}", False),
        ("ftp://{host}/gradio_api/file={path}", False),
        ("http://[/gradio_api/file={path}", False),
        ("{url}/gradio_api/file={path}/../../../app.log", False),
        ("{url}/gradio_api/file=/etc/passwd", False),
        ("{url}/gradio_api/file={path}%00", False),
        ("{url}{path}", False),
    ],
)
def test_the_url_of_an_upload_is_taken_as_its_path(app, form, is_taken):
    url, log = app
    content = {"files": ("Zwei Bäume #1?.png", encoded(picture(0)))}
    [path] = httpx.post(f"{url}/gradio_api/upload", files=content).json()
    address = form.format(url=url, host=url.removeprefix("http://"), path=quote(path))
    files = [{"path": address, "url": address, "orig_name": address.rpartition("/")[2], "meta": META}]
    headers = {"x-forwarded-host": "example.org, inner:8080"}
    call = f"{url}/gradio_api/call/classify_gallery"
    reply = httpx.post(call, json={"data": [files, None, 5]}, headers=headers)
    assert reply.status_code == (200 if is_taken else 422)
    if is_taken:
        text = httpx.get(f"{call}/{reply.json()['event_id']}", timeout=60).text
        [row] = json.loads(text.rpartition("data: ")[2])[0]["data"]
        assert row[:3] == [0, Path(path).name, "ok"]
    else:
        assert "given by URL" in reply.json()["error"] or NO_UPLOAD in reply.json()["error"]
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("way", ["call", "queue"])
def test_other_arguments_are_checked_as_well(app, upload, way):
    url, log = app
    file = {"path": upload, "meta": META}
    for endpoint, data, message in (
        ("classify_gallery", [file, None, 5], "files: not a list of files: of each, send {"),
        ("classify_gallery", ["x", None, 5], "files: not a list of files: of each, send {"),
        ("classify", [file, file, 5], "model: neither text nor number"),
        ("classify", [file, {"path": "/etc/passwd", "meta": 7}, 5], "model: neither text nor number"),
        ("classify", [file, [{}] * 1000, 5], "model: neither text nor number"),
        ("classify", [file, "m" * 900_000, 5], "model: 900,000 characters, at most 4,096"),
        ("classify", [file], "data has 1 of 3 values (image, model, top_k): send null for a default"),
    ):
        reply = post(url, way, endpoint, data)
        assert reply.status_code == 422 and reply.json()["error"].startswith(message), reply.text
    assert "Traceback" not in log.read_text()


def test_sessions_have_short_ids_and_few_unfetched_answers(app, upload):
    url, log = app
    dependencies = httpx.get(f"{url}/config").json()["dependencies"]
    [number] = [each["id"] for each in dependencies if each["api_name"] == "classify"]
    call = {"data": [{"path": upload, "meta": META}, "none", 5], "fn_index": number}
    reply = httpx.post(f"{url}/gradio_api/queue/join", json=call | {"session_hash": "v" * 300})
    assert (reply.status_code, reply.json()["error"]) == (422, "session_hash: 300 characters, at most 255")
    with httpx.Client() as client:
        for _ in range(middleware.MAX_UNFETCHED):
            assert (
                client.post(f"{url}/gradio_api/queue/join", json=call | {"session_hash": "greedy"}).status_code == 200
            )
        reply = client.post(f"{url}/gradio_api/queue/join", json=call | {"session_hash": "greedy"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "10") and "answers wait" in reply.json()[
            "error"
        ]
        assert client.post(f"{url}/gradio_api/queue/join", json=call | {"session_hash": "another"}).status_code == 200
    assert "Traceback" not in log.read_text()


def test_unknown_endpoints_are_refused(app, upload):
    url, log = app
    file = {"path": upload, "meta": META}
    for way, body in {
        "call/classifier": {"data": [file, None, 5]},
        "call/v2/classifier": {"image": file},
        "run/classifier": {"data": [file, None, 5]},
        "queue/join": {"data": [file, None, 5], "session_hash": "mine"},
        "queue/join?": {"data": [file, None, 5], "session_hash": "mine", "fn_index": 999},
        "queue/join?x": {"data": [{"path": "/etc/passwd"}], "session_hash": "mine", "fn_index": "0"},
    }.items():
        reply = httpx.post(f"{url}/gradio_api/{way}", json=body)
        assert (reply.status_code, reply.json()["error"]) == (
            404,
            "no such endpoint: /gradio_api/info lists them",
        )
    for body, message in (
        ({}, "image: missing"),
        ({"image": {"path": upload}}, f"image: {NO_FILE}"),
        ({"image": file, "k": 5}, "it takes image, model, top_k, and nothing else"),
    ):
        reply = httpx.post(f"{url}/gradio_api/call/v2/classify", json=body)
        assert (reply.status_code, reply.json()["error"]) == (422, message)
    assert "Traceback" not in log.read_text()


def test_an_answer_can_be_fetched_once(app, upload):
    url, log = app
    call = f"{url}/gradio_api/call/classify"
    event = httpx.post(call, json={"data": [{"path": upload, "meta": META}, None, 5]}).json()["event_id"]
    assert "event: complete" in httpx.get(f"{call}/{event}").text
    for unknown in (f"{call}/{event}", f"{call}/none", f"{url}/gradio_api/queue/data?session_hash=none"):
        reply = httpx.get(unknown)
        assert reply.status_code == 404 and "its answer was fetched before" in reply.json()["error"]
    assert "Traceback" not in log.read_text()


def test_a_deleted_file_is_a_row_with_an_error(app, upload):
    call = f"{app[0]}/gradio_api/call/classify_gallery"
    files = [{"path": path, "meta": META} for path in (upload, str(Path(upload).with_name("b.png")))]
    event = httpx.post(call, json={"data": [files, None, 5]}).json()["event_id"]
    table, _ = json.loads(httpx.get(f"{call}/{event}", timeout=60).text.rpartition("event: complete\ndata: ")[2])
    assert [row[2] for row in table["data"]] == ["ok", "error"] and "No such file" in table["data"][1][-1]


def test_a_client_is_answered(app, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    client, file = Client(app[0], verbose=False), handle_file(tmp_path / "a.png")
    label, about = client.predict(file, top_k=3, api_name="/classify")
    assert len(label["confidences"]) == 3 and about["model"] == "tiny"
    assert len(client.predict([file, file], api_name="/classify_gallery")[0]["data"]) == 2
    assert client.predict(file, api_name="/compare")["label"] == label["label"]
    assert client.predict(api_name="/models")[0]["name"] == "tiny"


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_is_answered_by_list_and_by_name(app, tmp_path):
    url, file = f"{app[0]}/gradio_api", tmp_path / "a.png"
    file.write_bytes(encoded(picture(0)))

    def curl(*arguments: str) -> str:
        return subprocess.run(["curl", "-sS", "-f", *arguments], check=True, capture_output=True, text=True).stdout

    [path] = json.loads(curl("-F", f"files=@{file}", f"{url}/upload"))
    image, json_type = {"path": path, "meta": META}, ("-H", "content-type: application/json")
    for way, body in (
        ("call/classify", {"data": [image, None, 3]}),
        ("call/v2/classify", {"image": image, "top_k": 3}),
    ):
        event = json.loads(curl(*json_type, "-d", json.dumps(body), f"{url}/{way}"))["event_id"]
        label, about = json.loads(curl("-N", f"{url}/call/classify/{event}").rpartition("event: complete\ndata: ")[2])
        assert len(label["confidences"]) == 3 and about["model"] == "tiny"

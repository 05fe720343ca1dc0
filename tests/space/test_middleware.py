"""What the app refuses, and how it stops: a real server, gradio's own client, and plain HTTP."""

import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from space import components, middleware, validation
from space import server as serving
from space.gradio_internals import Sessions
from space.middleware import UPLOAD, Activity, RequestLimits
from space.pictures import Picture
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import running_app


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def app(model, tmp_path_factory):
    """(address, log file) of a running app."""
    folder = tmp_path_factory.mktemp("app")
    with running_app([model], folder) as (url, _):
        yield url, folder / "app.log"


@pytest.fixture
def elsewhere():
    """A web server with a picture; (its address, the paths that were asked for)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(picture(0)))

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png", asked
    server.shutdown()


@pytest.mark.parametrize("endpoint", ["/classify", "/classify_gallery"])
def test_a_url_is_refused_and_not_fetched(app, elsewhere, endpoint):
    address, asked = elsewhere
    image = {"path": address, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(ValidationError, match="given by URL: download it, then send the file"):
        Client(app[0], verbose=False).predict(image if endpoint == "/classify" else [image], api_name=endpoint)
    for path in (address, address.replace("http", "HTTP", 1), f" {address}"):
        file = image | {"path": path}
        reply = httpx.post(
            f"{app[0]}/gradio_api/call{endpoint}", json={"data": [file if endpoint == "/classify" else [file], None, 5]}
        )
        assert reply.status_code == 422 and "given by URL" in reply.json()["error"]
        for data in ([[file], file, file], [{"deep": [[file]]}, [file], 5]):
            assert httpx.post(f"{app[0]}/gradio_api/call{endpoint}", json={"data": data}).status_code == 422
        for way in ("file=", "file/", "proxy="):
            assert httpx.get(f"{app[0]}/gradio_api/{way}{path}", timeout=60).status_code in (400, 403, 404)
    assert not asked


def test_a_file_is_accepted_in_place_of_its_url(app, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    _, about = Client(app[0], verbose=False).predict(handle_file(tmp_path / "a.png"), api_name="/classify")
    assert about["model"] == "tiny"


def test_too_many_files_and_bytes_are_refused_at_once(app):
    url = f"{app[0]}/gradio_api"
    files = [{"path": f"/tmp/{i}.png", "meta": {"_type": "gradio.FileData"}} for i in range(validation.MAX_FILES + 1)]
    many = httpx.post(f"{url}/call/classify_gallery", json={"data": [files, None, 5]})
    assert (many.status_code, many.json()["error"]) == (422, "501 files: at most 500 in a call")
    long = httpx.post(f"{url}/call/classify", content=b" " * (middleware.MAX_CALL_BYTES + 1))
    assert long.status_code == 413 and "at most 1 MB" in long.json()["error"]
    head = "POST /gradio_api/call/classify HTTP/1.1\r\nHost: x\r\n"  # answered before a body is sent
    assert raw(app[0], f"{head}Content-Length: {3_000_000_000}\r\n\r\n") == 413
    assert raw(app[0], f"{head}Transfer-Encoding: chunked\r\n\r\n") == 411


def test_an_upload_has_nothing_but_files(app):
    """gradio would keep other fields in memory."""
    url, log = app
    for path in ("upload", "upload?upload_id=1"):
        reply = httpx.post(f"{url}/gradio_api/{path}", data={"x": "y"}, files={"files": ("a.png", b"x")})
        assert reply.status_code == 400 and "Too many fields" in reply.text
    assert "Traceback" not in log.read_text()


def test_uploads_of_others_can_not_be_guessed(app, tmp_path):
    url, log = app
    uploads = log.parent / "uploads"
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(7)))}).json()
    folder = Path(path).parent
    assert httpx.get(f"{url}/gradio_api/file={path}").status_code == 200  # who has the content knows the address
    assert re.fullmatch("[0-9a-f]{64}", folder.name) and folder.parent == uploads
    _, csv_file = Client(url, verbose=False, download_files=False).predict(
        [handle_file(path)], api_name="/classify_gallery"
    )
    assert re.fullmatch("[0-9a-f]{64}", Path(csv_file["path"]).parent.name)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for guess in (uploads, folder, secret, log, "/etc/passwd", f"{folder}/../../../app.log", ROOT / "app.py"):
        reply = httpx.get(f"{url}/gradio_api/file={quote(str(guess))}")
        assert reply.status_code in (403, 404), guess


def test_unused_routes_of_gradio_are_refused(app, elsewhere):
    """gradio's own routes: they would read any number of bytes, start ffmpeg, change a call that waits, print what they
    got.
    """
    url, log = app
    address, asked = elsewhere
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = f"{url}/gradio_api/call/classify_gallery"
    sent = [httpx.post(call, json={"data": [[image] * n, None, 5]}) for n in (100, 100, 1)]  # the last one waits
    events = [reply.json()["event_id"] for reply in sent]
    changed = {"data": [[image | {"path": address}], None, 5]}
    assert httpx.post(f"{url}/gradio_api/stream/{events[-1]}", json=changed).status_code == 404
    assert [httpx.get(f"{call}/{event}", timeout=300).text.count("event: complete") for event in events] == [1, 1, 1]
    assert not asked
    for route in (
        "process_recording",
        "component_server",
        "vibe-edit",
        "stream/x/close",
        "custom_component/a/client/b/c.js",
        "file/x",
    ):
        assert httpx.post(f"{url}/gradio_api/{route}", files={"video": ("a.mp4", b"a")}).status_code == 404
    assert httpx.post(f"{url}/login", data={"username": "a", "password": "b"}).status_code == 404
    assert httpx.get(f"{url}/gradio_api/custom_component/printed/client/b/c.js").status_code == 404
    assert httpx.get(f"{url}/gradio_api/deep_link?session_hash=mine").status_code == 404
    assert not (log.parent / "uploads" / "deep_links").exists()
    assert (
        httpx.post(f"{url}/gradio_api/run/classify", json={"data": [image, None, 5]}).status_code == 404
    )  # past the queue
    for route in ("cancel", "reset"):
        assert (
            httpx.post(f"{url}/gradio_api/{route}", content=b" " * (middleware.MAX_CALL_BYTES + 1)).status_code == 413
        )
        assert httpx.post(f"{url}/gradio_api/{route}", content=iter([b"{}"])).status_code == 411
    assert "printed" not in log.read_text()


@pytest.mark.parametrize("prefix", ["", "/some/where"])
def test_a_path_may_keep_the_prefix_of_a_proxy(model, tmp_path, prefix):
    """The rules hold for both, and what the page loads is there, whether or not the proxy removes its prefix."""
    with running_app([model], tmp_path, {"GRADIO_ROOT_PATH": "/some/where"}) as (url, _):
        api = f"{url}{prefix}/gradio_api"
        assert httpx.post(f"{api}/stream/x", json={}).status_code == 404
        assert httpx.post(f"{api}/call/classify", json={"data": ["x", None, 5]}).status_code == 422
        assert httpx.get(f"{api}/call/classify/none").status_code == 404
        [path] = httpx.post(f"{api}/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = httpx.post(f"{api}/call/classify", json={"data": [image, None, 5]}, timeout=60).json()["event_id"]
        assert "event: complete" in httpx.get(f"{api}/call/classify/{event}", timeout=60).text
        assert httpx.get(f"{url}{prefix}/health").text == "ok"
        assert httpx.get(f"{url}{prefix}/").status_code == 200
        functions = httpx.get(f"{url}{prefix}/config").json()["dependencies"]
        [number] = [function["id"] for function in functions if function["api_name"] == "classify"]
        joined = {"data": [image, None, 5], "fn_index": number, "session_hash": "mine"}
        assert httpx.post(f"{api}/queue/join", json=joined, timeout=60).status_code == 200
        with httpx.stream("GET", f"{api}/queue/data?session_hash=mine", timeout=60) as events:
            assert any('"process_completed"' in line and '"success":true' in line for line in events.iter_lines())
        assert httpx.get(f"{api}/queue/data?session_hash=none").status_code == 404
        for route in ("deep_link", "file=http://127.0.0.1:9/a.png", "file/a"):
            assert httpx.get(f"{api}/{route}").json()["error"] == "not part of this app"
        call = {"name": "classify", "arguments": {"image": f"{api}/file={quote(path)}"}}
        reply = httpx.post(
            f"{api}/mcp/",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call},
            headers={"accept": "application/json, text/event-stream"},
            timeout=60,
        )
        assert '"isError":false' in reply.text
        static = sorted(file.name for file in serving.STATIC.iterdir() if file.is_file())
        assert static and all(httpx.get(f"{url}{prefix}/page/{name}").status_code == 200 for name in static)
        assert httpx.get(f"{url}{prefix}/page/..%2Fserver.py").status_code == 404
        assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_an_aborted_upload_logs_no_traceback(app):
    url, log = app
    start, head = log.stat().st_size, "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
    with connected(url) as connection:
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        time.sleep(0.5)
    deadline = time.monotonic() + 20
    while "INFO POST upload" not in (gained := log.read_bytes()[start:].decode()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "INFO POST upload 0" in gained and "Traceback" not in gained


def test_a_line_of_the_log_can_not_be_forged(app):
    url, log = app
    assert httpx.post(f"{url}/gradio_api/call/x%0A2026 INFO all is well", json={"data": []}).status_code == 404
    time.sleep(0.2)
    assert "INFO POST call/x?2026?INFO?all?is?well 404" in log.read_text()


def test_names_are_shown_as_they_are():
    name = "<img src=x onerror=alert(1)>.png"
    shown = components.failures([Picture(name, error="<b>broken")])
    assert "<img" not in shown and "<b>broken" not in shown and "&lt;img src=x onerror=alert(1)&gt;.png" in shown


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(url: str, request: str) -> int:
    """The status that a request's head is answered with, before any body is sent."""
    with connected(url) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"data": "x"}', b'{"data": [{"path": 7}, null, 5]}', b"\xff"]
)
def test_malformed_calls_are_refused(app, body):
    reply = httpx.post(f"{app[0]}/gradio_api/call/classify", content=body, headers={"content-type": "application/json"})
    if reply.status_code == 200:  # accepted as a call; it then has to fail as one
        event = reply.json()["event_id"]
        assert "event: error" in httpx.get(f"{app[0]}/gradio_api/call/classify/{event}").text
    else:
        assert 400 <= reply.status_code < 500


@pytest.mark.slow
def test_a_full_queue_refuses_and_accepted_calls_are_answered(app):
    url = f"{app[0]}/gradio_api"
    [path] = httpx.post(f"{url}/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
    image = {"path": path, "meta": {"_type": "gradio.FileData"}}

    def result(event: str) -> str:
        return httpx.get(f"{url}/call/classify_gallery/{event}", timeout=300).text

    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(16) as threads:

        def ask(n_images: int) -> httpx.Response:
            return client.post(f"{url}/call/classify_gallery", json={"data": [[image] * n_images, None, 5]})

        replies = list(map(ask, [500] * serving.CONCURRENCY))  # which keep it busy while the others come in
        replies += threads.map(ask, [1] * (serving.MAX_WAITING + 50))
    accepted = [reply.json()["event_id"] for reply in replies if reply.status_code == 200]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(accepted) >= serving.MAX_WAITING and refused
    assert {(reply.status_code, reply.headers["retry-after"]) for reply in refused} == {(503, "10")}
    with ThreadPoolExecutor(32) as threads:
        assert all("event: complete" in text for text in threads.map(result, accepted))


def test_the_log_has_a_line_per_request_without_names(app, tmp_path):
    url, log = app
    (tmp_path / "secret name.png").write_bytes(encoded(picture(0)))
    Client(url, verbose=False).predict(handle_file(tmp_path / "secret name.png"), api_name="/classify")
    time.sleep(0.2)
    lines = log.read_text().splitlines()
    assert any("INFO POST upload 200" in line for line in lines)
    assert any("INFO POST queue/join 200" in line or "INFO GET queue/data 200" in line for line in lines)
    assert not any("secret" in line or "127.0.0.1" in line for line in lines if " INFO " in line)


def test_sigterm_answers_accepted_calls_and_refuses_new_ones(model, tmp_path):
    with running_app([model], tmp_path) as (url, process):
        [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = f"{url}/gradio_api/call/classify_gallery"
        event = httpx.post(call, json={"data": [[image] * 500, None, 5]}).json()["event_id"]
        process.send_signal(signal.SIGTERM)
        deadline, late = time.monotonic() + 20, None
        while time.monotonic() < deadline and (late is None or late.status_code == 200):
            late = httpx.post(call, json={"data": [[image], None, 5]})
        assert late.status_code == 503 and "stops" in late.json()["error"]
        text = httpx.get(f"{call}/{event}", timeout=60).text
        assert "event: complete" in text
        rows, _ = json.loads(text.rpartition("data: ")[2])
        assert len(rows["data"]) == 500 and {row[2] for row in rows["data"]} == {"ok"}
        assert process.wait(timeout=serving.STOP_WITHIN_S + 20) == 0
        assert "Traceback" not in (tmp_path / "app.log").read_text()


@pytest.mark.parametrize("status", [200, 413])
def test_the_files_of_an_upload_are_reported(tmp_path, status):
    """Around an app that answers an upload as gradio does, with the paths of the files."""
    reported = []

    async def upload(_):
        return JSONResponse(["/uploads/a.png", "/uploads/b.png"], status)

    app = Starlette(routes=[Route(UPLOAD, upload, methods=["POST"])])
    limited = RequestLimits(app, Activity(), tmp_path, {}, Sessions(gr.Blocks()), reported.extend)
    assert TestClient(limited).post(UPLOAD, content=b"files").status_code == status
    assert reported == (["/uploads/a.png", "/uploads/b.png"] if status == 200 else [])

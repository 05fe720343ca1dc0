"""The app as a user starts it: its API by gradio_client and MCP, its errors, and how it stops."""

import ast
import asyncio
import base64
import csv
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from classifier import load_predictor
from classifier.images.limits import MAX_BYTES
from classifier.images.workers import decode
from space import cleanup, middleware
from tests.helpers.evaluations import write_evaluation
from tests.helpers.models import LABELS, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import THRESHOLD, running_app


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two random models: `first` knows a threshold and has an evaluation, `second` has neither."""
    folder = tmp_path_factory.mktemp("models")
    first = save_tiny_vit(folder / "first", ood={"threshold": THRESHOLD})
    write_evaluation(first, LABELS, accuracy=0.9, accuracy_ci95=[0.89, 0.91])
    return [first, save_tiny_vit(folder / "second", seed=1)]


@pytest.fixture(scope="module")
def url(models, tmp_path_factory) -> Iterator[str]:
    with running_app(models, tmp_path_factory.mktemp("app")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "good.png").write_bytes(encoded(picture(0)))
    (folder / "Zwei Bäume.jpg").write_bytes(encoded(picture(1, (300, 200)), "JPEG"))
    (folder / "broken.jpg").write_bytes(encoded(picture(2), "JPEG")[:200])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the picture lies on its side
    picture(3).save(folder / "rotated.jpg", exif=exif, quality=95)
    return {path.stem: path for path in folder.iterdir()}


def table_rows(table: dict) -> list[dict]:
    return [dict(zip(table["headers"], row, strict=True)) for row in table["data"]]


def test_classify_agrees_with_the_predictor(client, models, files):
    for path in (files["good"], files["rotated"], files["Zwei Bäume"]):
        label, about = client.predict(image=handle_file(path), model="second", top_k=10, api_name="/classify")
        expected = load_predictor(models[1])(path, top_k=10)
        assert label["label"] == expected[0]["label"]
        assert [entry["label"] for entry in label["confidences"]] == [entry["label"] for entry in expected]
        confidences = [entry["confidence"] for entry in label["confidences"]]
        assert confidences == pytest.approx([entry["score"] for entry in expected], abs=1e-4)
        assert about == {"model": "second", "revision": "local", "known": None}


def test_classify_has_defaults(client, models, files):
    label, about = client.predict(handle_file(files["good"]), api_name="/classify")
    predictor = load_predictor(models[0])
    assert [entry["label"] for entry in label["confidences"]] == [entry["label"] for entry in predictor(files["good"])]
    [known] = predictor.predict_with_ood([files["good"]])[1]
    assert about == {"model": "first", "revision": "local", "known": known}


def test_a_photo_that_lies_on_its_side_is_turned(client, models, files):
    label, _ = client.predict(handle_file(files["rotated"]), top_k=10, api_name="/classify")
    served = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
    upright = decode(files["rotated"])
    assert upright.size == (60, 90)
    predictor = load_predictor(models[0])
    expected, lying = predictor.probabilities([upright, upright.rotate(90, expand=True)])
    assert [served[name] for name in LABELS] == pytest.approx(expected, abs=1e-4)
    assert np.abs(expected - lying).max() > 0.01, "the pictures have to differ for this test to mean anything"


def test_gallery_classifies_what_it_can_and_names_the_rest(client, models, files):
    order = ["good", "broken", "rotated", "Zwei Bäume", "good"]
    table, csv_file = client.predict(
        [handle_file(files[name]) for name in order], model="first", top_k=3, api_name="/classify_gallery"
    )
    assert table["headers"] == [
        *("index", "file", "status", "known"),
        *("label_1", "probability_1", "label_2", "probability_2", "label_3", "probability_3", "error"),
    ]
    rows = table_rows(table)
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["file"] for row in rows] == [files[name].name for name in order]
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "ok", "ok"]
    assert rows[1]["error"] and rows[1]["label_1"] is None and rows[1]["known"] is None
    predictor = load_predictor(models[0])
    for row, name in zip(rows, order, strict=True):
        if row["status"] == "ok":
            expected = predictor(files[name], top_k=3)
            assert [row[f"label_{k}"] for k in (1, 2, 3)] == [entry["label"] for entry in expected]
            probabilities = [row[f"probability_{k}"] for k in (1, 2, 3)]
            assert probabilities == pytest.approx([entry["score"] for entry in expected], abs=1e-4)
            assert row["known"] is predictor.predict_with_ood([files[name]])[1][0] and row["error"] == ""
    assert {row["known"] for row in rows} == {True, False, None}

    with Path(csv_file).open(newline="", encoding="utf-8-sig") as file:
        header, *lines = csv.reader(file)
    assert header == table["headers"]
    assert lines == [["" if cell is None else str(cell) for cell in row] for row in table["data"]]


def test_gallery_of_unreadable_files_only(client, files):
    table, _ = client.predict([handle_file(files["broken"])] * 2, api_name="/classify_gallery")
    assert [row["status"] for row in table_rows(table)] == ["error", "error"]


def test_models_are_listed_the_default_first(client, models):
    first, second = client.predict(api_name="/models")
    parameters = load_predictor(models[0]).n_parameters
    assert first == {
        "name": "first",
        "revision": "local",
        "parameters": parameters,
        "accuracy": 0.9,
        "accuracy_ci95": [0.89, 0.91],
        "labels": LABELS,
    }
    assert second == first | {"name": "second", "accuracy": None, "accuracy_ci95": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "no files: send at least one image"),
        ({"model": "third"}, "no model 'third': choose one of first, second"),
        ({"top_k": 0}, "top_k is 0: it has to be a whole number from 1 to 10"),
        ({"top_k": 11}, "top_k is 11: .* from 1 to 10"),
        ({"top_k": 2.5}, "top_k is 2.5: .* from 1 to 10"),
    ],
)
def test_gallery_says_what_is_wrong_with_the_arguments(client, files, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(**{"files": [handle_file(files["good"])]} | arguments, api_name="/classify_gallery")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "third"}, "no model 'third': choose one of first, second"),
        ({"top_k": 0}, "top_k is 0: it has to be a whole number from 1 to 10"),
        ({"image": None}, "no image: send one file"),
    ],
)
def test_classify_says_what_is_wrong_with_the_arguments(client, files, arguments, message):
    with pytest.raises(AppError, match=message):
        client.predict(**{"image": handle_file(files["good"])} | arguments, api_name="/classify")


def test_classify_names_the_file_that_it_can_not_read(client, files):
    with pytest.raises(AppError, match=r"^broken\.jpg: "):
        client.predict(handle_file(files["broken"]), api_name="/classify")


def test_only_the_api_is_exposed(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {
        name: [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        for name, endpoint in endpoints.items()
    } == {
        "/classify": ["image", "model", "top_k"],
        "/classify_gallery": ["files", "model", "top_k"],
        "/compare": ["image", "top_k"],
        "/models": [],
    }


def test_a_file_over_the_limit_is_refused(url):
    reply = httpx.post(f"{url}/gradio_api/upload", files={"files": ("large.png", bytes(MAX_BYTES + 1))})
    assert reply.status_code == 413


def test_files_of_the_server_can_not_be_read(url, files):
    image = {"path": str(files["good"]), "meta": {"_type": "gradio.FileData"}}
    reply = httpx.post(f"{url}/gradio_api/call/classify", json={"data": [image, "first", 5]})
    assert reply.status_code == 422 and "not an upload" in reply.json()["error"]


def test_idle_connections_stay_open_and_sigterm_stops_the_app(models, tmp_path):
    with running_app(models[:1], tmp_path) as (url, app):
        address = httpx.URL(url)
        connection = http.client.HTTPConnection(address.host, address.port)
        for idle in (6, 0):  # seconds; uvicorn's own limit is 5
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"ok"
            connection.auto_open = 0  # the second request comes over the same connection, or fails
            time.sleep(idle)
        client = Client(url, verbose=False)  # holds a connection open, as a browser does
        assert client.predict(api_name="/models")
        app.send_signal(signal.SIGTERM)  # while the first connection is open, too
        assert app.wait(timeout=20) == 0
        assert "Traceback" not in (tmp_path / "app.log").read_text()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")


def test_a_missing_model_is_an_error_of_one_line(tmp_path):
    app = subprocess.run(
        [sys.executable, ROOT / "app.py"],
        cwd=tmp_path,
        env=os.environ | {"MODELS": "runs/no such model"},
        capture_output=True,
        text=True,
    )
    assert app.returncode == 2
    assert app.stderr.count("\n") == 1 and "no model folder runs/no such model" in app.stderr


def test_importing_app_launches_nothing_and_sorts_the_embedded_models(models, tmp_path, monkeypatch):
    import app

    monkeypatch.delenv("MODELS", raising=False)
    monkeypatch.setattr(app, "EMBEDDED", tmp_path)
    for name, accuracy in (("a", 0.8), ("b", None), ("c", 0.9)):
        folder = save_tiny_vit(tmp_path / name)
        if accuracy:
            write_evaluation(folder, LABELS, accuracy=accuracy)
    (tmp_path / "notes").mkdir()
    predictors, notices = app.load_predictors()
    assert list(predictors) == ["c", "a", "b"] and notices == []


def test_compare_gives_a_label_a_model(client, models, files):
    labels = client.predict(handle_file(files["good"]), top_k=3, api_name="/compare")
    for folder, label in zip(models, labels, strict=True):
        expected = load_predictor(folder)(files["good"], top_k=3)
        assert [entry["label"] for entry in label["confidences"]] == [entry["label"] for entry in expected]
        assert label["label"] == expected[0]["label"]
    with pytest.raises(AppError, match="no image: send one file"):
        client.predict(None, api_name="/compare")


def test_a_submitted_job_ends_with_the_table(client, files):
    job = client.submit([handle_file(files["good"])] * 3, api_name="/classify_gallery")
    table, _ = job.result()
    assert len(table["data"]) == 3 and job.done()


def test_the_schema_is_the_committed_one(url):
    schema = httpx.get(f"{url}/gradio_api/info").json()["named_endpoints"]
    for endpoint in schema.values():
        del endpoint["code_snippets"]  # which hold this server's address
    committed = json.loads((ROOT / "tests/api.json").read_text())
    assert schema == committed, "scripts rely on it: write api.json anew only for a change that is meant"


def call_tools(server: str | list, *calls: tuple[str, dict], headers: dict | None = None) -> tuple[list, list]:
    """The tools of an app (its URL) or of a command (its words), and the results of some calls, as an MCP client gets
    them.
    """
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    async def ask() -> tuple[list, list]:
        if isinstance(server, str):
            http = httpx.AsyncClient(headers=headers, timeout=60)
            streams = streamable_http_client(f"{server}/gradio_api/mcp/", http_client=http)
        else:
            streams = stdio_client(
                StdioServerParameters(command=str(server[0]), args=[str(word) for word in server[1:]])
            )
        async with streams as (read, write, *_), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(ask())


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_tools_by_mcp(url, models, files):
    image = data_url(files["good"])
    calls = (("classify", {"image": image, "top_k": 2}), ("compare", {"image": image}), ("models", {}))
    tools, (one, both, listed) = call_tools(url, *calls)
    assert [tool.name for tool in tools] == ["classify", "compare", "classify_gallery", "models"]
    assert all(tool.description for tool in tools)
    assert all(entry["description"] for tool in tools for entry in tool.inputSchema["properties"].values())
    top = load_predictor(models[0])(files["good"], top_k=1)[0]["label"]
    for result in (one, both):
        assert not result.isError and top in result.content[0].text
    assert "first" in listed.content[0].text


def test_an_agent_uploads_files_with_the_tool_of_gradio(url, models, files):
    """As the descriptions of the app's tools say: with upload_file_to_gradio, whose URL it passes on."""
    names = ("good", "Zwei Bäume")
    command = [Path(sys.executable).with_name("gradio"), "upload-mcp", url, files["good"].parent]
    tools, results = call_tools(command, *[("upload_file_to_gradio", {"file": str(files[name])}) for name in names])
    addresses = [result.content[0].text for result in results]
    assert [tool.name for tool in tools] == ["upload_file_to_gradio"]
    assert all(address.startswith(f"{url}/gradio_api/file=") for address in addresses)
    relative = [address.removeprefix(url) for address in addresses]
    calls = [
        ("classify", {"image": addresses[0]}),
        ("classify", {"image": relative[0]}),
        ("compare", {"image": addresses[0]}),
        ("classify_gallery", {"files": [addresses[0], relative[1], data_url(files["good"])]}),
    ]
    tools, (one, same, both, gallery) = call_tools(url, *calls)
    predictor = load_predictor(models[0])
    top, other = (predictor(files[name], top_k=1)[0]["label"] for name in names)
    for result in (one, same, both):
        assert not result.isError and top in result.content[0].text
    table, csv_file = ast.literal_eval(gallery.content[0].text)
    rows = table["data"]
    assert [row[:3] + row[4:5] for row in rows[:2]] == [[0, "good.png", "ok", top], [1, "Zwei Bäume.jpg", "ok", other]]
    assert rows[2][2] == "ok" and httpx.get(f"{url}/gradio_api/file={csv_file['path']}").text.count("\n") == 4
    [schema] = [tool.inputSchema["properties"]["files"] for tool in tools if tool.name == "classify_gallery"]
    assert (schema["type"], schema["items"]["type"]) == ("array", "string")
    assert "$ref" not in json.dumps([tool.inputSchema for tool in tools])  # to what is not there


def test_an_agent_behind_a_proxy_passes_the_public_url_of_an_upload(url, files):
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", files["good"].read_bytes())}).json()
    address = f"https://example.org/some/where/gradio_api/file={quote(path)}"
    _, [taken] = call_tools(url, ("classify", {"image": address}), headers={"x-forwarded-host": "example.org"})
    assert not taken.isError
    _, refused = call_tools(
        url,
        ("classify", {"image": address}),
        ("classify_gallery", {"files": [address]}),
        ("classify_gallery", {"files": [{"path": str(files["good"]), "meta": {"_type": "gradio.FileData"}}]}),
    )
    assert all(result.isError for result in refused)
    assert all("upload_file_to_gradio" in result.content[0].text for result in refused[:2])


def test_limits_apply_to_mcp(url, files):
    address = f"{url}/gradio_api/file={files['good']}"
    _, results = call_tools(url, ("classify", {"image": address}), ("compare", {"image": address}))
    assert all(result.isError and "given by URL" in result.content[0].text for result in results)
    mcp = f"{url}/gradio_api/mcp/"
    assert httpx.post(mcp, content=b" " * (middleware.MAX_MCP_BYTES + 1)).status_code == 413
    server = {"path": str(files["good"]), "meta": {"_type": "gradio.FileData"}}
    images = (address.upper(), f" {address}", "/etc/passwd", server, "data:image/png;base64,AAAA")
    calls = [("classify", {"image": image}) for image in images]
    _, results = call_tools(url, *calls)
    assert all(result.isError and "root:" not in result.content[0].text for result in results)
    assert "not an image" in results[-1].content[0].text


def test_old_uploads_are_deleted_and_nothing_else(tmp_path):
    a, b, part = tmp_path / ("a" * 64), tmp_path / ("b" * 64), tmp_path / "tmp0a_bcdef"
    others = [tmp_path / "notes.txt", tmp_path / "photos" / "mine.jpg", tmp_path / "tmp1a_bcdef" / "mine.jpg"]
    for path in (a / "old.jpg", b / "new.jpg", b / "deep" / "old.jpg", part, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    cleanup.delete_old_files(tmp_path, 60)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 7
    time.sleep(0.05)
    (b / "new.jpg").write_bytes(b"changed")
    cleanup.delete_old_files(tmp_path, 0.03)
    time.sleep(0.05)
    (b / "new.jpg").write_bytes(b"changed again")
    cleanup.delete_old_files(tmp_path, 0.03)  # a folder changes when what is in it goes
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {b / "new.jpg", *others}
    assert not a.exists() and not (b / "deep").exists()

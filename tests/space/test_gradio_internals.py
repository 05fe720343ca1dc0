"""The parts of gradio that `space.gradio_internals` relies on without a promise are what it takes them for."""

import ast
import contextlib
import http.client
import json
import re
import time
from collections.abc import Iterator

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file

from space import gradio_internals
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture


def test_the_version_of_gradio_is_the_one_that_was_read():
    assert gr.__version__ == gradio_internals.WRITTEN_FOR, (
        f"gradio is {gr.__version__}, and space/gradio_internals.py was written for {gradio_internals.WRITTEN_FOR}: "
        "compare each line there that begins with 'Check' with the new source, run this file, then set WRITTEN_FOR"
    )


def test_no_other_module_uses_private_parts_of_gradio():
    """Neither attributes with an underscore, but for those of self, nor modules that gradio does not document."""
    found = []
    for path in sorted((ROOT / "space").glob("*.py")):
        if path.name == "gradio_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ""
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
                name = "" if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else node.attr
            elif isinstance(node, ast.Attribute) and node.attr in ("state_holder", "fns", "blocks", "temp_file_sets"):
                name = node.attr
            elif isinstance(node, ast.Constant) and node.value in ("_data", "_queue"):
                name = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("gradio.", "gradio_client.")):
                name = str(node.module)
            elif isinstance(node, ast.Import):
                name = next((alias.name for alias in node.names if alias.name.startswith("gradio.")), "")
            if name:
                found.append(f"{path.name}:{node.lineno}: {name}")
    assert not found, "move these into space/gradio_internals.py: " + ", ".join(found)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[tuple[gr.Blocks, str, list]]:
    """An app with a public function of files, and events; (blocks, address, data of its events)."""
    asked: list[dict] = []

    def describe(image: dict, files: list, k: int = 5) -> str:
        """Describes files.

        Args:
            image: one file.
            files: many.
            k: a number.
        """
        return f"{image['orig_name']} {len(files)} {k}"

    def note(event: gr.EventData) -> None:
        asked.append(gradio_internals.event_data(event))

    example = tmp_path_factory.mktemp("example") / "example.png"
    example.write_bytes(encoded(picture(0)))
    with gr.Blocks(analytics_enabled=False) as blocks:
        image, files, k, text = gr.File(), gr.File(file_count="multiple"), gr.Number(5), gr.Textbox()
        gr.Image(str(example))
        button = gr.Button()
        gr.on([], describe, [image, files, k], text, api_name="describe", preprocess=False)
        button.click(note, None, None, api_visibility="private", api_name="note")
    blocks.queue(api_open=False)
    gradio_internals.refuse_form_fields()
    gradio_internals.serve_lists_of_files_by_mcp()
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, mcp_server=True)
    yield blocks, url.rstrip("/"), asked
    blocks.close()


def test_uploads_are_in_the_upload_folder(demo):
    [path] = httpx.post(f"{demo[1]}/gradio_api/upload", files={"files": ("a.png", b"a")}).json()
    assert path.startswith(str(gradio_internals.upload_folder()))


def test_a_form_field_is_refused_before_it_is_kept(demo):
    upload, file = f"{demo[1]}/gradio_api/upload", {"files": ("a.png", b"a")}
    assert httpx.post(upload, data={"field": "x" * 1_000_000}, files=file).status_code == 400
    assert httpx.post(upload, files=file).status_code == 200


def test_a_connection_stays_open_as_long_as_it_is_told_to(demo):
    blocks, url, _ = demo
    address = httpx.URL(url)
    uvicorns_own = blocks.server.config.timeout_keep_alive
    try:
        for seconds, is_open in [(1, False), (10, True)]:
            gradio_internals.keep_connections_open(blocks, seconds)
            with contextlib.closing(http.client.HTTPConnection(address.host, address.port)) as connection:
                connection.request("GET", "/config")
                connection.getresponse().read()
                connection.auto_open = 0  # no new connection for the second request
                time.sleep(2)
                connection.request("GET", "/config")
                if is_open:
                    assert connection.getresponse().status == 200
                else:
                    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                        connection.getresponse()
    finally:
        gradio_internals.keep_connections_open(blocks, uvicorns_own)


def test_a_tool_takes_lists_of_files(demo):
    _, url, _ = demo
    accepted = {"accept": "application/json, text/event-stream"}

    def ask(method: str, **parameters: object) -> dict:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        reply = httpx.post(f"{url}/gradio_api/mcp/", json=request, headers=accepted, timeout=60).text
        return json.loads(reply.partition("data: ")[2])["result"]

    [tool] = ask("tools/list")["tools"]
    assert "$ref" not in json.dumps(tool) and tool["inputSchema"]["properties"]["files"]["items"]["type"] == "string"
    image = "data:image/png;base64,AAAA"
    result = ask("tools/call", name="describe", arguments={"image": image, "files": [image, image], "k": 7})
    assert result["content"][0]["text"].endswith(" 2 7")


@pytest.mark.parametrize(("sent", "got"), [({"index": 3}, {"index": 3}), (7, {}), (None, {}), ("index", {})])
def test_the_data_of_an_event_is_an_object_or_empty(demo, sent, got):
    blocks, url, asked = demo
    [number] = [number for number, function in blocks.fns.items() if function.api_name == "note"]
    call = {"fn_index": number, "data": [], "event_data": sent, "session_hash": "events"}
    httpx.post(f"{url}/gradio_api/queue/join", json=call).raise_for_status()
    assert "process_completed" in httpx.get(f"{url}/gradio_api/queue/data?session_hash=events", timeout=60).text
    assert asked[-1] == got


def test_functions_have_the_names_and_kinds_of_their_arguments(demo):
    functions = gradio_internals.functions(demo[0])
    assert [(each.name, each.files, each.is_required) for each in functions["describe"]] == [
        ("image", "one", True),
        ("files", "many", True),
        ("k", "", False),
    ]
    assert len(functions["note"]) == 0 and functions["note"] in [functions[number] for number in demo[0].fns]


def test_files_of_components_are_permanent(demo):
    [path] = [path for path in gradio_internals.permanent_files(demo[0]) if path.endswith("example.png")]
    assert path.startswith(str(gradio_internals.upload_folder()))


def test_a_call_is_known_until_its_answer_is_forgotten(demo):
    blocks, url, _ = demo
    sessions, call = gradio_internals.Sessions(blocks), f"{url}/gradio_api/call/describe"
    [path] = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))}).json()
    image = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(call, json={"data": [image, [image], 5]}).json()["event_id"]
    assert event in sessions and event in sessions.unfetched_calls() and sessions.n_unfetched(event) == 1
    assert "event: complete" in httpx.get(f"{call}/{event}", timeout=60).text
    assert event in sessions and event not in sessions.unfetched_calls() and sessions.n_unfetched(event) == 0
    queue, states = blocks._queue, blocks.state_holder
    kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, states.time_last_used)
    assert all(event in each for each in kept) and event in states.session_data
    sessions.forget(event)
    assert not any(event in each for each in kept) and event not in states.session_data
    assert queue.pending_messages_per_session.max_size == gradio_internals.MAX_SESSIONS_WITH_MESSAGES


def test_idle_sessions_are_forgotten():
    def count(seen: list) -> int:
        seen.append("once more")
        return len(seen)

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.on([], count, gr.State([]), gr.Number(), api_name="count")
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    sessions, client = gradio_internals.Sessions(blocks), Client(url, verbose=False)
    found = [client.predict(api_name="/count") for _ in range(2)]
    sessions.forget_idle(60)
    found.append(client.predict(api_name="/count"))
    sessions.forget_idle(0)
    found.append(client.predict(api_name="/count"))
    assert found == [1, 2, 3, 1]

    # A page that is closed while an answer is on its way: gradio drops its messages, and keeps the id of the call
    queue = blocks._queue
    queue.pending_event_ids_session["closed"], queue.pending_event_ids_session["open"] = {"a"}, {"b"}
    assert not any(sessions.unfetched_calls())
    queue.pending_messages_per_session["open"] = None
    assert list(sessions.unfetched_calls()) == ["b"]
    sessions.forget_idle(60)
    assert "closed" in queue.pending_event_ids_session  # it may be new
    sessions.forget_idle(60)
    blocks.close()
    assert not queue.pending_event_ids_session.keys() & {"closed", "open"} and not any(sessions.unfetched_calls())


def test_a_client_is_answered(demo, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    file = handle_file(tmp_path / "a.png")
    assert Client(demo[1], verbose=False).predict(file, [file, file], api_name="/describe") == "a.png 2 5"

"""Every use of a part of gradio that its documentation does not describe.

When gradio is upgraded, tests/space/test_gradio_internals.py fails until somebody has read the "Check" lines below
against the new source and set WRITTEN_FOR; the other tests of that file show each use on a real `gr.Blocks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import gradio as gr
from gradio import mcp, route_utils
from gradio.utils import get_upload_folder

WRITTEN_FOR = "6.31.0"
MAX_SESSIONS_WITH_MESSAGES = 20_000  # an empty queue of messages takes 1 kB


def upload_folder() -> Path:
    """The folder of uploads and of all files that gradio serves.

    gradio documents the variable GRADIO_TEMP_DIR, but not its default. Check: `gradio.utils.get_upload_folder`.
    """
    return Path(get_upload_folder())


def event_data(event: gr.EventData) -> dict[str, Any]:
    """What the browser sent with an event; {} for anything but an object, as a script may send.

    The public attribute access `event.name` raises TypeError in that case. Check: `EventData._data`.
    """
    return event._data if isinstance(event._data, dict) else {}


class ToolServer(mcp.GradioMCPServer):
    """gradio's MCP server with tools that take lists of files, and URLs relative to that of the server.

    Check: `App.setup_mcp_server` in gradio/routes.py makes a `gradio.mcp.GradioMCPServer`. Its `get_input_schema` gives
    a list of files as an array that refers to "#/$defs/FileData", where nothing is, which clients can't resolve; its
    `convert_strings_to_filedata` knows no items of lists, and no URLs but absolute ones in lower case.
    """

    def get_input_schema(self, *args: Any, **names: Any) -> tuple[dict[str, Any], list[list[str | int]]]:
        """The schema of a tool, and the positions in it that are files."""
        schema, positions = super().get_input_schema(*args, **names)
        for argument in schema["properties"].values():
            if argument.get("type") == "array":
                argument.pop("$defs", None)
                argument["items"].pop("$ref", None)
        return schema, positions

    def convert_strings_to_filedata(self, value: dict[str, Any], filedata_positions: list[list[str | int]]) -> Any:
        """The arguments of a call, by name, with gradio's FileData in place of the URLs of files."""
        request: Any = self.mcp_server.request_context.request

        def convert(text: str) -> Any:
            url = text if text.startswith("data:") else urljoin(str(request.url), text)
            return super(ToolServer, self).convert_strings_to_filedata({"file": url}, [["file"]])["file"]

        names = {position[0] for position in filedata_positions}
        return {
            name: argument
            if name not in names or argument is None
            else [convert(text) for text in argument]
            if isinstance(argument, list)
            else convert(argument)
            for name, argument in value.items()
        }


def serve_lists_of_files_by_mcp() -> None:
    """Makes gradio use `ToolServer`; it has no setting for it."""
    mcp.GradioMCPServer = ToolServer  # type: ignore[misc]


def refuse_form_fields() -> None:
    """Makes gradio answer 400 to an upload form with a field that is not a file.

    gradio keeps such a field in memory whatever its size, and has no setting for it: 300 MB took 860 MB.
    Check: `upload_fn` in gradio/route_utils.py makes a `GradioMultiPartParser`, which counts fields up to `max_fields`.
    """

    class FilesOnlyParser(gradio_parser):
        def __init__(self, *args: Any, **settings: Any):
            super().__init__(*args, **settings | {"max_fields": 0})

    route_utils.GradioMultiPartParser = FilesOnlyParser  # type: ignore[misc]


gradio_parser = route_utils.GradioMultiPartParser


def keep_connections_open(demo: gr.Blocks, seconds: int) -> None:
    """Makes a launched app close a connection only when nothing came over it for that many seconds.

    uvicorn's default is 5 s, and httpx, with which Python clients call gradio, reuses a connection for just as long: a
    request that is sent while the server closes its connection is lost. gradio has no setting for it.
    Check: `launch` sets `demo.server`, a `uvicorn.Server` whose `config` uvicorn reads at each new connection.
    """
    demo.server.config.timeout_keep_alive = seconds


def permanent_files(demo: gr.Blocks) -> set[str]:
    """Paths of files that belong to components, such as examples, and are not to be deleted with old uploads.

    Check: `delete_files_created_by_app` in gradio/route_utils.py reads `keep_in_cache` of each of `demo.blocks`.
    """
    return {path for block in demo.blocks.values() for path in getattr(block, "keep_in_cache", ())}


@dataclass(frozen=True)
class Argument:
    """An argument of a function that can be called: the name that the API documents, and what it takes."""

    name: str
    files: str  # "one" file, "many" (a list), or "" for neither
    is_required: bool  # whether there is no default


Functions = Mapping[str | int, Sequence[Argument]]


def functions(demo: gr.Blocks) -> Functions:
    """The arguments of every function that a request can call, by name and by number.

    gradio's API information lists only the public endpoints.

    Check: `demo.fns` has `BlockFunction`s by number, each with `fn`, `inputs` (components) and `api_name`.
    """
    endpoints: dict[str, Any] = {**demo.get_api_info()["named_endpoints"]}
    found: dict[str | int, Sequence[Argument]] = {}
    for number, function in demo.fns.items():
        if function.fn is None:  # an event that only the browser handles
            continue
        described = endpoints.get(f"/{function.api_name}", {}).get("parameters", [{}] * len(function.inputs))
        found[number] = [
            Argument(
                parameter.get("parameter_name", f"data[{i}]"),
                "" if not isinstance(block, gr.File) else "one" if block.file_count == "single" else "many",
                not parameter.get("parameter_has_default", False),
            )
            for i, (block, parameter) in enumerate(zip(function.inputs, described, strict=True))
        ]
        if function.api_name:
            found[function.api_name] = found[number]
    return found


class Sessions:
    """What gradio keeps for each session: a page, a gradio_client, or a single call that came without a session.

    A call without a session has its own event id as session id. gradio keeps the names of all sessions for good, and
    answers that nobody fetches; it has no public way to count or release them.

    Check in gradio/queueing.py: `pending_messages_per_session` has the messages of each session that were not fetched
    yet, and drops the oldest session above its `max_size`; `pending_event_ids_session` has the ids of each session's
    calls until their answers were fetched; `event_ids_to_events` has the calls that wait or run. In
    gradio/state_holder.py: `session_data` and `time_last_used` have the `gr.State` values of each session.
    """

    def __init__(self, demo: gr.Blocks):
        self._demo = demo
        self._idle: set[str] = set()
        # By default gradio drops the oldest of 2000 sessions, even if it is active
        demo._queue.pending_messages_per_session.max_size = MAX_SESSIONS_WITH_MESSAGES

    def __contains__(self, session: str) -> bool:
        return session in self._demo._queue.pending_messages_per_session

    def unfetched_calls(self) -> Iterator[str]:
        """Event ids of calls whose answers can still be fetched; those of a page that was closed can not."""
        for session, calls in list(self._demo._queue.pending_event_ids_session.items()):
            if session in self:
                yield from list(calls)

    def n_unfetched(self, session: str) -> int:
        """How many calls of a session wait for their answers to be fetched."""
        return len(self._demo._queue.pending_event_ids_session.get(session, ()))

    def forget(self, session: str) -> None:
        """Releases all that is kept for a session."""
        queue, states = self._demo._queue, self._demo.state_holder
        for kept in (
            states.session_data,
            states.time_last_used,
            queue.pending_messages_per_session,
            queue.pending_event_ids_session,
        ):
            kept.pop(session, None)

    def forget_idle(self, seconds: float) -> None:
        """Releases sessions that made no call for so long. Called at regular intervals."""
        queue, last_used = self._demo._queue, list(self._demo.state_holder.time_last_used.items())
        oldest = datetime.now() - timedelta(seconds=seconds)
        for session, used in last_used:
            if used < oldest:
                self.forget(session)
        # Sessions without a state, because they are new or because gradio dropped it when there were too many
        idle = {*list(queue.pending_event_ids_session), *list(queue.pending_messages_per_session)}
        idle -= {session for session, _ in last_used}
        idle -= {event.session_hash for event in list(queue.event_ids_to_events.values())}
        for session in idle & self._idle:  # found idle twice in a row, because a new session may not have its state yet
            self.forget(session)
        self._idle = idle

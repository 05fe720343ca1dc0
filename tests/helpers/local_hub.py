"""A Hub on loopback: the Hub's HTTP API, spoken well enough for its unmodified clients, and able to fail on demand.

    python -m tests.helpers.local_hub FOLDER    # prints the settings to paste into another shell; serves until Ctrl-C

    with LocalHub(tmp_path / "hub", seed="folder") as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("user/model")
        hub.fail("/resolve/", method="GET", status=503, times=2)

Models, datasets and Spaces have commits, branches and tags; large files go the LFS way and are held to their sha256;
tokens are checked. What the Hub has and this doesn't: Xet (clients need HF_HUB_DISABLE_XET=1), uploads in parts (for
LFS files above 5 GB), a CDN that downloads are redirected to, pull requests, gated repositories, search, organisations,
.gitignore, deleting and moving repositories, running Spaces. Commits are kept in memory, and end with the process.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import math
import os
import re
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from classifier import errors

USER = "user"  # both tokens are this user's, who may write in no other namespace
KINDS = ("models", "datasets", "spaces")
LFS_PATTERNS = (
    "*.safetensors",
    "*.onnx",
    "*.parquet",
    "*.bin",
    "*.pt",
    "*.npz",
    "*.zip",
    "*.gz",
)  # as in .gitattributes
LFS_ABOVE = 10 * 2**20  # bytes: what is larger goes to large file storage whatever its name
SEED_DATE = "2024-01-01T00:00:00.000Z"  # constant, so that a seed's commit id depends on its content alone
INVERTED = bytes(range(255, -1, -1))


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> HTTPException:
    """The Hub's way of saying no: clients choose the class of their exception by `code`, else by `status`."""
    return HTTPException(
        status, message, headers | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    )


async def say_no(_: Request | None, no: HTTPException) -> Response:
    return JSONResponse({"error": no.detail}, no.status_code, no.headers)


@dataclass(frozen=True)
class Blob:
    """A file's content: where it lies, and whether the repository holds it or (`lfs`) only a pointer to it."""

    file: Path
    lfs: bool

    @cached_property
    def size(self) -> int:
        return self.file.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Git's name of what the repository holds."""
        held = self.pointer if self.lfs else self.file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        """What clients name a cached file by, and compare before they upload one again."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time."""

    files: dict[str, Blob]
    title: str
    message: str = ""
    parent: "Commit | None" = None
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    @cached_property
    def id(self) -> str:
        files = sorted((path, blob.oid) for path, blob in self.files.items())
        content = [files, self.title, self.message, self.parent and self.parent.id, self.date]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def history(self) -> "list[Commit]":
        """This commit and its ancestors, the newest first."""
        return [self, *(self.parent.history() if self.parent else [])]

    def tree(self) -> dict[str, dict]:
        """Every folder and file by its path, as the Hub lists them."""
        folders = {str(folder) for path in self.files for folder in Path(path).parents} - {"."}
        entries = {path: {"type": "directory", "path": path, "size": 0, "oid": self.id} for path in folders}
        for path, blob in self.files.items():
            entries[path] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.lfs:
                entries[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
        return dict(sorted(entries.items()))


@dataclass
class Repo:
    """A repository: its named commits, and who may read it."""

    kind: str
    id: str
    branches: dict[str, Commit]
    private: bool = False
    tags: dict[str, Commit] = field(default_factory=dict)
    variables: dict[str, dict] = field(default_factory=dict)  # of a Space

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit id names."""
        named = self.branches | self.tags
        commits = {commit.id: commit for tip in named.values() for commit in tip.history()}
        if commit := (commits | named).get(revision):
            return commit
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def head(self, branch: str) -> Commit:
        """The newest commit of a branch. Nothing can be pushed to a tag or a commit id."""
        if branch in self.branches:
            return self.branches[branch]
        raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")


@dataclass
class Exchange:
    """A request as it went over the wire. `received` and `sent` are bytes of the bodies; no answer is status 0."""

    method: str
    path: str
    status: int = 0
    received: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that fit `path` and `method`: see `LocalHub.fail`."""

    path: str
    method: str = ".*"
    times: int = 1
    status: int | None = None
    message: str = "Out of order"
    retry_after: int | None = None
    expired: bool = False
    slow: float = 0
    corrupt: bool = False
    cut: float | None = None

    def fits(self, exchange: Exchange) -> bool:
        return self.times > 0 and bool(
            re.fullmatch(self.method, exchange.method) and re.search(self.path, exchange.path)
        )

    def refusal(self, path: str) -> HTTPException | None:
        if self.expired:
            # Clients take such a 401 for RepoNotFound by themselves, but only from a repository's https address.
            of_repo = re.search("^/api/(models|datasets|spaces)/|/resolve/", path)
            return refusal(401, 'User Access Token "tests" is expired', "RepoNotFound" if of_repo else None)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return refusal(self.status, self.message, **headers) if self.status else None


class LocalHub:
    """A Hub that runs as long as the `with` block. Any thread and any process may use it.

    Attributes:
        url: its address, for HF_ENDPOINT or `HfApi(endpoint=...)`.
        token: may read and write the repositories of the user "user".
        read_token: may read them.
        requests: every request so far, in the order of arrival.
        faults: what was declared by `fail`.
    """

    def __init__(self, folder: str | Path, *, seed: str | Path | None = None, port: int = 0):
        """Prepares a Hub.

        Args:
            folder: where uploaded content goes; made if it is missing.
            seed: a folder in the Hub's layout, `models/<user>/<name>/...` and `datasets/<user>/<name>/...`. It is only
                read. Each of its repositories has one commit, whose id depends on nothing but the files.
            port: 0 takes a free one.
        """
        if seed and not any((Path(seed) / kind).is_dir() for kind in KINDS):
            raise errors.DataError(f"no models/ or datasets/ in {seed}: name a folder in the Hub's layout")
        folders = [path for kind in KINDS for path in Path(seed).glob(f"{kind}/*/*")] if seed else []
        self.token, self.read_token = "hf_" + "w" * 34, "hf_" + "r" * 34
        self.requests: list[Exchange] = []
        self.faults: list[Fault] = []
        self._roles = {self.token: "write", self.read_token: "read"}
        self._repos: dict[tuple[str, str], Repo] = {}
        self._seeds = {
            (path.parts[-3], "/".join(path.parts[-2:])): path for path in folders
        }  # not read before it is asked for
        self._objects: dict[str, Blob] = {}  # what large file storage has, by sha256
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._app = Starlette(routes=self._routes(), exception_handlers={HTTPException: say_no})
        self._socket = socket.create_server(("127.0.0.1", port))
        self._socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # without it each answer waits 40 ms for an ACK
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        # h11 and asyncio are there wherever uvicorn is; below "critical" it logs the faults that were asked for
        options = {
            "http": "h11",
            "loop": "asyncio",
            "lifespan": "off",
            "log_level": "critical",
            "timeout_graceful_shutdown": 1,
        }
        self._server = uvicorn.Server(uvicorn.Config(self, **options))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        return self

    def __exit__(self, *_) -> None:
        self._server.should_exit = True
        self._thread.join()

    def environment(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """The whole environment of a process that is to use this Hub: this one's, without its own settings of a Hub.

        Args:
            home: HF_HOME, where the process caches what it downloads.
            token: HF_TOKEN, by default the one that may write; "" for none.
        """
        others = {
            name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING_?FACE|TRANSFORMERS_", name)
        }
        return others | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` would report them to another host
        }

    def fail(self, path: str, **how) -> Fault:
        """Lets the next requests fail, and returns the fault, whose `times` counts down to 0. The first that fits is
        taken.

        Args:
            path: a regular expression, searched in the request's path.
            how: which and how many requests, and one or more kinds of failure:
                method: a regular expression, "GET|HEAD". Any by default.
                times: how many requests; 1 by default.
                status, message, retry_after (seconds): the answer, without what was asked for being done.
                expired: the answer is the one to an expired token.
                slow: seconds before the answer, and before each 64 KiB of it.
                corrupt: each byte of the body is wrong, and their number right: of the request's body for POST and PUT,
                    else of the answer's.
                cut: the share of that body after which the connection is closed. 0: no answer at all. 1, for POST and
                    PUT: the request was carried out, and the answer is lost.
        """
        self.faults.append(Fault(path, **how))
        return self.faults[-1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: keeps the log, applies the faults, and hands on to the routes."""
        scope["path"] = scope["raw_path"].decode()  # still quoted, so that a branch "a/b" remains one part of it
        exchange = Exchange(scope["method"], unquote(scope["path"]))
        self.requests.append(exchange)
        fault = next((fault for fault in self.faults if fault.fits(exchange)), Fault("", times=0))
        fault.times -= 1
        uploads = exchange.method in ("POST", "PUT")
        limit = math.inf  # bytes of the answer before the connection is closed

        async def heard() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            if fault.corrupt and uploads and "body" in message:
                message["body"] = message["body"].translate(INVERTED)
            return message

        async def said(message: Message) -> None:
            nonlocal limit
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if fault.cut is not None:
                    limit = int(fault.cut * int(dict(message["headers"])[b"content-length"]))
            elif exchange.sent < limit:
                await asyncio.sleep(fault.slow)
                whole = message["body"].translate(INVERTED) if fault.corrupt and not uploads else message["body"]
                body = whole[: min(len(whole), limit - exchange.sent)]
                exchange.sent += len(body) if exchange.method != "HEAD" else 0
                more = message.get("more_body", False) or len(body) < len(whole)
                message |= {"body": body, "more_body": more}
            else:
                close()
                return
            await send(message)

        def close() -> None:
            send.__self__.transport.close()  # uvicorn's own object: ASGI has no message that drops a connection

        async def lose(_: Message) -> None:
            pass

        await asyncio.sleep(fault.slow)
        if no := fault.refusal(exchange.path):
            while (await heard()).get("more_body"):
                pass
            await (await say_no(None, no))(scope, heard, said)
        elif fault.cut is None or (fault.cut and exchange.method == "GET"):
            await self._app(scope, heard, said)
        elif fault.cut < 1:
            length = int(dict(scope["headers"]).get(b"content-length", 0))
            while exchange.received < fault.cut * length and (await heard()).get("more_body"):
                pass
            close()
        else:
            await self._app(scope, heard, lose)
            close()

    def _routes(self) -> list[Route]:
        def of_repo(path: str, handler: Callable, method: str = "GET", *, write: bool = False) -> Route:
            async def endpoint(request: Request) -> Response:
                parts = {name: unquote(part) for name, part in request.path_params.items()}
                repo = self._repo(request, parts.pop("kind", "models"), parts.pop("user"), parts.pop("name"), write)
                reply = await handler(request, repo, **parts)
                return reply if isinstance(reply, Response) else JSONResponse(reply)

            return Route(path, endpoint, methods=[method])

        api = "/api/{kind}/{user}/{name}"
        routes = [
            Route("/api/whoami-v2", self._whoami),
            Route("/api/validate-yaml", self._validate_card, methods=["POST"]),
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/lfs/{oid}", self._upload, methods=["PUT"]),
            of_repo(api, self._info),
            of_repo(api + "/revision/{revision}", self._info),
            of_repo(api + "/tree/{revision}", self._tree),
            of_repo(api + "/tree/{revision}/{folder:path}", self._tree),
            of_repo(api + "/paths-info/{revision}", self._paths_info, "POST"),
            of_repo(api + "/commits/{revision}", self._commits),
            of_repo(api + "/refs", self._refs),
            of_repo(api + "/auth-check", self._auth_check),
            of_repo(api + "/auth-check/write", self._auth_check, write=True),
            of_repo(api + "/branch/{branch}", self._branch, "POST", write=True),
            of_repo(api + "/tag/{revision}", self._tag, "POST", write=True),
            of_repo(api + "/variables", self._variables),
            of_repo(api + "/variables", self._set_variable, "POST", write=True),
            of_repo(api + "/preupload/{branch}", self._preupload, "POST", write=True),
            of_repo(api + "/commit/{branch}", self._commit, "POST", write=True),
        ]
        for repo in ("/{user}/{name}", "/{kind}/{user}/{name}"):  # a model's address has no prefix
            routes += [
                of_repo(repo + "/resolve/{revision}/{path:path}", self._resolve),
                of_repo(repo + ".git/info/lfs/objects/batch", self._lfs_batch, "POST", write=True),
                of_repo(repo + ".git/info/lfs/verify", self._lfs_verify, "POST", write=True),
            ]
        return routes

    # Who asks, and for which repository

    def _role(self, request: Request) -> str | None:
        """What the request's token may do; None without a token."""
        if not (header := request.headers.get("authorization")):
            return None
        if role := self._roles.get(header.removeprefix("Bearer ")):
            return role
        raise refusal(401, "Invalid credentials in Authorization header")

    def _check_write(self, request: Request, namespace: str) -> None:
        role = self._role(request)
        if role is None:
            raise refusal(401, "Invalid username or password.")
        if role == "read":
            raise refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if namespace != USER:
            raise refusal(403, f'You don\'t have the rights to write under the namespace "{namespace}"')

    def _find(self, kind: str, repo_id: str) -> Repo | None:
        key = kind, repo_id
        if folder := self._seeds.pop(key, None):
            paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            commit = Commit({name: seed_blob(path) for name, path in paths.items()}, "Seed", date=SEED_DATE)
            self._objects |= {blob.sha256: blob for blob in commit.files.values() if blob.lfs}
            self._repos[key] = Repo(kind, repo_id, {"main": commit})
        return self._repos.get(key)

    def _repo(self, request: Request, kind: str, user: str, name: str, write: bool) -> Repo:
        role, repo = self._role(request), self._find(kind, f"{user}/{name}")
        if repo is None or (repo.private and role is None):  # who may not see it is told the same in both cases
            message = "Repository not found" if role else "Invalid username or password."
            raise refusal(404 if role else 401, message, "RepoNotFound")
        if write:
            self._check_write(request, user)
        return repo

    def _address(self, repo: Repo) -> str:
        return f"{self.url}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.id}"

    async def _whoami(self, request: Request) -> Response:
        if (role := self._role(request)) is None:
            raise refusal(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        return JSONResponse({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    async def _auth_check(self, request: Request, repo: Repo) -> dict:
        return {}

    async def _create(self, request: Request) -> Response:
        wanted = await request.json()
        namespace = wanted.get("organization") or USER
        self._check_write(request, namespace)
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        first = Commit({".gitattributes": self._keep(attributes.encode())}, "initial commit")
        repo = Repo(wanted.get("type", "model") + "s", f"{namespace}/{wanted['name']}", {"main": first})
        repo.private = wanted.get("visibility") == "private"
        reply = {"url": self._address(repo), "name": repo.id}
        if self._find(repo.kind, repo.id):
            return JSONResponse(reply | {"error": f"You already created this {repo.kind[:-1]} repo"}, 409)
        self._repos[repo.kind, repo.id] = repo
        return JSONResponse(reply)

    # What a repository has

    async def _info(self, request: Request, repo: Repo, revision: str = "main") -> dict:
        commit = repo.at(revision)
        siblings = []
        for path, entry in commit.tree().items():
            if entry["type"] == "file":
                lfs = {"lfs": entry["lfs"] | {"sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
                blob = {"size": entry["size"], "blobId": entry["oid"]} | lfs if "blobs" in request.query_params else {}
                siblings.append({"rfilename": path} | blob)
        card = card_data(commit.files["README.md"].file.read_text("utf-8")) if "README.md" in commit.files else {}
        about = {
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "private": repo.private,
            "gated": False,
            "sha": commit.id,
        }
        about |= {"createdAt": commit.history()[-1].date, "lastModified": commit.date, "siblings": siblings}
        about |= {"cardData": json.loads(json.dumps(card, default=str)), "tags": card.get("tags", [])}  # YAML has dates
        return about | {key: card[key] for key in ("library_name", "pipeline_tag", "sdk") if key in card}

    async def _tree(self, request: Request, repo: Repo, revision: str, folder: str = "") -> list:
        prefix = f"{folder}/" if folder else ""
        entries = [entry for path, entry in repo.at(revision).tree().items() if path.startswith(prefix)]
        if folder and not entries:
            raise refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if request.query_params.get("recursive") == "true":
            return entries
        return [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]

    async def _paths_info(self, request: Request, repo: Repo, revision: str) -> list:
        wanted = parse_qs((await request.body()).decode()).get("paths", [])
        return [entry for path, entry in repo.at(revision).tree().items() if path in wanted]

    async def _commits(self, request: Request, repo: Repo, revision: str) -> list:
        return [
            {
                "id": each.id,
                "title": each.title,
                "message": each.message,
                "date": each.date,
                "authors": [{"user": USER}],
            }
            for each in repo.at(revision).history()
        ]

    async def _refs(self, request: Request, repo: Repo) -> dict:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": at.id} for name, at in repo.branches.items()
        ]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at.id} for name, at in repo.tags.items()]
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    async def _branch(self, request: Request, repo: Repo, branch: str) -> dict:
        return self._add_ref(repo.branches, branch, repo.at((await request.json()).get("startingPoint", "main")))

    async def _variables(self, request: Request, repo: Repo) -> dict:
        return repo.variables

    async def _set_variable(self, request: Request, repo: Repo) -> dict:
        variable = await request.json()
        repo.variables[variable["key"]] = {"value": variable["value"]}
        return repo.variables

    async def _tag(self, request: Request, repo: Repo, revision: str) -> dict:
        return self._add_ref(repo.tags, (await request.json())["tag"], repo.at(revision))

    def _add_ref(self, refs: dict[str, Commit], name: str, commit: Commit) -> dict:
        if name in refs:
            raise refusal(409, f"Reference already exists: {name}")
        refs[name] = commit
        return {}

    async def _resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Response:
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.id}
        if not (blob := commit.files.get(path)):
            raise refusal(404, "Entry not found", "EntryNotFound", **headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        return FileResponse(blob.file, headers=headers)  # knows HEAD and ranges

    # A push: which way each file goes (preupload), the large ones (lfs), then one commit that names them all

    async def _validate_card(self, request: Request) -> Response:
        try:
            card = card_data((await request.json())["content"])
        except (yaml.YAMLError, ValueError) as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    async def _preupload(self, request: Request, repo: Repo, branch: str) -> dict:
        head = repo.head(branch)
        files = []
        for file in (await request.json())["files"]:
            lfs = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            oid = {"oid": head.files[file["path"]].etag} if file["path"] in head.files else {}
            files.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False} | oid)
        return {"files": files}

    async def _lfs_batch(self, request: Request, repo: Repo) -> dict:
        objects = []
        verify = {"href": f"{self._address(repo)}.git/info/lfs/verify"}
        for item in (await request.json())["objects"]:
            actions = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}, "verify": verify}
            there = item["oid"] in self._objects  # then there are no actions: nothing has to be sent
            objects.append({"oid": item["oid"], "size": item["size"]} | ({} if there else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    async def _lfs_verify(self, request: Request, repo: Repo) -> dict:
        wanted = await request.json()
        blob = self._objects.get(wanted["oid"])
        if blob is None or blob.size != wanted["size"]:
            raise refusal(404, f"No object {wanted['oid']} of this size")
        return {}

    async def _upload(self, request: Request) -> Response:
        """Takes a large file. No token is asked for: on the Hub such an address is a signed one, elsewhere."""
        oid, path = request.path_params["oid"], self._folder / uuid.uuid4().hex
        with path.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        if (received := Blob(path, lfs=True)).sha256 != oid:
            raise refusal(400, f"The content's sha256 is {received.sha256}, not {oid}")
        self._objects[oid] = Blob(path.rename(self._folder / oid), lfs=True)
        return Response()

    def _keep(self, content: bytes) -> Blob:
        path = self._folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return Blob(path, lfs=False)

    async def _commit(self, request: Request, repo: Repo, branch: str) -> dict:
        if "create_pr" in request.query_params:
            raise refusal(501, "This Hub has no pull requests")
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        head, header = repo.head(branch), next(line["value"] for line in lines if line["key"] == "header")
        files = dict(head.files)
        for line in lines:
            key, value, path = line["key"], line["value"], line["value"].get("path")
            if key == "file":
                files[path] = self._keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self._objects:
                    raise refusal(400, f"LFS pointer of {path} points to a file that does not exist")
                files[path] = self._objects[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                inside = path.rstrip("/") + "/"
                gone = [file for file in files if file == path or (key == "deletedFolder" and file.startswith(inside))]
                if not gone:
                    raise refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                files = {file: blob for file, blob in files.items() if file not in gone}
        if header.get("parentCommit", head.id) != head.id:
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        commit = repo.branches[branch] = Commit(files, header["summary"], header.get("description", ""), head)
        return {"success": True, "commitUrl": f"{self._address(repo)}/commit/{commit.id}", "commitOid": commit.id}


def seed_blob(path: Path) -> Blob:
    """A seed's file, stored the way it would be if it were uploaded."""
    with path.open("rb") as file:
        return Blob(path, is_large(path.name, path.stat().st_size, file.read(512)))


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file belongs into large file storage: by name or size, or because it is no text. Empty ones never
    do.
    """
    named = any(fnmatch(path.rsplit("/")[-1], pattern) for pattern in LFS_PATTERNS)
    return size > 0 and (named or size > LFS_ABOVE or b"\0" in sample)


def card_data(text: str) -> dict:
    """The metadata between two lines `---` at the top of a README.md, {} without."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", text, re.DOTALL)
    card = (yaml.safe_load(block[1]) if block else None) or {}
    if not isinstance(card, dict):
        raise ValueError("repo card metadata block should be a dict")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.local_hub", description="A Hub on loopback, until Ctrl-C."
    )
    parser.add_argument(
        "seed", nargs="?", type=Path, help="folder with models/USER/NAME and datasets/USER/NAME; only read"
    )
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1, 0 for a free one (default: 8765)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder goes in either case
    with (
        tempfile.TemporaryDirectory(prefix="local_hub_") as folder,
        LocalHub(f"{folder}/content", seed=args.seed, port=args.port) as hub,
    ):
        print("# for another shell; what is pushed and cached is gone when this ends")
        settings = hub.environment(f"{folder}/home").items()
        print("export", *(f"{name}={value}" for name, value in settings if name.startswith("HF_")), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    errors.run(main)

"""Variables of the environment that a user sets outside of the project, and what to do about those that do not work.

The clients of the Hub, of `datasets` and of gradio read proxies and certificates from the environment, and raise errors
that do not name the variable. The same holds for the folders of caches and of temporary files.
"""

import errno
import importlib.util
import os
import shutil
import ssl
import sys
import tempfile
import urllib.request
from io import TextIOWrapper
from pathlib import Path
from urllib.parse import urlsplit

PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # also in upper case; where both are set, lower case counts
LITTLE_SPACE = 50_000_000  # bytes that are left on a disk which counts as full


def unusable_settings() -> dict[str, str]:
    """Variables for proxies and certificates with which no client can work: {name: its fault and the next step}."""
    found = {}
    for name in filter(os.environ.get, (*PROXIES, *map(str.upper, PROXIES))):
        is_read = name.islower() or not os.environ.get(name.lower())
        if is_read and (fault := _proxy_fault(os.environ[name])):
            found[name] = f"{name} is {without_password(os.environ[name])}, {fault}, or unset it"
    if (file := os.environ.get("SSL_CERT_FILE")) and not _has_certificates(file):
        found["SSL_CERT_FILE"] = f"SSL_CERT_FILE is {file}, no file of certificates: correct the path, or unset it"
    folder = os.environ.get("SSL_CERT_DIR")
    if folder and not file and not any(Path(part).is_dir() for part in folder.split(os.pathsep)):
        found["SSL_CERT_DIR"] = f"SSL_CERT_DIR is {folder}, no folder: correct the path, or unset it"
    return found


def _proxy_fault(address: str) -> str:
    """Why the clients can't use a proxy of this address, and what to do; "" if they can."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        scheme, is_address = parts.scheme, bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of an address in brackets
        is_address = False
    if not is_address:
        return "which is no address: correct it"
    if scheme in ("socks5", "socks5h"):
        is_installed = importlib.util.find_spec("socksio")
        return "" if is_installed else "which needs another package: pip install socksio"
    if scheme not in ("http", "https"):
        return "which is not a proxy that Python's clients know: write http://, https:// or socks5://"
    return ""


def _has_certificates(file: str) -> bool:
    try:
        ssl.create_default_context(cafile=file)
    except OSError:  # there is none, or not one that may be read, or it holds something else
        return False
    return True


def without_password(address: str) -> str:
    """The address of a proxy without its user and password."""
    start, at, host = address.rpartition("@")
    return f"{start.partition('://')[0]}://{host}" if at and "://" in start else host


def network_advice(url: str) -> str:
    """The variable that may explain why a request to `url` failed, and what to do about it; "" if there is none.

    Args:
        url: where the request went, whatever the path.
    """
    if unusable := unusable_settings():
        return next(iter(unusable.values()))
    address = urlsplit(url)
    if urllib.request.proxy_bypass(address.hostname or ""):
        return ""
    candidates = (name for key in (address.scheme, "all") for name in (f"{key}_proxy", f"{key.upper()}_PROXY"))
    if name := next(filter(os.environ.get, candidates), None):
        return (
            f"the request went through {name}, {without_password(os.environ[name])}: correct or unset that, or add "
            f"{address.hostname} to no_proxy"
        )
    return ""


def prepare_own_server(host: str) -> None:
    """Keeps requests of this process to its own server away from proxies.

    gradio makes clients as soon as it is imported, which fails if a variable can't be used. The page needs no network
    once its models are loaded, so these variables are removed from this process.

    Args:
        host: the name or address at which the server listens.
    """
    for name in unusable_settings():
        del os.environ[name]
    excluded = [name.strip() for name in urllib.request.getproxies_environment().get("no", "").split(",")]
    local = ["localhost", "127.0.0.1", "::1", host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(filter(None, [*excluded, *local])))


def folder_advice(error: OSError) -> str:
    """The variable that names the folder in which a file can't be written, and what to do; "" if there is none."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    file = error.filename if error.filename2 is None else error.filename2  # of a copy, the second one is written
    for name, folder in _own_folders().items():
        if file is not None:
            path = Path(os.fsdecode(file)).absolute()
            # A user may have chosen another path in the folder of temporary files
            start = folder / tempfile.gettempprefix() if name == "TMPDIR" else folder
            is_there = str(path).startswith(str(start)) or folder.is_relative_to(path)
        else:  # as when a disk is full
            is_there = is_full and shutil.disk_usage(_existing(folder)).free < LITTLE_SPACE
        if is_there:
            return f"{'free space in' if is_full else 'check'} {folder}, or set {name} to another folder"
    return ""


def _own_folders() -> dict[str, Path]:
    """The folders for files that no flag names, by the variables that change them."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.path.expandvars(os.path.expanduser(home))  # noqa: PTH111  Path.expanduser fails without a home
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # no folder for temporary files can be written to
        temporary = os.environ.get("TMPDIR", "/tmp")
    return {"HF_HOME": Path(cache).absolute(), "TMPDIR": Path(temporary).absolute()}


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def print_any_text() -> None:
    """Makes output that the terminal's encoding lacks appear as escapes, such as \\u8d64, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

"""A stand-in of the Hugging Face hub on loopback, for `HF_ENDPOINT`: what its Python clients ask to read a repository.

It answers as the hub does: repository info and file lists, files by HEAD and GET with ETag and commit, large files by
way of a redirect and in ranges, and the hub's own error codes. A test can cut a download and read what was asked.
"""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants

LARGE = (".safetensors", ".bin", ".parquet", ".h5")
"""Files of these kinds are kept apart, under their SHA-256."""


@dataclass
class Repository:
    """Its revisions by commit; a gated one lists its files, and gives them only to those who are logged in."""

    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""


@dataclass(frozen=True)
class Request:
    """One that was answered."""

    method: str
    path: str
    status: int

    @property
    def file(self) -> str:
        """The name in the repository of the file that was sent, in whole or in part; "" for anything else."""
        match = re.search(r"/resolve/[^/]+/(.+)|^/large/[0-9a-f]+/(.+)", self.path)
        sent = match and self.method == "GET" and self.status in (200, 206)
        return (match[1] or match[2]) if sent else ""


class Hub:
    """A server for as long as the `with` block lasts; its `requests` are in the order of their answers."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cuts: dict[str, tuple[int, int]] = {}
        self._large: dict[str, bytes] = {}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.large_address = f"http://localhost:{self._server.server_port}"  # another host, as the hub's is

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the port; a second call does nothing."""
        self._server.shutdown()
        self._server.server_close()

    def publish(self, name: str, files: Mapping[str, bytes], *, kind: str = "models", gated: bool = False) -> str:
        """Makes the files the repository's new `main`; returns the commit. `kind` is "models" or "datasets"."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        hashes = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        self._large |= {hashes[path]: content for path, content in files.items() if path.endswith(LARGE)}
        repository.main = hashlib.sha1(json.dumps(sorted(hashes.items())).encode()).hexdigest()
        repository.revisions[repository.main] = dict(files)
        repository.gated = gated
        return repository.main

    def cut(self, file: str, at: int, times: int = 1) -> None:
        """Ends the connection after `at` bytes of the file, that many times; each range counts as one."""
        self.cuts[file] = (at, times)

    def sent(self) -> list[str]:
        """Names of the files that were sent, in whole or in part."""
        return [request.file for request in self.requests if request.file]

    def is_closed(self, key: str) -> bool:
        """Whether the repository's files are only for those who are logged in."""
        return key in self.repositories and self.repositories[key].gated

    def find(self, key: str, revision: str) -> tuple[str, dict[str, bytes]] | str:
        """The commit and its files; where there is none, the hub's code for it."""
        repository = self.repositories.get(key)
        if repository is None:
            return "RepoNotFound"
        commit = repository.main if revision == "main" else revision
        return (commit, repository.revisions[commit]) if commit in repository.revisions else "RevisionNotFound"


def may_be_asked(hub: Hub, monkeypatch) -> None:
    """Lets the hub's client in this process, which has read its environment long ago, ask this hub; proxies aside."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    huggingface_hub.close_session()


def git_hash(content: bytes) -> str:
    """The id that git gives a file, and the hub's ETag of a small one."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe_file(path: str, content: bytes) -> dict:
    """A file as the hub lists it."""
    described = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LARGE):
        described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return described


def list_tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict]:
    """What lies in the folder: its files and folders, and where it is `recursive` the files below these."""
    prefix = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    inner = {path[: path.index("/", len(prefix))] for path in below if "/" in path[len(prefix) :]}
    listed = [{"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0} for path in sorted(inner)]
    shown = [path for path in below if recursive or "/" not in path[len(prefix) :]]
    return listed + [describe_file(path, below[path]) for path in shown]


def _handler_of(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def answer(self):
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            if match := re.fullmatch(r"/large/([0-9a-f]+)/(.+)", path):
                self.send_content(match[2], hub._large[match[1]], {"ETag": f'"{match[1]}"'})
            elif match := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
                key = (match[1] or "models/") + match[2]
                if hub.is_closed(key) and "Authorization" not in self.headers:
                    self.send_fault(401, "Access to this repository is restricted", "GatedRepo")
                else:
                    self.with_files(key, match[3], self.send_file, match[4])
            elif match := re.fullmatch(r"/api/(.+?)/tree/([^/]+)/?(.*)", path):
                recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
                self.with_files(match[1], match[2], self.send_tree, match[3], recursive)
            elif match := re.fullmatch(r"/api/(.+?)/paths-info/([^/]+)", path):
                self.with_files(match[1], match[2], self.send_paths)
            elif match := re.fullmatch(r"/api/((?:models|datasets)/(?:[^/]+/)?[^/]+?)(?:/revision/([^/]+))?", path):
                self.with_files(match[1], match[2] or "main", self.send_info)
            elif path == "/":
                self.send(200, {}, b"")
            else:
                self.send_fault(404, "not here")

        def with_files(self, key, revision, send, *arguments):
            found = hub.find(key, revision)
            if isinstance(found, str):  # without a login the hub does not say whether a repository exists
                self.send_fault(401 if found == "RepoNotFound" else 404, found, found)
            else:
                send(*found, *arguments)

        def send_info(self, commit, files):
            siblings = [{"rfilename": path} for path in files]
            self.send_json(
                {"id": "", "sha": commit, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
            )

        def send_tree(self, commit, files, folder, recursive):
            listed = list_tree(files, folder, recursive=recursive)
            if listed:
                self.send_json(listed)
            else:
                self.send_fault(404, f"no {folder} in {commit}", "EntryNotFound", commit)

        def send_paths(self, commit, files):
            wanted = parse_qs(self.body.decode()).get("paths", [])
            folders = {path: None for path in wanted if any(file.startswith(f"{path}/") for file in files)}
            listed = [describe_file(path, files[path]) for path in wanted if path in files]
            listed += [{"type": "directory", "path": path, "oid": git_hash(path.encode())} for path in folders]
            self.send_json(listed)

        def send_file(self, commit, files, path):
            if path not in files:
                self.send_fault(404, f"no {path} in {commit}", "EntryNotFound", commit)
                return
            content, headers = files[path], {"X-Repo-Commit": commit}
            if path.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                self.send(302, headers | {"Location": f"{hub.large_address}/large/{digest}/{path}"}, b"")
            else:
                self.send_content(path, content, headers | {"ETag": f'"{git_hash(content)}"'})

        def send_content(self, path, content, headers):
            """The file or the range of it that was asked for, or less where it is to be cut."""
            headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
            match, status, start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")), 200, 0
            if match:
                status, start, end = 206, int(match[1]), int(match[2] or len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                content = content[start : end + 1]
            at, times = hub.cuts.get(path, (0, 0))
            if times and self.command == "GET" and len(content) > at - start >= 0:
                hub.cuts[path] = (at, times - 1)
                self.send(status, headers, content, length_sent=at - start)
            else:
                self.send(status, headers, content)

        def send_json(self, value):
            self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def send_fault(self, status, message, code="", commit=""):
            headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
            self.send(status, {name: value for name, value in headers.items() if value}, b"{}")

        def send(self, status, headers, content, length_sent=None):
            hub.requests.append(Request(self.command, self.path, status))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:length_sent])
            self.close_connection = self.close_connection or length_sent is not None

        def log_message(self, *_):
            pass

    return Handler

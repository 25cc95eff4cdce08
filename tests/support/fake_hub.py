"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as its client uses here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_TOKEN = "hf_right"


class FakeHub:
    """Keeps repositories in memory: name to revision to path to bytes.

    Attributes:
        repositories: what is there.
        gated: names whose files are refused.
        cannot_write: whether the token has no right to write.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.cannot_write = False
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:  # noqa: PYI034 (Self is new in Python 3.11)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def tag_of(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    return tag_of(repr(sorted((path, tag_of(data)) for path, data in files.items())).encode())


class _Handler(BaseHTTPRequestHandler):
    server_hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_hub
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        for pattern, method in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                getattr(self, method)(body, *found.groups())
                return
        self._send(404, {"error": f"no route {self.command} {path}"})

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
            return False
        if self.server_hub.cannot_write:
            self._send(403, {"error": "no right to write"})
            return False
        return True

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Looks files up, and answers itself where there are none."""
        hub = self.server_hub
        if name not in hub.repositories:
            self._refuse(401, "RepoNotFound")
            return None
        if name in hub.gated:
            self._refuse(403, "GatedRepo")
            return None
        for branch, files in hub.repositories[name].items():
            if revision in (branch, commit_of(files)):
                return files
        self._refuse(404, "RevisionNotFound")
        return None

    def create(self, body: bytes) -> None:
        if not self._allowed():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        url = f"{self.server_hub.address}/{name}"
        if name in self.server_hub.repositories:
            self._send(409, {"error": "it is there already", "url": url})
            return
        self.server_hub.repositories[name] = {"main": {}}
        if asked.get("private") or asked.get("visibility") == "private":
            self.server_hub.private.add(name)
        self._send(200, {"url": url, "id": name})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if self._allowed():
            branches = self.server_hub.repositories[name]
            status = 409 if branch in branches else 200
            branches.setdefault(branch, dict(branches["main"]))
            self._send(status, {"error": "it is there already"} if status == 409 else {})

    def validate(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._allowed() and self._files(name, revision) is not None:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        files = self._files(name, revision) if self._allowed() else None
        if files is None:
            return
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        made = commit_of(files)
        url = f"{self.server_hub.address}/{name}/commit/{made}"
        self._send(200, {"commitUrl": url, "commitOid": made, "hookOutput": ""})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        files = self._files(name, revision or "main")
        if files is not None:
            listed = [{"rfilename": path} for path in files]
            self._send(200, {"id": name, "modelId": name, "sha": commit_of(files),
                             "siblings": listed, "private": False, "tags": []})  # fmt: skip

    def tree(self, body: bytes, name: str, revision: str) -> None:
        files = self._files(name, revision)
        if files is not None:
            self._send(200, [
                {"type": "file", "path": path, "size": len(data), "oid": tag_of(data)}
                for path, data in files.items()
            ])  # fmt: skip

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        if path not in files:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{tag_of(files[path])}"', "X-Repo-Commit": commit_of(files)}
        self._send(200, files[path], headers)


_NAME = "([^/]+/[^/]+)"
_ROUTES = [
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    (f"POST /api/models/{_NAME}/branch/(.+)", "branch"),
    (f"POST /api/models/{_NAME}/preupload/(.+)", "preupload"),
    (f"POST /api/models/{_NAME}/commit/(.+)", "commit"),
    (f"GET /api/models/{_NAME}/revision/(.+)", "info"),
    (f"GET /api/models/{_NAME}/tree/([^/]+).*", "tree"),
    (f"GET /api/models/{_NAME}", "info"),
    (f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]

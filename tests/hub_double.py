"""The Hugging Face hub in a thread: the endpoints that huggingface_hub asks, over repositories in memory."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits of one repository, the newest last."""

    private: bool
    commits: list[tuple[str, Files]] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """Hash and files of a revision; the newest of ``main``."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def commit(self, changed: Files) -> str:
        files = {**(self.commits[-1][1] if self.commits else {}), **changed}
        number = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((number, files))
        return number


@dataclass
class Hub:
    """What there is, and what was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: Files = field(default_factory=dict)
    """Large files by SHA-256, before a commit names them."""
    requests: list[str] = field(default_factory=list)
    token: str = "hf_writer"

    def put(self, name: str, files: Files, *, private: bool = False) -> str:
        """Add a commit as if somebody had pushed it."""
        return self.repositories.setdefault(name, Repository(private)).commit(files)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, value: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer({"error": code}, status=status, headers={"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _found(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._may_write):
            self._refuse(404 if self._may_write else 401, "RepoNotFound")
            return None
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)/?", path):
            self._listing(match[1], match[2], is_tree="/tree/" in path)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        else:
            self._refuse(404, "EntryNotFound")

    def _listing(self, name: str, revision: str, *, is_tree: bool) -> None:
        repository = self._found(name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
        elif is_tree:
            self._answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                    for path, data in commit[1].items()
                ]
            )
        else:
            siblings = [{"rfilename": path} for path in commit[1]]
            self._answer(
                {"id": name, "sha": commit[0], "private": repository.private, "siblings": siblings, "tags": []}
            )

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._found(name)
        commit = None if repository is None else repository.at(revision)
        if repository is None:
            return
        if commit is None or path not in commit[1]:
            self._refuse(404, "RevisionNotFound" if commit is None else "EntryNotFound")
            return
        self._answer(commit[1][path], headers={"ETag": f'"{_oid(commit[1][path])}"', "X-Repo-Commit": commit[0]})

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        data = self._body()
        self.hub.stored[hashlib.sha256(data).hexdigest()] = data
        self._answer({})

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif not self._may_write:
            self._refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            exists = name in self.hub.repositories
            if not exists:
                self.hub.repositories[name] = Repository(
                    bool(asked.get("private")) or asked.get("visibility") == "private"
                )
                self.hub.repositories[name].commit({".gitattributes": b""})
            self._answer({"url": f"{self.hub.address}/{name}", "name": name}, status=409 if exists else 200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = json.loads(body)["files"]
            modes = ["lfs" if each["path"].endswith(".safetensors") else "regular" for each in files]
            answer = [
                {"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes, strict=True)
            ]
            self._answer({"files": answer})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._commit(match[1], body)
        else:
            self._refuse(404, "EntryNotFound")

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}", "header": {}}}}
            for each in asked["objects"]
        ]
        self._answer(
            {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
        )

    def _commit(self, name: str, body: bytes) -> None:
        changed: Files = {}
        for line in body.splitlines():
            asked = json.loads(line)
            if asked["key"] == "file":
                changed[asked["value"]["path"]] = base64.b64decode(asked["value"]["content"])
            elif asked["key"] == "lfsFile":
                changed[asked["value"]["path"]] = self.hub.stored[asked["value"]["oid"]]
        number = self.hub.repositories[name].commit(changed)
        self._answer({"commitUrl": f"{self.hub.address}/{name}/commit/{number}", "commitOid": number, "success": True})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def hub_double() -> Iterator[Hub]:
    """A hub that listens on this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

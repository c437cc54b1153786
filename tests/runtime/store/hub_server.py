"""A small local server that speaks the part of the hub's API that huggingface_hub uses to fetch a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository ``org/tiny`` with revisions ``main``, ``v1`` and its commit; what it was asked; what it breaks.

    Attributes:
        files: name -> content.
        requests: ``METHOD file range`` of each file request, in order.
        break_after: file -> bytes that each answer to a GET sends before the connection is cut.
        breaks: how many answers are cut before the server works.
        url: of the server.
    """

    files: dict[str, bytes]
    requests: list[str] = field(default_factory=list)
    break_after: dict[str, int] = field(default_factory=dict)
    breaks: int = 0
    url: str = ""

    def gets(self, name: str) -> list[str]:
        """Ranges of the GETs of a file, ``-`` for a whole one."""
        return [r.split()[2] for r in self.requests if r.startswith(f"GET {name} ")]


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve the files of a folder on a free port of the loopback interface."""
    hub = Hub({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self.api(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[2], match[3])
        else:
            self.refuse(404, "")

    do_HEAD = do_GET  # noqa: N815 - the base class calls it so

    def api(self, repo: str, what: str | None, revision: str) -> None:
        if not self.known(repo, revision):
            return
        files = self.hub.files
        if what == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            self.answer(json.dumps(entries).encode())
            return
        siblings = [{"rfilename": name} for name in files]
        self.answer(json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        wanted = self.headers.get("Range") or "-"
        self.hub.requests.append(f"{self.command} {name} {wanted}")
        if not self.known(repo, revision):
            return
        if name not in self.hub.files:
            self.refuse(404, "EntryNotFound")
            return
        data = self.hub.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if match is None:
            self.answer(data, headers, name=name)
            return
        start, stop = int(match[1]), int(match[2] or len(data) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.answer(data[start:stop], headers, status=206, name=name)

    def known(self, repo: str, revision: str) -> bool:
        if repo != "org/tiny":
            self.refuse(401, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def refuse(self, status: int, code: str) -> None:
        self.answer(b"", {"X-Error-Code": code} if code else {}, status=status)

    def answer(
        self, body: bytes, headers: dict[str, str] | None = None, *, status: int = 200, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.break_after.get(name)
        if cut is not None and self.hub.breaks > 0:
            self.hub.breaks -= 1
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""

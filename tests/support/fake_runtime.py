"""A host and an entry in the standard library alone: what `splitinfer up` sees of the real ones.

They keep the same contract (one line when listening, the control API, end with standard input) and start in
a twentieth of a second. Each writes its pid into ``$FAKE_PIDS``. Misbehaviour is asked for through
``$FAKE_BEHAVIOUR``, as ``NAME=WHAT`` pairs:

crash       leaves with exit code 1 before it listens
bad-input   leaves with exit code 2 before it listens
deaf        ignores SIGTERM and the end of standard input's line
refuse      (entry) answers every plan with 400
slow        (entry) stays "preparing"
silent      never says that it listens
there       (convert) finds the conversion made
not-kept    (convert) cannot write it
stuck       (convert) does not get further than half
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECES = ("Because ", "of ", "scattering.")


def behaviour(name: str) -> str:
    """What ``$FAKE_BEHAVIOUR`` asks of a process."""
    pairs = dict(pair.split("=") for pair in os.environ.get("FAKE_BEHAVIOUR", "").split() if pair)
    return pairs.get(name, "")


class Entry:
    """The state of a fake entry: it serves whatever plan it gets."""

    def __init__(self) -> None:
        self.plan: dict[str, Any] | None = None
        self.hosts: dict[str, str] = {}

    def accept(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """``PUT /control/plan``."""
        if behaviour("entry") == "refuse":
            return 400, {"error": {"field": "plan.model.digest", "message": "is not that of the model"}}
        if self.plan is not None and body["plan"]["epoch"] <= self.plan["epoch"]:
            return 409, {"error": {"field": "plan.epoch", "message": f"current is {self.plan['epoch']}"}}
        self.plan, self.hosts = body["plan"], body["hosts"]
        return 202, {}

    def status(self) -> dict[str, Any]:
        """``GET /control/status``."""
        slow = behaviour("entry") == "slow"
        epoch = self.plan["epoch"] if self.plan else None
        return {
            "state": "empty" if self.plan is None else "preparing" if slow else "serving",
            "epoch": None if slow else epoch,
            "plan": None if slow else self.plan,
            "target_epoch": epoch,
            "progress": {"loaded_bytes": 50, "total_bytes": 100},
            "last_error": None,
            "hosts": {name: {"address": address, "alive": True} for name, address in self.hosts.items()},
            "sessions": {"running": 0, "waiting": 0},
            "observed": {"tokens_total": 7, "ttft_p50_seconds": 0.25, "tpot_p50_seconds": None},
        }


def handler(entry: Entry) -> type[BaseHTTPRequestHandler]:
    """Control API and OpenAI endpoint in one."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            return

        def _answer(self, code: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._answer(200, {"data": [{"id": "tiny"}]})
            else:
                self._answer(200, entry.status())

        def do_PUT(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*(entry.accept(body) if self.path.endswith("plan") else (202, {})))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": piece}}]} for piece in PIECES]
            events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            events.append({"choices": [], "usage": {"completion_tokens": len(PIECES)}})
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


def serve(address: str, entry: Entry) -> str:
    """Serve on an address in a thread; the address it got."""
    host, _, port = address.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), handler(entry))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"{host}:{server.server_port}"


def convert(what: str) -> int:
    """Say what a conversion of 4 MiB says."""
    if what == "there":
        print(json.dumps({"event": "there"}), flush=True)
        return 0
    for done in (0, 2):
        told = {"event": "converting", "unit": "block-000", "done_bytes": done << 20, "total_bytes": 4 << 20}
        print(json.dumps(told), flush=True)
    if what == "stuck":
        while sys.stdin.buffer.read(1):
            pass
    elif what == "not-kept":
        print(json.dumps({"event": "not kept", "reason": "Read-only file system"}), flush=True)
    else:
        print(json.dumps({"event": "converted", "exact": 3, "total": 7}), flush=True)
    return 0


def main(role: str, name: str, listen: str) -> int:
    """Be a host or an entry until standard input ends."""
    Path(os.environ["FAKE_PIDS"], f"{name}.{os.getpid()}").touch()
    what = behaviour(name)
    if what in ("crash", "bad-input"):
        print(json.dumps({"event": "no such device", "level": "error"}), file=sys.stderr)
        return {"crash": 1, "bad-input": 2}[what]
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if role == "convert":
        return convert(what)
    if role == "host":
        held = socket.create_server(("127.0.0.1", 0))
        said = {"grpc": f"127.0.0.1:{held.getsockname()[1]}", "node": name}
    else:
        entry = Entry()
        said = {"http": serve(listen, entry), "control": serve("127.0.0.1:0", entry)}
    if what != "silent":
        print(json.dumps({"event": "listening", "pid": os.getpid(), **said}), flush=True)
    while sys.stdin.buffer.read(1):
        pass
    if what == "deaf":
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

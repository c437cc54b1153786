"""``splitinfer chat``: talk to a pipeline; the answer streams, with its timing at the end."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from splitinfer.operator.openai import ChatClient


def register(subparsers: Any) -> None:
    """Add ``chat``."""
    p = subparsers.add_parser(
        "chat",
        help="talk to a pipeline",
        description="Talk to a pipeline; the answer streams, with its timing at the end.",
    )
    p.add_argument("--url", help="an OpenAI endpoint; default: the pipeline that runs on this machine")
    p.add_argument("--model", help="model to ask for; default: the one that is served")
    p.add_argument("--prompt", metavar="TEXT", help="ask this and leave, instead of a conversation")
    p.add_argument("--system", metavar="TEXT", help="system message that begins the conversation")
    p.add_argument("--temperature", type=float, help="0 always takes the likeliest token")
    p.add_argument("--top-p", type=float, help="draw from the likeliest tokens that make up this share")
    p.add_argument("--seed", type=int, help="makes the draw repeatable")
    p.add_argument("--max-tokens", type=int, help="longest answer")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """One question, or a conversation until the end of input."""
    from splitinfer.operator.local.runfile import endpoint_of_the_one
    from splitinfer.operator.openai import ChatClient

    check(arguments)
    endpoint = endpoint_of_the_one() if arguments.url is None else arguments.url
    given = {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "max_tokens": arguments.max_tokens,
    }
    client = ChatClient(_with_scheme(endpoint))
    try:
        conversation = Conversation(
            client,
            arguments.model or client.model(),
            arguments.system,
            {name: value for name, value in given.items() if value is not None},
        )
        if arguments.prompt is not None:
            conversation.ask(arguments.prompt)
            return 0
        return converse(conversation)
    finally:
        client.close()


def check(arguments: argparse.Namespace) -> None:
    """Refuse what no endpoint would take, before one is asked. Raises UserError, naming every flag that is wrong."""
    from splitinfer.operator.errors import UserError

    problems: list[tuple[str, str]] = []
    for flag, value, least, most in (
        ("--temperature", arguments.temperature, 0, 2),
        ("--top-p", arguments.top_p, 0, 1),
        ("--seed", arguments.seed, -(2**63), 2**63 - 1),
    ):
        if value is not None and not least <= value <= most:  # nan is in no range
            problems.append((flag, f"{value}: from {least} to {most}"))
    if arguments.max_tokens is not None and arguments.max_tokens < 1:
        problems.append(("--max-tokens", f"{arguments.max_tokens}: at least 1"))
    if arguments.prompt is not None and not arguments.prompt.strip():
        problems.append(("--prompt", "is empty; write what to ask"))
    if arguments.url is not None and not _is_url(_with_scheme(arguments.url)):
        problems.append(("--url", f"{arguments.url!r} is no address; write http://HOST:PORT"))
    if problems:
        raise UserError.of(problems)


class Conversation:
    """The messages so far. A question whose answer failed or was interrupted is taken back."""

    def __init__(
        self, client: ChatClient, model: str, system: str | None, parameters: dict[str, float | int]
    ) -> None:
        self._client = client
        self._parameters = parameters
        self.model = model
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ask(self, question: str) -> None:
        """Print the answer as it comes, then its timing on stderr. Raises CommandFailed."""
        asked = [*self.messages, {"role": "user", "content": question}]
        answer = self._client.ask(self.model, asked, _say, self._parameters)
        print(flush=True)
        print(f"({answer.summary})", file=sys.stderr)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]


def converse(conversation: Conversation) -> int:
    """Questions from the terminal until Ctrl-D; Ctrl-C stops an answer, and leaves at the prompt."""
    from splitinfer.operator.errors import CommandFailed

    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() a line editor and a history

        print(f"talking to {conversation.model}; Ctrl-D leaves", file=sys.stderr)
    failed = False
    while True:
        try:
            question = input("> " if interactive else "")
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return int(failed and not interactive)
        except UnicodeDecodeError:
            print("error: stdin: not UTF-8; type it again", file=sys.stderr)
            failed = True
            continue
        if not question.strip():
            continue
        try:
            conversation.ask(question)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        except CommandFailed as error:
            print(f"\nerror: {error}", file=sys.stderr)
            failed = True


def _say(piece: str) -> None:
    print(piece, end="", flush=True)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets that do not match
        return False


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"http://{url}"

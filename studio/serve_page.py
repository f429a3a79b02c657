"""`bicot studio`: the page on an address of this machine, until Ctrl-C."""

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import uvicorn
from pydantic import ValidationError
from rich.console import Console

from cluster.files import first_fault
from policy.errors import UserError
from rewards.config import HttpConfig
from rewards.http import read_secret
from rewards.middleware import token_digest
from studio.playground import Playground
from studio.run_folders import RunFolders
from studio.web_app import build_page


class PageConfig(HttpConfig):
    """Where the page is."""

    key: ClassVar[str] = "studio"


def serve_page(
    runs: Path,
    models: Sequence[str],
    host: str,
    port: int,
    token_env: str | None,
    model_token_env: str | None,
    console: Console,
) -> None:
    """Raises UserError for a folder that is not there, a public address without a token, or an address
    that cannot be bound."""
    try:
        config = PageConfig(host=host, port=port, token_env=token_env)
    except ValidationError as error:
        raise UserError(f"studio: {first_fault(error)} (--host, --port, --token-env)") from None
    token = read_secret(model_token_env) if model_token_env else None
    if model_token_env and not token:
        raise UserError(f"--model-token-env: the environment variable {model_token_env} is not set")
    app = build_page(RunFolders(runs), Playground(models, token), token_digest(config))
    listening = _listen(host, port)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{listening.getsockname()[1]}"
    console.print(f"the page is at {url}; Ctrl-C stops it", highlight=False, soft_wrap=True)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False
    )
    with listening:
        uvicorn.Server(settings).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken: choose another --port" if taken else os.strerror(error.errno or 0)
        raise UserError(
            f"{host}:{port}: {why if not isinstance(error, socket.gaierror) else error}"
        ) from None
    return listening

"""Listening and stopping: the socket is taken before the model is loaded, and a signal lets everybody finish."""

import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from deadiff.errors import ConfigError
from deadiff.references import one_line
from deadiff.service.app import create_app
from deadiff.service.settings import Settings
from deadiff.service.state import Service, open_service
from deadiff.stylizer import Stylizer

BACKLOG = 1024  # connections that wait to be taken
MOST_CONNECTIONS = 1024  # above it, 503


def bind(settings: Settings) -> socket.socket:
    """Raises ConfigError where the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        return made
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {one_line(error)}; choose another with --host and --port"
        ) from error


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, listening: socket.socket, stylizer: Stylizer, ready: Callable[[], None]) -> None:
    """Until SIGTERM or Ctrl-C. `ready` is called when jobs are being taken."""
    with open_service(settings, stylizer) as service:
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            http="h11",
            ws="none",
            backlog=BACKLOG,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )
        _Server(config, service, ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.events.stop()  # streams end, or the server would wait for them
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # else they are raised again when all is over: this is a good end, exit code 0

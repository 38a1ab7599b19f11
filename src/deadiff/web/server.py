"""Serving the page on this machine: no analytics, no share links, nothing loaded from elsewhere."""

import ipaddress
import logging
import os
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

from deadiff.errors import ConfigError, MissingExtraError
from deadiff.references import one_line
from deadiff.web.folder import Folder
from deadiff.web.models import Loader, Models
from deadiff.web.studio import Studio
from deadiff.web.words import EXAMPLES_FOLDER

MAX_UPLOAD = "64mb"
USER = "deadiff"  # the name that goes with the password


@dataclass(frozen=True, kw_only=True)
class Running:
    """An app that serves; `close` ends it."""

    url: str
    _blocks: Any
    _uploads: str

    def close(self) -> None:
        self._blocks.close(verbose=False)
        shutil.rmtree(self._uploads, ignore_errors=True)


def start(
    folder: str | os.PathLike[str],
    models: tuple[str, ...] | list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    loader: Loader | None = None,
) -> Running:
    """Serve the page in threads of this process. Port 0: any that is free.

    Raises ConfigError: a port that is taken, a folder that cannot be written to, or an address beyond this machine without a
    password; MissingExtraError without Gradio.
    """
    if not is_loopback(host) and not password:
        raise ConfigError(f"host {host} is open to others: set a password in DEADIFF_WEB_PASSWORD, or use 127.0.0.1")
    kept = Folder(folder)
    free = claim(host, port)
    uploads = tempfile.mkdtemp(prefix="deadiff-uploads-")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = uploads  # read by Gradio when it is imported and when files arrive
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # Gradio asks itself whether it is up
    try:
        from starlette.middleware import Middleware

        from deadiff.web.look import STYLE, SafeHeaders, theme
        from deadiff.web.page import Page
    except ImportError as error:
        shutil.rmtree(uploads, ignore_errors=True)
        raise MissingExtraError(f"the app needs '{error.name}': pip install 'deadiff[web]'") from error

    page = Page(Studio(kept, Models(models, loader)))
    page.blocks.queue(max_size=64, default_concurrency_limit=8)
    try:
        page.blocks.launch(
            server_name=host,
            server_port=free,
            auth=(USER, password) if password else None,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(kept.path), str(EXAMPLES_FOLDER), page.styles_part.shared.name],
            app_kwargs={"middleware": [Middleware(SafeHeaders)], "docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=theme(),
            css=STYLE,
        )
    except OSError as error:
        raise ConfigError(f"the app cannot listen on {host}:{free}: {one_line(error)}; choose another --port") from error
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return Running(url=f"http://{shown}:{free}/", _blocks=page.blocks, _uploads=uploads)


def wait(running: Running) -> None:
    """Until Ctrl-C."""
    try:
        threading.Event().wait()
    finally:
        running.close()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def claim(host: str, port: int) -> int:
    """The port, proved free; 0 becomes a free one. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"the app cannot listen on {host}:{port}: {one_line(error)}; choose another --port") from error

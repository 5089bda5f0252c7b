"""Opens a URL in such a way that reading its answer ends in time, whatever the server does."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm_nfp.text import printable

_LOGIN = re.compile(r"(\w+:/+)?[^\s/'\"]*:[^\s'\"]*@")
"""A user name and a password before a host, with or without a scheme in front."""


class UrlError(ValueError):
    """Text that is not a URL of a server; one sentence says why and what to give."""


def hide_password(text: str) -> str:
    """The text with ``***`` in place of each ``user:password`` before a host."""
    return _LOGIN.sub(r"\1***@", text)


def metrics_address(url: str) -> str:
    """The address of a server's /metrics, from the server's URL or from this address itself.

    Raises:
        UrlError: for another scheme, no host, a bad port, a password, or a query.
    """
    shown = repr(hide_password(printable(url)))
    example = "give one like http://localhost:8000"
    if any(c.isspace() or not c.isprintable() for c in url):
        raise UrlError(
            f"{shown} is not a URL, since it holds a space or a control character: {example}"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # whose text may quote the password
        raise UrlError(f"{shown} is not a URL: {example}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UrlError(f"{shown} is not a URL: {example}")
    if parts.username is not None:
        raise UrlError(f"{shown} holds a user name or password, and none is sent: leave it out")
    if parts.query or parts.fragment:
        bare = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        raise UrlError(
            f"{printable(bare)!r} is followed by a query or a fragment: leave it out, {example}"
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith("/metrics") else f"{path}/metrics"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long an answer is waited for."""

    end: float
    """By when all of it has to be there, as ``time.monotonic`` counts seconds."""
    limit_seconds: float
    """What that was at the beginning."""
    timeout_seconds: float
    """Longest wait for a part of it."""

    def left(self) -> float:
        """Seconds until the next part has to be there.

        Raises:
            TimeoutError: if the time is up.
        """
        left = self.end - time.monotonic()
        if left <= 0.0:
            raise TimeoutError(f"it did not end within {self.limit_seconds:.3g} s")
        return min(self.timeout_seconds, left)


class _Received(io.RawIOBase):
    """What a socket receives while there is time.

    A socket's own timeout begins anew with each packet. A server that drips its status line, its
    headers, its chunks' sizes or its trailers would never reach it.
    """

    def __init__(self, connection: Any, patience: _Patience) -> None:
        self._connection = connection
        self._file = connection.makefile("rb", buffering=0)
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._patience.left())
        try:
            count: int | None = self._file.readinto(buffer)
        except TimeoutError:
            self._patience.left()  # which of the two limits it was
            raise
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose every byte comes while there is time."""

    def __init__(self, patience: _Patience, connection: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Received(connection, patience))


class _Timed:
    """Lets each connection of a handler share one time."""

    def __init__(self, patience: _Patience) -> None:
        super().__init__()
        self._patience = patience

    def do_open(self, http_class: Callable[..., Any], request: Any, **kwargs: Any) -> Any:
        def connect(*args: Any, **others: Any) -> Any:
            connection = http_class(*args, **others)
            connection.response_class = partial(_Response, self._patience)
            return connection

        request.timeout = self._patience.left()
        return super().do_open(connect, request, **kwargs)  # type: ignore[misc]


class _Http(_Timed, urllib.request.HTTPHandler):  # type: ignore[misc]
    pass


class _Https(_Timed, urllib.request.HTTPSHandler):  # type: ignore[misc]
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows from web server to web server, and nowhere else: not to files, not to FTP."""

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        request, answer, code, _, headers, address = args
        if not address.lower().startswith(("http://", "https://")):
            message = f"a redirection to {printable(address)!r:.200} is not followed"
            raise urllib.error.HTTPError(request.full_url, code, message, headers, answer)
        return super().redirect_request(*args)


def open_url(address: str, timeout_seconds: float, end: float) -> Any:
    """The answer of a web server, to be read and closed.

    Args:
        address: begins with http:// or https://.
        timeout_seconds: longest wait for a part of the answer.
        end: by when all of it, redirections included, has to be there, as ``time.monotonic`` counts
            seconds.

    Raises:
        OSError: if there is no answer, also later while it is read.
        http.client.HTTPException: for what is not HTTP.
        ValueError: for an address that is none.
    """
    patience = _Patience(end, end - time.monotonic(), timeout_seconds)
    opener = urllib.request.build_opener(_Http(patience), _Https(patience), _Redirects())
    return opener.open(address, timeout=patience.left())

"""Fetches what a server answers, /metrics above all: in bounded time, and no more than a bound."""

from __future__ import annotations

import http.client
import time
import urllib.error
import zlib

from vllm_nfp.text import printable
from vllm_nfp.web import UrlError, metrics_address, open_url

TIMEOUT_SECONDS = 10.0
"""Longest wait for a part of an answer."""
LIMIT_IN_TIMEOUTS = 3
"""Reading all of an answer and its metrics takes at most so many timeouts."""
MAX_BYTES = 64 << 20
"""Largest answer, unpacked."""
_GZIP, _GZIP_BITS = b"\x1f\x8b", 31
"""How gzip data begin (RFC 1952), and what zlib calls them."""


class ScrapeError(RuntimeError):
    """The server's metrics could not be used; the message says why and what to do."""


class _UnpackError(OSError):
    """An answer that is packed in a way, or so, that it cannot be unpacked."""


def deadline(timeout_seconds: float = TIMEOUT_SECONDS) -> float:
    """By when a reading that begins now has to end, as ``time.monotonic`` counts seconds."""
    return time.monotonic() + LIMIT_IN_TIMEOUTS * timeout_seconds


def fetch(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """The text of ``url``/metrics.

    Raises:
        ScrapeError: if the server does not answer, or with nothing that can be read.
    """
    try:
        address = metrics_address(url)
    except UrlError as error:
        raise ScrapeError(str(error)) from None
    try:
        raw = get(address, timeout_seconds, MAX_BYTES + 1)
    except _UnpackError as error:
        raise ScrapeError(f"{address} cannot be read: {error}; is it a vLLM server?") from None
    except OSError as error:
        # The server may have had a say in what went wrong.
        why = printable(_reason(error))[:200]
        raise ScrapeError(
            f"{address} cannot be read ({why}): is vllm serve --nfp-probe running there?"
        ) from None
    if len(raw) > MAX_BYTES:
        raise ScrapeError(f"{address} is larger than {MAX_BYTES} bytes: is it a vLLM server?")
    return raw.decode("utf-8", errors="replace")


def _reason(error: OSError) -> str:
    """What went wrong, without the names and numbers that Python puts around it."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    strerror = inner.strerror if isinstance(inner, OSError) else None
    return strerror or f"{inner}"


def get(address: str, timeout_seconds: float, most_bytes: int) -> bytes:
    """The first ``most_bytes`` of what an address answers, unpacked if it is gzip data.

    Args:
        timeout_seconds: longest wait for a part of the answer; three times that for all of it.

    Raises:
        OSError: whatever goes wrong, a late end included.
    """
    limit = LIMIT_IN_TIMEOUTS * timeout_seconds
    end = deadline(timeout_seconds)
    received = bytearray()
    try:
        with open_url(address, timeout_seconds, end) as answer:
            encoding = answer.headers.get("Content-Encoding", "")
            while len(received) < most_bytes:
                # The timeout holds for one packet: a server that drips would never reach it.
                if time.monotonic() > end:
                    raise TimeoutError(f"it did not end within {limit:g} s")
                part = answer.read1(min(1 << 16, most_bytes - len(received)))
                if not part:
                    break
                received += part
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    return _unpacked(bytes(received), encoding, most_bytes, end)


def _unpacked(raw: bytes, encoding: str, most_bytes: int, end: float) -> bytes:
    """What was packed, up to ``most_bytes`` of it.

    We ask for no packing; a server or a proxy may pack all the same, and not say so.

    Raises:
        _UnpackError: for another packing than gzip, and for gzip data that are not whole.
    """
    named = encoding.strip().lower()
    if named not in ("", "identity", "gzip", "x-gzip"):
        raise _UnpackError(f"it is packed as {printable(encoding)!r:.60}, not as gzip")
    if "gzip" not in named and not raw.startswith(_GZIP):
        return raw
    found = bytearray()
    while raw and len(found) < most_bytes:
        if time.monotonic() > end:
            raise _UnpackError("unpacking its gzip data took too long")
        member = zlib.decompressobj(_GZIP_BITS)
        try:
            found += member.decompress(raw, most_bytes - len(found))
        except zlib.error:
            raise _UnpackError("its gzip data are damaged") from None
        if not member.eof and len(found) < most_bytes:
            raise _UnpackError("its gzip data end too early")
        raw = member.unused_data
    return bytes(found)

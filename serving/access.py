"""Access control, rate limit, and the limit on concurrent uploads."""

import hashlib
import hmac
import ipaddress
import math
import time
from collections import Counter, OrderedDict
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.requests import Request

from serving.errors import ApiError
from serving.settings import Settings

REMEMBERED = 10_000
"""Clients whose rate is tracked; the one idle for longest is forgotten first."""


def check(request: Request, settings: Settings) -> str:
    """Check that a request has a valid key or, if none is set, comes from this machine, and not from another site's page.

    Returns:
        The client's name for the rate limit; it is not secret.

    Raises:
        ApiError: unauthorized, loopback_only, cross_origin.
    """
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and (not host or origin.partition("://")[2] != host):
        # CORS stops another site's page from reading an answer; this stops it from sending requests on behalf of its visitor.
        raise ApiError("cross_origin", f"A page of {origin[:100]} may not use this service")
    peer = request.client.host if request.client else "localhost"  # a Unix socket has no peer
    if settings.api_keys:
        return f"key {hashlib.sha256(_key(request, settings)).hexdigest()[:8]}"  # does not change when other keys do
    if not is_loopback(peer) or not is_loopback(_name(host)):
        raise ApiError("loopback_only")
    return peer


@lru_cache(maxsize=1000)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _name(host: str) -> str:
    """The name in a `Host` header, without its port; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _key(request: Request, settings: Settings) -> bytes:
    """The key that the request has. It is compared with all keys, so that the time does not reveal which one matches."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # Both count: a proxy that users log in to may send a token of its own in one of them.
    given = [request.headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
    # Starlette decodes headers as Latin-1, whatever their encoding.
    keys = [key.get_secret_value().encode() for key in settings.api_keys]
    found = [key for one in given for key in keys if hmac.compare_digest(one.encode("latin-1"), key)]
    if not found:
        raise ApiError("unauthorized", headers={"WWW-Authenticate": "Bearer"})
    return found[0]


class RateLimiter:
    """A token bucket per client, with a burst of one minute's worth."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def acquire(self, client: str) -> None:
        """Take a token. Raises ApiError: too_many_requests, with the seconds to wait."""
        if not self.per_minute:
            return
        now = time.monotonic()
        left, seen = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(left + (now - seen) * self.per_minute / 60, self.per_minute)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = int((1 - left) * 60 / self.per_minute) + 1
            message = f"More than {self.per_minute} requests a minute"
            raise ApiError("too_many_requests", message, f"Wait {wait} s.", {"Retry-After": str(wait)})


class Uploads:
    """The uploads under way in a worker, and the bytes that they hold in memory; a client may hold `Settings.share` of both."""

    def __init__(self, settings: Settings) -> None:
        self._most, self._most_each = settings.queue, math.ceil(settings.queue * settings.share)
        self._most_bytes = settings.under_way_bytes
        self._most_bytes_each = max(self._most_bytes * settings.share, settings.largest_upload)
        self._number: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def enter(self, client: str) -> None:
        """Count an upload in. Raises ApiError: busy."""
        if self._number.total() >= self._most:
            raise _busy(f"{self._number.total()} uploads are under way")
        if self._number[client] >= self._most_each:
            raise _busy(f"{self._number[client]} uploads of this client are under way")
        self._number[client] += 1

    def hold(self, client: str, size: int) -> None:
        """Count in the bytes of an upload. Raises ApiError: busy."""
        if self._bytes.total() + size > self._most_bytes:
            raise _busy(f"{self._bytes.total() / 1e6:,.0f} MB of uploads are under way")
        if self._bytes[client] + size > self._most_bytes_each:
            raise _busy(f"{self._bytes[client] / 1e6:,.0f} MB of uploads of this client are under way")
        self._bytes[client] += size

    def leave(self, client: str, held: int) -> None:
        """Count an upload out, and the bytes that it held."""
        self._number[client] -= 1
        self._bytes[client] -= held
        if not self._number[client]:
            del self._number[client], self._bytes[client]


def _busy(message: str) -> ApiError:
    return ApiError("busy", message, "Try again in a second.", {"Retry-After": "1"})

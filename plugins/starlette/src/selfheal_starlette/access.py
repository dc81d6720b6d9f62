"""Who asks, from where, and what they may do: one place that decides, for every route.

In order: the host that is meant, the site it comes from, who it is, the scope, and the services a token is limited to.
A caller is known by a token, by the host application (`authenticate`), by a ticket for the stream, or, where no token
is configured, by asking from loopback.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, TypeAlias

import anyio.to_thread
import attrs
from starlette.requests import Request

from selfheal.requests import SCOPES, Scope
from selfheal_starlette.limits import Buckets, Rates
from selfheal_starlette.problems import Refusal
from selfheal_starlette.routes import Route
from selfheal_starlette.tickets import Tickets
from selfheal_starlette.tokens import TokenBook

Address: TypeAlias = "IPv4Address | IPv6Address"
Network: TypeAlias = "IPv4Network | IPv6Network"
Authenticate: TypeAlias = "Callable[[Request], Caller | Awaitable[Caller | None] | None]"

FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "x-forwarded-host", "via")
"""Headers that say that somebody else stands between us and who asks."""

SAFE: Final = ("GET", "HEAD")
ORDER: Final = (Scope.READ, Scope.OPERATE, Scope.ADMIN)

log = logging.getLogger("selfheal.http")


def _name(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 100 or not value.isprintable():
        raise ValueError("a caller has a name: one printable line of at most 100 characters")


def _names(names: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(names, str):
        raise TypeError("`services` is a collection of names, not one name")
    return None if names is None else frozenset(names)


@attrs.frozen(kw_only=True)
class Caller:
    """Who asks, and what they may do.

    `name` stands in the audit trail. `services` are those the caller may act on; None is all of them, and reading is of
    the whole fleet either way, because no service can be understood without those it needs.
    """

    name: str = attrs.field(validator=_name)
    scope: Scope = attrs.field(converter=Scope)
    services: frozenset[str] | None = attrs.field(default=None, converter=_names)
    token: str = ""
    """The id of the token, for one who came with a token."""

    by_cookie: bool = False
    """Whether the browser would have sent the same without its user knowing (CSRF)."""

    local: bool = False
    """Whether it is nobody in particular, let in because no token is configured and they ask from loopback."""

    @property
    def scopes(self) -> frozenset[str]:
        """The scope and those before it."""
        return frozenset(scope.value for scope in ORDER[: ORDER.index(self.scope) + 1])

    @property
    def key(self) -> str:
        """What tells this caller from others: where rates are counted, and in what an idempotency key counts."""
        return f"token {self.token}" if self.token else f"name {self.name}"

    def shown(self) -> dict[str, Any]:
        """Return what a caller is told about itself."""
        services = sorted(self.services) if self.services is not None else None
        return {"name": self.name, "scope": self.scope.value, "services": services}

    def actor(self, address: str) -> str:
        """Return who it is, as the audit trail has it."""
        by = f" (token {self.token})" if self.token else ""
        return f"{self.name}{by} at {address}"


@attrs.frozen(kw_only=True)
class Rules:
    """Whom an application lets in. `hosts` None lets any host name pass that comes with a token."""

    authenticate: Authenticate | None = None
    loopback_writes: bool = False
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    proxies: tuple[Network, ...] = ()


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that addresses, or addresses with a length, name. Raises `ValueError`."""
    return tuple(ip_network(name, strict=False) for name in names)


def is_loopback(address: Address | None) -> bool:
    """Whether an address is this machine's own."""
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and bool((mapped or address).is_loopback)


def host_name(netloc: str) -> str:
    """Return the name or address in `host:port`, in lower case."""
    netloc = netloc.strip().lower()
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.rpartition(":")[0] if netloc.count(":") == 1 else netloc


def means_loopback(netloc: str) -> bool:
    """Whether a Host header names loopback: a page that was lured to us by a name of its own does not."""
    name = host_name(netloc)
    if name == "localhost":
        return True
    try:
        return is_loopback(ip_address(name))
    except ValueError:
        return False


class Access:
    """Decides, for one application."""

    def __init__(self, rules: Rules, book: TokenBook, tickets: Tickets, rates: Rates) -> None:
        self.rules = rules
        self.book = book
        self.tickets = tickets
        self._failures = Buckets(rates.failures)

    # -- from where ----------------------------------------------------------------------------------------------------

    def address(self, request: Request) -> Address | None:
        """Return who is on the other end: past the proxies that are named, and past no other."""
        try:
            address = ip_address(request.client.host) if request.client is not None else None
        except ValueError:
            return None
        if address is None or not self._proxied(address):
            return address
        told = ",".join(request.headers.getlist("x-forwarded-for"))
        for hop in reversed([one.strip() for one in told.split(",") if one.strip()]):
            try:
                address = ip_address(hop)
            except ValueError:
                return None  # a proxy of ours does not say that: nobody is known by it
            if not self._proxied(address):
                return address
        return address

    def _proxied(self, address: Address) -> bool:
        return any(address in network for network in self.rules.proxies)

    def _at_this_machine(self, request: Request, address: Address | None) -> bool:
        """Whether nobody stands between us and a program on this machine that means us by our own name."""
        return (
            is_loopback(address)
            and not any(name in request.headers for name in FORWARDED)
            and means_loopback(request.headers.get("host", ""))
        )

    def judge_origin(self, request: Request) -> None:
        """Refuse a host that is not ours, and what another site makes a browser ask. Raises `Refusal`."""
        host = request.headers.get("host", "")
        if self.rules.hosts is not None and host_name(host) not in self.rules.hosts:
            raise Refusal("wrong_host", "nobody of that name is served here; `hosts` says who is")
        origin = request.headers.get("origin")
        if origin is not None:
            own = origin.partition("://")[2].lower() == host.lower() and bool(host)
            if not own and origin.lower() not in self.rules.origins:
                raise Refusal("cross_origin", "a page of another site asks; `origins` names those that may")
            return
        site = request.headers.get("sec-fetch-site")
        if site in ("cross-site", "same-site"):
            to_look = request.method in SAFE and request.headers.get("sec-fetch-mode") == "navigate"
            if not to_look:
                raise Refusal("cross_origin", "a page of another site asks")

    # -- who -----------------------------------------------------------------------------------------------------------

    async def caller(self, request: Request, route: Route, address: Address | None) -> Caller | None:
        """Return who asks; None for nobody we know. Raises `Refusal` for a token that is none."""
        await self.book.refresh()
        if route.own == "events" and (ticket := request.query_params.get("ticket")):
            return self._by_ticket(ticket, str(address))
        if self.rules.authenticate is not None:
            return await self._by_host(request)
        given = request.headers.get("authorization")
        if given is not None:
            return self._by_token(given, str(address))
        if not self.book.used and self._at_this_machine(request, address):
            scope = Scope.OPERATE if self.rules.loopback_writes else Scope.READ
            return Caller(name="loopback", scope=scope, local=True)
        return None

    async def _by_host(self, request: Request) -> Caller | None:
        authenticate = self.rules.authenticate
        assert authenticate is not None
        if inspect.iscoroutinefunction(authenticate):
            found = await authenticate(request)
        else:
            found = await anyio.to_thread.run_sync(authenticate, request)
            if inspect.isawaitable(found):
                found = await found
        if found is not None and not isinstance(found, Caller):
            raise TypeError(f"authenticate returned a {type(found).__name__}; return a Caller, or None for nobody")
        if found is None or "authorization" in request.headers or "cookie" not in request.headers:
            return found
        return attrs.evolve(found, by_cookie=True)

    def _by_token(self, given: str, address: str) -> Caller:
        kind, _, text = given.partition(" ")
        token = self.book.find(text.strip()) if kind.lower() == "bearer" else None
        if token is None:
            self._failed(address)
            raise Refusal(
                "unauthenticated",
                "this token is unknown, expired or revoked; `selfheal token create` makes another",
                {"WWW-Authenticate": 'Bearer realm="selfheal", error="invalid_token"'},
            )
        services = frozenset(token.services) if token.services is not None else None
        return Caller(name=token.name, scope=token.scope, services=services, token=token.id)

    def _by_ticket(self, ticket: str, address: str) -> Caller:
        caller = self.tickets.redeem(ticket, self.book)
        if caller is None:
            self._failed(address)
            raise Refusal("unauthenticated", "this ticket is used or too old; ask for another at /events/ticket")
        return Caller(**caller)

    def _failed(self, address: str) -> None:
        """Count a failed log-in. Raises `Refusal` when there are too many."""
        if wait := self._failures.take(address):
            raise Refusal("too_many", "too many unknown tokens from your address", {"Retry-After": str(wait)})
        log.warning("somebody at %s came with a token that is not known", address)

    async def still(self, caller: Caller, request: Request) -> bool:
        """Whether who has a stream open would still be let in. Raises whatever `authenticate` raises."""
        await self.book.refresh()
        if caller.token:
            return self.book.by_id(caller.token) is not None
        if self.rules.authenticate is None or "ticket" in request.query_params:
            return not (caller.local and self.book.used)
        found = await self._by_host(request)
        return found is not None and found.name == caller.name

    # -- what ----------------------------------------------------------------------------------------------------------

    def judge(self, request: Request, route: Route, caller: Caller | None) -> None:
        """Refuse who may not use a route, whatever they ask of it. Raises `Refusal`."""
        if route.scope is None:
            return
        if caller is None and self.rules.authenticate is not None:
            raise Refusal("unauthenticated", "log in to the application that serves this, and try again")
        if caller is None or (caller.local and route.scope.value not in caller.scopes):
            raise Refusal("unauthenticated", _hint(route.scope, local=caller is not None), dict(_BEARER))
        if route.scope.value not in caller.scopes:
            raise Refusal("forbidden", f"this needs the scope {route.scope.value}, and yours is {caller.scope.value}")
        if request.method not in SAFE and caller.by_cookie:
            ours = "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"
            if not ours:
                raise Refusal("cross_origin", "with a cookie, what changes something must say which page it comes from")

    def judge_services(self, caller: Caller, request: str, given: Mapping[str, Any]) -> None:
        """Refuse an act on services beyond those a caller is limited to. Raises `Refusal`."""
        if caller.services is None:
            return
        named = {given["service"]} if "service" in given else set(given.get("services") or ())
        if not named or given.get("everything"):
            raise Refusal("forbidden", f"{request} is about more than the services of your token; name those")
        if beyond := sorted(str(name) for name in named if name not in caller.services):
            raise Refusal("forbidden", f"your token is limited to other services than {beyond[0]:.100}")


_BEARER: Final = {"WWW-Authenticate": 'Bearer realm="selfheal"'}


def _hint(scope: Scope, *, local: bool) -> str:
    """Say what to type."""
    line = f"`selfheal token create NAME --scope {scope.value}` makes a token; send it as `Authorization: Bearer TOKEN`"
    if local and scope is Scope.OPERATE:
        return f"without a token nothing is changed over HTTP. {line}. Or say `loopback_writes = true` under [http]"
    return line


__all__ = ["SCOPES", "Access", "Authenticate", "Caller", "Rules", "is_loopback", "networks"]

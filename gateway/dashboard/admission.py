"""Who is let in: the pages are for whoever knows the token, and for no page of anybody else's.

============== ==============================================================================================
``Host``       one that this gateway goes by, or a name of another's server could be led here (DNS rebinding)
``Origin``     none, or the page's own; so ``Sec-Fetch-Site``, of browsers that say it
``Sec-Fetch-`` what is fetched by a script: an answer of an application is shown, and never is a page of its
``Dest``       own or a script, which could read the token
token          of all but the files of the pages
============== ==============================================================================================
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Sequence

from aiohttp import web

from gateway.errors import APIError
from mesh.urls import is_local

__all__ = ["TOKEN_HEADER", "Admission"]

TOKEN_HEADER = "dashboard-token"
_ANYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what is compared with


class Admission:
    """Decides on requests."""

    def __init__(self, token: str | None, listens: Sequence[str]) -> None:
        """Set the rules.

        Args:
            token: To be known; None = everybody on this machine is let in.
            listens: The addresses that the gateway listens on.
        """
        self._token = None if token is None else token.encode()
        self._anywhere = not _ANYWHERE.isdisjoint(each.strip("[]") for each in listens)
        names = {each.strip("[]").casefold() for each in listens}
        self._names = names | ({socket.gethostname().casefold()} if self._anywhere else set())

    def is_foreign(self, request: web.BaseRequest) -> bool:
        """Tell whether a request is for a name that is not this gateway's, or comes from a page that is not."""
        return self._is_misnamed(request) or _is_of_another_site(request)

    def check_host(self, request: web.BaseRequest) -> None:
        """Refuse a request for a name that is not this gateway's.

        Raises:
            APIError: It is for another.
        """
        if self._is_misnamed(request):
            name = _name_of(request.headers.get("Host", ""))[:200] or "no host"
            text = (
                f"{name!r} is none of the dashboard's names; open the address that mesh dashboard has printed, from "
                "elsewhere through a tunnel: ssh -L 8080:127.0.0.1:8080 HOST"
            )
            raise APIError(403, "ERR_DASHBOARD_FOREIGN", text)

    def check_site(self, request: web.BaseRequest) -> None:
        """Refuse what a page of another site asks: it reads no answer, and yet would have done what it asks.

        Raises:
            APIError: It is another's.
        """
        if _is_of_another_site(request):
            site = request.headers.get("Origin", "another site")[:200]
            raise APIError(
                403, "ERR_DASHBOARD_FOREIGN", f"only the dashboard's own pages ask this, not those of {site}"
            )

    def check_page(self, request: web.BaseRequest) -> None:
        """Refuse what is no script of the dashboard's own pages; what is no browser says nothing of all this.

        Raises:
            APIError: It is another's.
        """
        self.check_site(request)
        if request.headers.get("Sec-Fetch-Dest", "empty") != "empty":
            text = "this is data for the dashboard's pages, and is shown by them alone; open /dashboard/"
            raise APIError(403, "ERR_DASHBOARD_FOREIGN", text)

    def check_token(self, request: web.BaseRequest) -> None:
        """Refuse who does not know the token.

        Raises:
            APIError: It is missing, or wrong.
        """
        given = request.headers.get(TOKEN_HEADER)
        if self._token is None or hmac.compare_digest(self._token, (given or "").encode("utf-8", "surrogateescape")):
            return
        what = f"there is no header {TOKEN_HEADER}" if given is None else f"the {TOKEN_HEADER} is not the right one"
        text = f"{what}; the address that mesh dashboard has printed when it started has it, behind #token="
        raise APIError(401, "ERR_DASHBOARD_TOKEN", text)

    def _is_misnamed(self, request: web.BaseRequest) -> bool:
        name = _name_of(request.headers.get("Host", ""))
        return not (name in self._names or is_local(name) or (self._anywhere and _is_address(name)))


def _is_of_another_site(request: web.BaseRequest) -> bool:
    headers = request.headers
    origin, host = headers.get("Origin"), headers.get("Host", "")
    own = origin is None or origin.casefold() in (f"http://{host}".casefold(), f"https://{host}".casefold())
    return not own or headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")


def _name_of(host: str) -> str:
    """Give the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].casefold()
    return host.rpartition(":")[0].casefold() if host.count(":") == 1 else host.casefold()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

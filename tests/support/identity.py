"""An identity provider of a test's own."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import aiohttp
import pytest

from tests.support.server import Server

__all__ = ["IdentityProvider"]


class IdentityProvider(Server):
    """oidc-provider-mock, a provider of OpenID Connect; each start has another key."""

    title = "oidc-provider-mock"

    def __init__(self, directory: Path, *, max_age: int = 3600) -> None:
        """Prepare; entering starts it.

        Args:
            directory: Its own.
            max_age: Seconds that its tokens hold.
        """
        super().__init__(directory)
        cache = Path(os.environ.get("BROKERMESH_SDKS", Path.home() / ".cache/brokermesh-tests/sdks"))
        self._python = next(iter(sorted(cache.glob("oidc-provider-mock-*/bin/python"))), None)
        if self._python is None:
            if os.environ.get("CI"):
                raise FileNotFoundError("oidc-provider-mock is not installed: tests/provision/identity.sh")
            pytest.skip("oidc-provider-mock is not installed")
        self._max_age = max_age

    @property
    def url(self) -> str:
        """Its issuer."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        options = ("--port", str(self.port), "--token-max-age", str(self._max_age), "--user", "somebody")
        return (str(self._python), "-W", "ignore", "-m", "oidc_provider_mock", *options)

    def answers(self) -> bool:
        with urlopen(f"{self.url}/.well-known/openid-configuration", timeout=1.0) as response:
            return bool(response.status == 200)

    async def log_in(self, session: aiohttp.ClientSession, address: str) -> str:
        """Log in where a redirection leads, as somebody in a browser does; give where the provider sends them back."""
        async with session.post(address, data={"sub": "somebody"}, allow_redirects=False) as response:
            assert response.status in (302, 303), await response.text()
            return response.headers["Location"]

    async def token(self, session: aiohttp.ClientSession, client: str) -> str:
        """Give an ID token for a client."""
        back = "http://127.0.0.1:1/back"
        asked = f"client_id={client}&redirect_uri={back}&response_type=code&scope=openid"
        returned = await self.log_in(session, f"{self.url}/oauth2/authorize?{asked}")
        form = {
            "grant_type": "authorization_code",
            "code": parse_qs(urlsplit(returned).query)["code"][0],
            "redirect_uri": back,
        }
        login = {"Authorization": f"Basic {base64.b64encode(f'{client}:secret'.encode()).decode()}"}
        async with session.post(f"{self.url}/oauth2/token", data=form, headers=login) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["id_token"])

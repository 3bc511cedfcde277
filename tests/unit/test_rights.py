"""The rights of a node: all addresses that it sends to and listens to, and no others."""

from __future__ import annotations

from mesh import address
from mesh.address import Address, matches
from mesh.rights import Rights

RIGHTS = Rights("prod", "shop", calls=("stock",), hosted=("store",), control="system")
SHOP, STOCK, BILLING = (address.app("prod", name) for name in ("shop", "stock", "billing"))
STORE, PRINT = address.component("prod", "store"), address.component("prod", "store", "f00d")
SHARED = [getattr(address, name)("prod") for name in ("nodes", "hosts", "keepers", "readers", "taps", "triggered")]
NAMED = [getattr(address, name)("prod", "x") for name in ("asker", "keepers", "seen", "back", "taps")]
NEWS = [address.jobs("prod", "shop"), address.workflows("prod", "shop")]
OWN = [getattr(address, name)("prod", "shop", "n") for name in ("node", "owner", "work")]
BOTH = [*SHARED, *NAMED, *NEWS, *OWN, STORE, PRINT, address.members(PRINT), address.members(SHOP)]
THEIRS = [getattr(address, name)("prod", "stock", "n") for name in ("node", "owner", "work")]
TOLD = [*BOTH, *THEIRS, address.supply("system"), STOCK, address.members(STOCK), address.bindings("prod", "stock")]
HEARD = [*BOTH, SHOP, address.supplied("system", "prod"), address.bindings("prod", "shop")]
OTHERS = [
    address.supply("prod"),
    address.supplied("system", "test"),
    BILLING,
    address.members(BILLING),
    address.app("test", "stock"),
    address.nodes("test"),
    address.jobs("prod", "stock"),
    address.workflows("prod", "stock"),
    address.work("prod", "billing", "n"),
    address.node("prod", "billing", "n"),
]
STORED = {"topic"}  # Is granted by component.


def allowed(patterns: list[str], where: Address) -> bool:
    return any(matches(pattern, where.text) for pattern in patterns)


def test_every_address_is_told_or_heard() -> None:
    assert [each.text for each in TOLD if not allowed(RIGHTS.told, each)] == []
    assert [each.text for each in HEARD if not allowed(RIGHTS.heard, each)] == []


def test_what_is_another_s_is_not() -> None:
    told, heard = (
        [*OTHERS, SHOP, address.supplied("system", "prod")],
        [*OTHERS, address.supply("system"), *THEIRS, STOCK, address.members(STOCK), address.bindings("prod", "stock")],
    )
    assert [each.text for each in told if allowed(RIGHTS.told, each)] == []
    assert [each.text for each in heard if allowed(RIGHTS.heard, each)] == []


def test_no_kind_of_address_is_left_out() -> None:
    """Whoever adds one says here who sends to it, and who listens."""
    returns = {name: getattr(getattr(address, name), "__annotations__", {}).get("return") for name in address.__all__}
    kinds = {name for name, what in returns.items() if what == "Address"} - STORED
    nodes = {"asker", "back", "bindings", "hosts", "keepers", "nodes", "owners", "readers", "seen", "taps", "triggered"}
    supply = {"supplied", "supply"}
    assert (
        kinds
        == {"app", "bridge", "component", "members", "node", "owner", "work", "jobs", "workflows"} | nodes | supply
    )

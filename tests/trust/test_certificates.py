"""Roots, certificates and chains: which name is proven, and which is not."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from gateway.cli.dispatch import main
from mesh.errors import ConfigError, UnprovenError
from mesh.registry import Registry
from mesh.tasks import task_group
from mesh.trust import credential, files
from mesh.trust import folder as folders
from mesh.trust.certificates import (
    AS_OF,
    as_pem,
    check_chain,
    key_as_pem,
    make_root,
    read_certificates,
    read_key,
)
from mesh.trust.credential import Own, Peers, encoded
from mesh.trust.files import guarding
from mesh.trust.folder import Folder
from mesh.trust.identity import Identity, TrustSettings
from mesh.trust.replays import Replays, place_of
from tests.support.eventually import eventually

SHOP = Identity("public", "default", "shop")
URI = str(SHOP)
DAY = datetime.timedelta(days=1)
Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class Maker:
    """Makes any certificate, right or wrong."""

    def __init__(self) -> None:
        self.root, self.root_key = make_root("public", DAY)

    def make(
        self,
        *,
        by: tuple[x509.Certificate, Key] | None = None,
        key: Key | None = None,
        uris: Sequence[str] = (URI,),
        ca: bool = False,
        length: int | None = None,
        signs: bool | None = None,
        since: datetime.timedelta = -DAY,
        until: datetime.timedelta = DAY,
        more: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> tuple[x509.Certificate, Key]:
        issuer, issuer_key = by or (self.root, self.root_key)
        key = key or ed25519.Ed25519PrivateKey.generate()
        now = datetime.datetime.now(datetime.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"n{x509.random_serial_number()}")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
            .add_extension(x509.BasicConstraints(ca, length if ca else None), critical=True)
        )
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("crl_sign", "encipher_only", "decipher_only"), False)
        signs = ca if signs is None else signs
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **usage), critical=True
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(each) for each in uris])
            builder = builder.add_extension(names, critical=False)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical=critical)
        ecdsa = isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        return builder.sign(issuer_key, hashes.SHA256() if ecdsa else None), key


def below(maker: Maker, **settings: object) -> list[x509.Certificate]:
    between, key = maker.make(ca=True, uris=(), **settings)  # type: ignore[arg-type]
    return [maker.make(by=(between, key))[0], between]


GOOD: dict[str, Callable[[Maker], list[x509.Certificate]]] = {
    "by the root": lambda maker: [maker.make()[0]],
    "with the root beside it": lambda maker: [maker.make()[0], maker.root],
    "by one between": below,
    "by one between on P-256": lambda maker: below(maker, key=ec.generate_private_key(ec.SECP256R1())),
    "on P-256": lambda maker: [maker.make(key=ec.generate_private_key(ec.SECP256R1()))[0]],
    "by one that admits none below": lambda maker: below(maker, length=0),
}


@pytest.mark.parametrize("how", GOOD)
def test_a_chain_that_proves_a_name(how: str) -> None:
    maker = Maker()
    assert check_chain(GOOD[how](maker), [Maker().root, maker.root], "public") == SHOP


def test_a_root_among_several_of_one_name_and_key() -> None:
    """As where a root was made anew with its key, and the former one has expired."""
    maker = Maker()
    old, _ = maker.make(by=(maker.root, maker.root_key), key=maker.root_key, ca=True, uris=(), until=-DAY / 2)
    names = {"subject": maker.root.subject, "issuer": maker.root.subject}
    former = _as_root(old, maker.root_key, **names)
    for roots in ([former, maker.root], [maker.root, former]):
        assert check_chain([maker.make()[0]], roots, "public") == SHOP
    with pytest.raises(UnprovenError, match="expired"):
        check_chain([maker.make()[0]], [former], "public")


def _as_root(like: x509.Certificate, key: Key, subject: x509.Name, issuer: x509.Name) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
    for extension in like.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, None)


ODD: dict[str, tuple[bytes, bytes]] = {
    "an algorithm that nobody knows": (b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x7f"),
    "a key for agreement": (b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x6e"),
    "another version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),
    "names of an unknown kind": (b"\x86" + bytes([len(URI)]), b"\x83" + bytes([len(URI)])),
    "times that are none": (b"Z\x17\x0d", b"Y\x17\x0d"),
}


@pytest.mark.parametrize("odd", [*ODD, "any byte", "any byte of one between"])
def test_a_certificate_that_somebody_invents_is_refused_and_nothing_else(odd: str) -> None:
    maker = Maker()
    peers = Peers("public")
    peers.trust([maker.root])
    leaf, between = (each.public_bytes(serialization.Encoding.DER) for each in below(maker))
    if odd in ODD:
        chains = [[each.replace(*ODD[odd]) for each in chain] for chain in ([leaf, between], [leaf])]
        chains += [[leaf, between.replace(*ODD[odd])], [leaf.replace(*ODD[odd]), between]]
        assert any(each != [leaf, between] for each in chains)
    else:
        which = leaf if odd == "any byte" else between
        made = [which[:at] + bytes([which[at] ^ 0x41]) + which[at + 1 :] for at in range(len(which))]
        chains = [[each, between] if which is leaf else [leaf, each] for each in made]
    for chain in chains:
        with pytest.raises(UnprovenError):
            peers.get(encoded(msgspec.msgpack.encode((chain, bytes(range(32)), b"x" * 64))))


def two_between(maker: Maker) -> list[x509.Certificate]:
    first, first_key = maker.make(ca=True, uris=(), length=0)
    second, second_key = maker.make(ca=True, uris=(), by=(first, first_key))
    return [maker.make(by=(second, second_key))[0], second, first]


def by_a_leaf(maker: Maker) -> list[x509.Certificate]:
    leaf, key = maker.make(uris=("spiffe://public/ns/default/evil",))
    return [maker.make(by=(leaf, key))[0], leaf]


BAD: dict[str, tuple[Callable[[Maker], list[x509.Certificate]], str]] = {
    "nothing": (lambda maker: [], "no certificate"),
    "too long": (lambda maker: [maker.make()[0]] * 6, "too long"),
    "another root": (lambda maker: [Maker().make()[0]], "no root"),
    "another root beside it": (lambda maker: [(other := Maker()).make()[0], other.root], "no root"),
    "itself": (lambda maker: [maker.root], "not one SPIFFE id"),
    "by a leaf": (by_a_leaf, "used for what it is not for"),
    "over": (lambda maker: [maker.make(until=-DAY / 2)[0]], "expired"),
    "not yet": (lambda maker: [maker.make(since=DAY / 2)[0]], "expired"),
    "one between that is over": (lambda maker: below(maker, until=-DAY / 2), "expired"),
    "a chain that is too long for one": (two_between, "longer"),
    "a leaf that issues": (lambda maker: [maker.make(ca=True)[0]], "used for"),
    "a leaf that does not sign": (lambda maker: [maker.make(signs=True)[0]], "used for"),
    "an issuer that does not": (lambda maker: below(maker, signs=False), "used for"),
    "in another order": (lambda maker: [maker.make()[0], *below(maker)], "used for"),
    "no name": (lambda maker: [maker.make(uris=())[0]], "not one SPIFFE id"),
    "two names": (lambda maker: [maker.make(uris=(URI, "spiffe://public/ns/default/stock"))[0]], "not one SPIFFE id"),
    "another trust domain": (lambda maker: [maker.make(uris=("spiffe://other/ns/default/shop",))[0]], "trust domain"),
    "no application": (lambda maker: [maker.make(uris=("spiffe://public/shop",))[0]], "not one SPIFFE id"),
    "dots": (lambda maker: [maker.make(uris=("spiffe://public/ns/../shop",))[0]], "not one SPIFFE id"),
    "more than a name": (lambda maker: [maker.make(uris=(f"{URI}/x",))[0]], "not one SPIFFE id"),
    "percent": (lambda maker: [maker.make(uris=("spiffe://public/ns/default/sh%6Fp",))[0]], "not one SPIFFE id"),
    "a critical extension": (
        lambda maker: [maker.make(more=[(x509.NameConstraints([x509.DNSName("a")], None), True)])[0]],
        "critical",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_chain_that_proves_nothing(how: str) -> None:
    maker = Maker()
    make, why = BAD[how]
    with pytest.raises(UnprovenError, match=why):
        check_chain(make(maker), [maker.root], "public")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "ä", "x" * 129])
def test_names_that_can_be_proven_of_nobody(name: str) -> None:
    with pytest.raises(ConfigError, match="SPIFFE"):
        Identity("public", "default", name)
    with pytest.raises(ConfigError):
        Identity(f"Public{name}", "default", "shop")


def test_keys_that_cannot_be_used() -> None:
    for pem in (b"", b"secret words"):
        with pytest.raises(ConfigError, match="no private key") as failed:
            read_key(pem, "key.pem")
        assert "secret words" not in str(failed.value)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(ConfigError, match="of another kind"):
            read_key(key.private_bytes(serialization.Encoding.PEM, *plain), "key.pem")
    with pytest.raises(ConfigError, match="no certificates"):
        read_certificates(b"x", "roots.pem")


def token(number: int) -> str:
    return f"mesh-0123456789{number:x}"


def test_what_came_is_held_until_it_can_come_no_more() -> None:
    replays = Replays(150.0)
    places = [place_of(b"credential", token(number), b"") for number in range(600)]
    assert all(replays.add(each, "a", 1000.0, 0.0) for each in places[::2])
    assert [replays.seen(each) for each in places] == [True, False] * 300
    assert not replays.seen(place_of(b"of another", token(0), b""))
    assert replays.add(places[1], "a", 1151.0, 151.0)
    assert all(map(replays.seen, places[:3]))
    assert replays.add(places[3], "a", 1302.0, 302.0)
    assert [replays.seen(each) for each in places[:4]] == [False, True, False, True]


def test_as_many_are_held_as_a_node_takes_in_its_time() -> None:
    """Thirty thousand a second by ten nodes, of which one instance of three gets its share."""
    replays = Replays(150.0, most=150)
    for number in range(0, 30_000, 3):
        place = place_of(b"node %d" % (number % 10), token(number // 10), b"")
        assert replays.seen(place) or replays.add(place, "a", 1000.0, 0.0)
        assert replays.seen(place)
    assert replays.add(place_of(b"another", token(1), b""), "b", 999.0, 0.0)


@pytest.mark.parametrize("odd", ["", "x", "mesh-evil", "ab\ud800", "a" * 65, "a -1", "aé1"])
def test_any_token_is_held(odd: str) -> None:
    replays = Replays(150.0)
    place = place_of(b"credential", odd, b"digest")
    assert replays.add(place, "a", 1000.0, 0.0)
    assert replays.seen(place)
    assert not replays.seen(place_of(b"credential", f"{odd[:-2]}.00", b"another"))


def test_who_sends_most_is_forgotten_and_nobody_else() -> None:
    replays = Replays(150.0, most=4)

    def add(sender: str, number: int, made: float) -> bool:
        return replays.add(place_of(sender.encode(), token(number * 256), b""), sender, made, 0.0)

    assert add("b", 0, 1000.0)
    assert all(add("a", number, 1000.0 + number) for number in range(3))
    assert add("b", 1, 1001.0)  # There is no room, so what "a" has is forgotten.
    assert replays.seen(place_of(b"b", token(0), b""))
    assert not add("a", 1, 1001.0)  # What may have come is not taken then,
    assert not add("a", 3, 1002.0)
    assert add("a", 3, 1002.5)  # and what is made afterwards is.
    assert add("b", 2, 1000.5)
    assert add("b", 3, 1000.5)  # It is not forgotten that the last one came.
    assert replays.seen(place_of(b"b", token(3 * 256), b""))
    assert not add("b", 4, 1000.5)


def test_there_is_room_for_more_identities_than_are_held() -> None:
    replays = Replays(150.0, most_senders=2)
    places = [place_of(b"%d" % number, token(number), b"") for number in range(3)]
    assert replays.add(places[0], "0", 1000.0, 0.0)
    assert replays.add(places[1], "1", 1001.0, 0.0)
    assert replays.add(places[2], "2", 1000.5, 0.0)
    assert [replays.seen(each) for each in places] == [False, False, True]
    assert not replays.add(places[0], "0", 1000.0, 0.0)
    assert replays.add(places[0], "0", 1001.5, 0.0)


def test_a_root_is_made_rotated_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    folder = Folder(tmp_path / "trust")
    assert main(["trust", "issue", "shop"]) == 1
    assert main(["trust", "init", "--trust-domain", "my domain"]) == 1
    assert main(["trust", "init", "--trust-domain", "Prod", "--ttl", "400d"]) == 0
    assert folder.trust_domain() == "prod"
    left = folder.roots()[0].not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=399) < left <= datetime.timedelta(days=400)
    assert main(["trust", "init"]) == 1
    assert folder.key_file.stat().st_mode & 0o077 == folder.path.stat().st_mode & 0o077 == 0
    out = tmp_path / "out"
    assert main(["trust", "issue", "shop", "--namespace", "ns", "--ttl", "1h", "--out", str(out)]) == 0
    assert (out / "shop.key").stat().st_mode & 0o077 == 0
    chain = read_certificates((out / "shop.pem").read_bytes(), "")
    roots = read_certificates((out / "roots.pem").read_bytes(), "")
    assert check_chain(chain, roots, "prod") == Identity("prod", "ns", "shop")
    assert chain[0].not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(hours=1)
    assert main(["trust", "rotate"]) == 0
    new = folder.issue(Identity("prod", "ns", "shop"))
    for leaf in (chain, new.chain):
        check_chain(leaf, folder.roots(), "prod")
    with pytest.raises(UnprovenError, match="no root"):
        check_chain(new.chain, roots, "prod")
    capsys.readouterr()
    assert main(["trust", "show", "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(each["trustDomain"], each["issues"]) for each in shown] == [("prod", True), ("prod", False)]
    assert main(["trust", "rotate", "--finish"]) == 0
    with pytest.raises(UnprovenError, match="no root"):
        check_chain(chain, folder.roots(), "prod")
    assert main(["trust", "show"]) == 0
    assert "PRIVATE" not in capsys.readouterr().out
    for words in (
        ["issue"],
        ["show", "shop"],
        ["issue", "shop", "--ttl", "-1s"],
        ["issue", "a", "--ttl", "0d"],
        ["lend"],
    ):
        assert main(["trust", *words]) == 2
    folder.key_file.unlink()
    for words in (["issue", "shop"], ["rotate"]):
        assert main(["trust", *words]) == 1


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("begun", ["init", "rotate"])
def test_a_rotation_that_breaks_off_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, at: int
) -> None:
    """At each step: before the key is written, before the root is trusted, and before the key is used."""
    folder = Folder(tmp_path)
    if begun == "rotate":
        folder.init("public")
        leaf = folder.issue(SHOP).chain
    left = at

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise OSError("the power is off")
        left -= 1
        return Path(os.replace(self, target) or target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(Path, "replace", replace)
        folder.rotate() if begun == "rotate" else folder.init("public")
    if begun == "rotate":
        check_chain(folder.issue(SHOP).chain, folder.roots(), "public")
        folder.rotate()
        assert len(folder.roots()) == 2
        for each in (leaf, folder.issue(SHOP).chain):
            check_chain(each, folder.roots(), "public")
        assert folder.issues(folder.roots()[0])
        assert folder.finish() == 1
    elif at == 2:
        with pytest.raises(ConfigError, match="holds a root already"):
            folder.init("public")
    else:
        folder.init("public")
    assert len(folder.roots()) == 1
    check_chain(folder.issue(SHOP).chain, folder.roots(), "public")
    assert [each.name for each in tmp_path.iterdir() if each.stat().st_mode & 0o077] == []


async def test_files_that_somebody_else_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)
    folder, out = Folder(tmp_path / "trust"), tmp_path / "out"
    folder.init("public")

    def issue(app_id: str = "shop") -> None:
        assert main(["trust", "issue", app_id, "--trust-dir", str(folder.path), "--out", str(out)]) == 0

    issue()
    paths = out / "shop.pem", out / "shop.key", out / "roots.pem"
    settings = TrustSettings("strict", "public", None, *paths)
    async with guarding(settings, "default", "shop", Registry()) as guard, task_group():
        first = guard.own
        (out / "shop.pem").write_text("half")
        issue()
        await eventually(lambda: _differ(guard.own, first))
        assert guard.own.identity == SHOP
    issue("other")
    wrong: tuple[tuple[Path, ...], ...] = (
        (out / "other.pem", *paths[1:]),
        (paths[0], out / "other.key", paths[2]),
        (tmp_path / "none", *paths[1:]),
        (paths[2], *paths[1:]),
    )
    for each in wrong:
        with pytest.raises(ConfigError):
            async with guarding(TrustSettings("strict", "public", None, *each), "default", "shop", Registry()):
                raise AssertionError


def test_credentials_of_one_certificate_have_no_others_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has one makes any number of credentials with it."""
    monkeypatch.setattr(credential, "MAX_PEERS", 8)
    folder, peers, now = Folder(tmp_path), Peers("public"), time.time()
    folder.init("public")
    peers.trust(folder.roots())
    shop, busy = Own(folder.issue(SHOP), SHOP), Identity("public", "default", "busy")
    issued = folder.issue(busy)
    peers.get(shop.header)
    peers.signer(shop.header, now)
    owns = [Own(issued, busy) for _ in range(12)]
    for each in owns:
        peers.get(each.header)
        peers.signer(each.header, now)
    assert peers.get(shop.short) is not None
    assert peers.signer(shop.short, now).identity == SHOP
    known = [peers.get(each.short) is not None for each in owns]
    assert known == [False] * 5 + [True] * 7  # What came last is known.
    assert peers.get(owns[0].header) is not None


@pytest.mark.parametrize("of_folder", [False, True])
def test_what_cannot_be_used_now_is_looked_at_again(tmp_path: Path, of_folder: bool) -> None:
    """A file may be away for a moment, and a certificate valid in a moment: neither file changes once more then."""
    folder = Folder(tmp_path / "trust")
    folder.init("public")
    paths = tmp_path / "shop.pem", tmp_path / "shop.key", tmp_path / "roots.pem"

    def write() -> None:
        issued = folder.issue(SHOP)
        parts = as_pem(issued.chain), key_as_pem(issued.key), as_pem(issued.roots)
        for path, data in zip(paths, parts, strict=True):
            path.write_bytes(data)

    write()
    settings = (
        TrustSettings("strict", folder=folder.path) if of_folder else TrustSettings("strict", "public", None, *paths)
    )
    source = files._Source(settings, SHOP)
    former = source.read()
    assert source.changed() is None
    (folder.rotate if of_folder else write)()
    file, change = (folder.roots_file, None) if of_folder else (paths[0], folders.check_chain)
    with pytest.MonkeyPatch.context() as patch:
        if change is None:
            away = tmp_path / "away"
            file.rename(away)
        else:  # As of a time at which it is not valid yet.
            early = datetime.datetime.now(datetime.UTC) - DAY
            patch.setattr(folders, "check_chain", lambda *of: _as_of(early, change, *of))
        for _ in range(2):
            with pytest.raises(ConfigError):
                source.changed()
    if change is None:
        away.rename(file)
    found = source.changed()
    assert found is not None
    assert found.roots != former.roots if of_folder else found.chain != former.chain
    assert source.changed() is None


def _as_of(at: datetime.datetime, check: Callable[..., Identity], *of: object) -> Identity:
    token = AS_OF.set(at)
    try:
        return check(*of)
    finally:
        AS_OF.reset(token)


def test_a_certificate_that_ends_is_told_of(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.init("public")
    source = files._Source(TrustSettings("strict", folder=tmp_path), SHOP)
    for hours, ends in ((24.0, False), (0.01, True)):  # It counts from five minutes before.
        source._issued = folder.issue(SHOP, datetime.timedelta(hours=hours))
        assert bool(source.ending()) is ends


def _differ(one: object, another: object) -> None:
    assert one is not another


@pytest.mark.parametrize("own", [False, True], ids=["of the root", "of the node"])
async def test_a_key_that_others_can_read_is_told(
    open_path: Path, caplog: pytest.LogCaptureFixture, *, own: bool
) -> None:
    """It works, but whoever has it is who it says; nobody else gets at one in a folder that is its owner's."""
    folder, out = Folder(open_path / "trust"), open_path / "out"
    folder.init("public")
    key, settings = folder.key_file, TrustSettings("strict", folder=folder.path)
    if own:
        assert main(["trust", "issue", "shop", "--trust-dir", str(folder.path), "--out", str(out)]) == 0
        key = out / "shop.key"
        settings = TrustSettings("strict", "public", None, out / "shop.pem", key, out / "roots.pem")
    key.parent.chmod(0o755)
    for mode, told in ((0o600, False), (0o640, True), (0o604, True), (0o602, True)):
        key.chmod(mode)
        caplog.clear()
        async with guarding(settings, "default", "shop", Registry()):
            assert (f"read or replace {key}" in caplog.text) == told
    key.parent.chmod(0o700)
    assert not settings.open_keys()


async def test_a_node_with_the_root_renews_itself_and_follows_a_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)
    folder = Folder(tmp_path)
    with pytest.raises(ConfigError, match="mesh trust init"):
        async with guarding(TrustSettings("strict", folder=tmp_path), "default", "shop", Registry()):
            raise AssertionError
    folder.init("public")
    async with guarding(TrustSettings("strict", folder=tmp_path), "default", "shop", Registry()) as guard:
        first = guard.own
        serial = guard.peers.get(first.header).leaf.serial_number  # type: ignore[union-attr]  # It is trusted.
        folder.rotate()
        await eventually(lambda: _differ(guard.own, first))
        second = guard.own  # The certificate is the same: others may not know the new root yet.
        assert guard.peers.get(second.header).leaf.serial_number == serial  # type: ignore[union-attr]
        folder.finish()
        await eventually(lambda: _differ(guard.own, second))
        assert guard.peers.get(guard.own.header).leaf.serial_number != serial  # type: ignore[union-attr]
        with pytest.raises(UnprovenError, match="no root"):
            guard.peers.get(first.header)


@pytest.mark.parametrize("act", [Folder.rotate, Folder.finish])
def test_a_key_of_another_root_changes_no_roots(tmp_path: Path, act: Callable[[Folder], object]) -> None:
    """Whatever that issued so far would be trusted no more, or a root would be used that nobody asked for."""
    folder, other = Folder(tmp_path / "trust"), Folder(tmp_path / "other")
    folder.init("public")
    folder.rotate()
    other.init("public")
    other.key_file.replace(folder.key_file)
    before = folder.roots()
    with pytest.raises(ConfigError, match=r"root\.key is not of a root in .*roots\.pem"):
        act(folder)
    assert folder.roots() == before

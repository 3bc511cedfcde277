"""Keys and documents of the cryptography tests. The documents were written by Dapr 1.18 with these keys."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

__all__ = ["HELLO", "RSA_PEM", "SYMMETRIC", "VECTORS", "write_keys"]

HELLO = b"hello interop"
SYMMETRIC = bytes(range(32))
JWK = b'{"kty":"oct","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}'
_RSA = (
    "MIIEvgIBADANBgkqhkiG9w0BAQEFAASCBKgwggSkAgEAAoIBAQDV7FsowedlfZ13neGkz79Z9FQ99gWjhgatHEZ05HrqebsVwB1d"
    "NM1L/GoeM/PH1I+QeHayHd8hpcW+9y2xsPZryJ3k2p0UWV1v4hLXi9PrDKjcxc4q5QymjvdOLY9TyKG8fWW1/BIe4e0pMBifu8Wg"
    "seLUp2oaOvsd4ysREF+Z6i5wktDiFglUP04PiJLq4n1/WF3BRN64dOyh0j/Mik5wfmMZVIUMN9JAq9nVUEltDRyb/s1tf3eWXr3e"
    "onEMIyGr9ytQKSwHB8FpUlARorQLri1GTPiOV2gNanzw8DuFZag9Fu1muNUTkDauMFbWzKIDe4Do+RoVP95XqZDQ6j4fAgMBAAEC"
    "ggEABdGAZzri5s1EV6kJJpjp7PHqyqai36A5FUNEHVDLkQ4PixdnFQ5nGQ57+mdSVZiP8Q99tvl+BKXEG54QdZlJEoRp2vwhMpj9"
    "pBnjhk5MzMNS4nJU2bDSJ8OSsWMm11IJKB3HAuygt4tQjoK64LlUNjswXrVQ+vaottbjaHroBsEdmAF0bCLk9qFKJ+E95gPKPOXB"
    "SL1KcbjhZF1wV9VXd2XeRhCqWmsad9w7ZKR5klunnQru8Z2uRwCT4do5r8mmMBme022b9c6tCrsyCSEH7ba9Yh2ePF6kuq2ytR0j"
    "16x5YF0sFT/k1sFOdwYwqEgfqC3snqrToXG2VA0uRILK3QKBgQDte7f0lP/B18SBQqU4M4Y5ckjCEKeazZzi8XjJ0dhImKyH3DMk"
    "cTBg/B7lyM4s5Nb/Nql0iVahhtKzXKeN67dwuV1VLGip6ddX+lbTlq0oVciGtGWYhphL2PVtkCvw2PCCX54JhhsN9DK3m4Oe1cUL"
    "XKUPh+Xksg2ACu33ySSVawKBgQDmml5IJUJbFi/cpVX+Z42iYac+RFCwtN5XNSYovseqigCUX2RjG1vDR3dNZck+YNPP4qJBwvc7"
    "NrQy8kY1ojQdRaPUHzzBGkwUfxr44Q/2mW+51egvtFJOEOwQe24OF+kc1yViM3zN/qvPBV4iJGQoz9Q+4lbhwzpxlBwiqUMzHQKB"
    "gGOxpC/QvO0rHxsEV0eYmahUCacuRq390vaSWBqhNSKEtSjzj6Skv6J3NKFSAvtltbu9vrVlUjDM4HbbVpuFcKSprDytP+LUf8o3"
    "FWwNvPNJz7x8zomRNy3gDmfINioNaCnS6g0ldwYMlZ3ucvqi0u1KHyC99AxlkrVF4VA76FexAoGBAMjAKEXMUejz9rSyJpuz0IRF"
    "WRAG7uv2eP0YYuDjvPSE8R45sS3qGkd1RrHVY41vQ9XdKX3wWcRtyg/0BBUa4R1+i7HVg9FjsEnDoVp6q6f1SWNRibFF3MTjTG7I"
    "1TVlsWWPEpdb1VGLXEx8EsfMQHma+93GsvYVPCK2Wov+KGctAoGBAMdZnyads1wrUxCg4BPtC1fkRv3WGuRi56mxaroBsa+JoyEq"
    "GTg750myJFXpQPgYirjKQ7afH3eCyHsv/kPOiyfTIj3ism/P3I6JcAO5aoeNVqVL2bAAXyilB0I2Z2ttCtyRsogh5WaO196VCaAf"
    "HDf8Kyr/Z7/qVthNsi3uPB9g"
)
_LINES = "\n".join(_RSA[start : start + 64] for start in range(0, len(_RSA), 64))
RSA_PEM = f"-----BEGIN PRIVATE KEY-----\n{_LINES}\n-----END PRIVATE KEY-----\n".encode()
_VECTORS = (
    (
        "ZGFwci5pby9lbmMvdjEKeyJrIjoicnNha2V5LnBlbSIsImt3Ijo1LCJ3ZmsiOiJZTTN0VktKUUFxb0kvSk13YnJSTEx2TU83TVQ4"
        "WjB1TmdIQW5hNUVxdGtiSDRJY2xWalYvd2VPbkFmNFJ0QWM0alhjcFBHMDdjWFp3MzBtdVplcmF2RHBUVmtGK3pvUDlCSGpqcktN"
        "Qy9KSndaekhQa0ZUeVcxMFRTbEZ0SXVkQm1Hbm54Z2I1a1NqRkhQcFZaWW56bzcwQmJyTUZCWWxwQkpaWnNkY0RhUVhrTEkxZHNF"
        "a3JIdXlxUXkxWXNXNnN6WExON2plQm1iU2REdVVZZVo5enc3K3JXcDdqd1hnUTJrWnBJVEN5ZFpGTDJaV2dock44Y0xMdU5kbURi"
        "azdVNnFkSlNYOTdvb3FOcVArWDh1a2x6MGdlbUFiaitGaXd4L09SdVpMK3VEWnZ0cThEVjEvWlNLRW5jQXpXcFgwQ3FZRUtaRExR"
        "dURzbzQ3MVhQalhKZ3c9PSIsImNwaCI6MSwibnAiOiJ4dWVZZHMvMVFBPT0ifQp6dTkwL1RkTytCMHNmWWlrZlZKaHllRnVJYy9O"
        "T1RyYlQrcDNaVUxwdTljPQoIDPkCNik+kCUzJbMGbJ17viA+ftCWJy5hcb/uMw=="
    ),
    (
        "ZGFwci5pby9lbmMvdjEKeyJrIjoic3lta2V5Lmpzb24iLCJrdyI6MSwid2ZrIjoiL0xrdXI3UVhWY1A4LzZ3MDVaS2xoY0hjZmkx"
        "eEhLWFBNU3AvMVgxTXE3ejR2dy9SZ3JscFV3PT0iLCJjcGgiOjEsIm5wIjoibmZwRG1hNW5Jdz09In0KR0M2aGtPWGRTOUpDQmRW"
        "WHBpaXRKTkgzNXlsQVc2U3FZd29vZTJMMGM5ST0KS8kwN7LmjWgSNB3HcgismCX+4yK3c2s26o5k5OA="
    ),
    (
        "ZGFwci5pby9lbmMvdjEKeyJrIjoic3lta2V5Lmpzb24iLCJrdyI6MSwid2ZrIjoiUzh5am1Fb2pONVRDOEtpVDBwMmxqay9WT1lG"
        "b25zcTJORHUrOGU2WVYybXVjOGNsRVgzbUhRPT0iLCJjcGgiOjIsIm5wIjoibUJNWDRCVGl3QT09In0KK3loNDhpZEFCdlIwRmlz"
        "TCt5ci9aNFZ0T1VNZ0p3b21mTlBHeTZkK1BScz0K5GH/FqHEnYr6Miqj7XocvXO9sXFm4Q5LjqV9sDM="
    ),
)
VECTORS = tuple(map(base64.b64decode, _VECTORS))


def write_keys(folder: Path) -> Path:
    """Write a folder of keys of every kind; give it."""
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
    pair = serialization.load_pem_private_key(RSA_PEM, None)
    folder.joinpath("rsakey.pem").write_bytes(RSA_PEM)
    folder.joinpath("rsapub.pem").write_bytes(pair.public_key().public_bytes(encoding, public))
    folder.joinpath("symkey.json").write_bytes(JWK)
    folder.joinpath("symkey").write_bytes(SYMMETRIC)
    folder.joinpath("symkey64").write_bytes(base64.b64encode(SYMMETRIC) + b"\n")
    for bits in (128, 192, 384, 512):
        folder.joinpath(f"k{bits}").write_bytes(base64.urlsafe_b64encode(bytes(range(bits // 8))).rstrip(b"="))
    for name, made in (
        ("p256", ec.generate_private_key(ec.SECP256R1())),
        ("p384", ec.generate_private_key(ec.SECP384R1())),
        ("p521", ec.generate_private_key(ec.SECP521R1())),
        ("ed25519", ed25519.Ed25519PrivateKey.generate()),
    ):
        folder.joinpath(f"{name}.pem").write_bytes(made.private_bytes(encoding, private, plain))
    return folder

"""The files of the pages: read as a whole, so that no path of a request ever names one on the disk."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.http.response import Fields, Response

__all__ = ["FOLDER", "INDEX", "TYPES", "Assets"]

FOLDER = Path(__file__).with_name("assets")
INDEX = "index.html"
COMPRESSED_FROM = 1024  # Bytes; less is not worth it.
TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
_PACKED = {".png", ".woff2"}
_NO_GZIP = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)")


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int]
    type: str
    tag: str
    body: bytes
    packed: bytes | None

    @classmethod
    def read(cls, path: Path, stamp: tuple[int, int]) -> _File:
        body = path.read_bytes()
        packed = None
        if len(body) >= COMPRESSED_FROM and path.suffix not in _PACKED:
            packed = gzip.compress(body, mtime=0)
        kind = TYPES.get(path.suffix, "application/octet-stream")
        return cls(stamp, kind, hashlib.blake2s(body, digest_size=12).hexdigest(), body, packed)


class Assets:
    """The files, by their path below the folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Have none before `look`."""
        self._folder = folder
        self._files: dict[str, _File] = {}

    def look(self) -> None:
        """Read what is new or has changed. It blocks."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            if not path.is_file() or path.name.startswith("."):
                continue
            name, state = path.relative_to(self._folder).as_posix(), path.stat()
            stamp = state.st_mtime_ns, state.st_size
            known = self._files.get(name)
            found[name] = known if known is not None and known.stamp == stamp else _File.read(path, stamp)
        self._files = found

    def answer(self, name: str, accepted: str, known: str) -> Response | None:
        """Give a file; None = there is none of that name.

        Args:
            name: Its path below the folder.
            accepted: The request's ``Accept-Encoding``.
            known: The request's ``If-None-Match``.
        """
        file = self._files.get(name)
        if file is None:
            return None
        packed = file.packed if "gzip" in accepted and not _NO_GZIP.search(accepted) else None
        tag = f'"{file.tag}"' if packed is None else f'"{file.tag}-gzip"'
        # Kept, and asked for again each time: a new version of brokermesh shows at once.
        fields: Fields = [("ETag", tag), ("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding")]
        if known == "*" or tag in {each.strip().removeprefix("W/") for each in known.split(",")}:
            return Response(304, fields=fields)
        fields.append(("Content-Type", file.type))
        if packed is not None:
            fields.append(("Content-Encoding", "gzip"))
        return Response(200, file.body if packed is None else packed, fields)

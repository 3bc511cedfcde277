"""What a gateway and an operator say to each other, once it is unsealed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from mesh.supply.names import is_resource_name

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_ASK_BYTES",
    "MAX_DOCUMENTS",
    "MAX_DOCUMENT_BYTES",
    "MAX_LOADED",
    "MAX_PROBLEMS",
    "MAX_SECRETS",
    "MAX_TEXT",
    "MAX_TOKEN",
    "SUPPLY_HEADER",
    "Answer",
    "Ask",
    "Document",
    "Report",
    "Reported",
]

SUPPLY_HEADER = "mesh-supply"
"""Says what a frame is: ``key`` and ``ask`` ask; ``key``, ``answer``, ``malformed`` and ``unknown`` answer."""
MAX_ASK_BYTES = 128 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_DOCUMENTS = 2048
MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_FILE_NAME = 255
MAX_LOADED = 256
MAX_PROBLEMS = 32
MAX_SECRETS = 1024
MAX_TEXT = 512
MAX_TOKEN = 8192
_KIND = re.compile(r"[A-Za-z]{1,63}")


class Document(msgspec.Struct, frozen=True):
    """One resource.

    Attributes:
        kind: As in its text, such as ``Component``.
        name: Likewise.
        namespace: Likewise.
        text: YAML, without status and managed fields. Lines of problems count in it.
    """

    kind: str
    name: str
    namespace: str
    text: str

    @property
    def file(self) -> str:
        """The name of its file; raises ``ValueError``, as where a name would lead out of the folder."""
        if not _KIND.fullmatch(self.kind) or not is_resource_name(self.name):
            raise ValueError(f"{self.kind[:MAX_TEXT]!r} {self.name[:MAX_TEXT]!r} cannot be the name of a resource")
        file = f"{self.kind.lower()}-{self.name}.yaml"
        if len(file) > MAX_FILE_NAME:
            raise ValueError(f"the name of {self.kind} {self.name} is too long: a file is to be named by it")
        return file

    @property
    def problem(self) -> str:
        """Why no gateway takes it; empty = each does."""
        try:
            file = self.file
        except ValueError as error:
            return str(error)
        return f"{file} is longer than {MAX_DOCUMENT_BYTES} bytes" if len(self.text) > MAX_DOCUMENT_BYTES else ""


class Reported(msgspec.Struct, frozen=True):
    """What is wrong with a document, at the gateway that says so.

    Attributes:
        kind: Of the document; empty where it is about all of them.
        name: Likewise.
        field: Path within it, such as ``spec.metadata[0].value``; empty when unknown.
        line: From 1, in the document's text; 0 when unknown.
        text: What is wrong, and the next step.
    """

    kind: str
    name: str
    field: str = ""
    line: int = 0
    text: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a gateway made of what it was given.

    Attributes:
        revision: Of what it has; empty when it has nothing yet.
        loaded: ``Kind/name`` of the documents that are in use, in order; at most `MAX_LOADED`.
        problems: What is wrong; at most `MAX_PROBLEMS`.
        version: Of the gateway.
    """

    revision: str = ""
    loaded: tuple[str, ...] = ()
    problems: tuple[Reported, ...] = ()
    version: str = ""


class Ask(msgspec.Struct, frozen=True):
    """What a gateway says.

    Attributes:
        token: Of the pod's service account, for the audience ``mesh``.
        app_id: Whose gateway it is; the operator goes by the pod, and says when it differs.
        namespace: Likewise.
        pod: The pod's name; the token must be bound to it.
        made: Unix time in seconds.
        key: Of the certificate that is to be issued (Ed25519, 32 bytes); empty = none is asked for.
        proof: That it has the private key: a signature over what ties it to this ask.
        have: The revision of what it has; empty = none.
        report: What it made of that.
    """

    token: str
    app_id: str
    namespace: str
    pod: str
    made: float
    key: bytes = b""
    proof: bytes = b""
    have: str = ""
    report: Report = Report()


class Answer(msgspec.Struct, frozen=True):
    """What an operator says.

    Attributes:
        refused: Why there is nothing else; empty = it is not refused.
        revision: Of what is supplied.
        documents: All of them; None = they are as the gateway has them, and so are the secrets.
        secrets: What the documents refer to, by name and key.
        chain: The certificate that was asked for, first (DER); empty = none was, or identities are off.
        roots: Who is trusted (DER), from now on also as the operator.
    """

    refused: str = ""
    revision: str = ""
    documents: tuple[Document, ...] | None = None
    secrets: Mapping[str, Mapping[str, bytes]] = {}
    chain: tuple[bytes, ...] = ()
    roots: tuple[bytes, ...] = ()

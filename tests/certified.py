"""Certificates of authorities that are made for a test, as files and in clients."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Identity:
    """The files of a TLS server on the loopback address, which can be renewed."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.authority = authority
        self.cert = folder / "server.pem"
        self.key = folder / "server.key"
        self.client_ca = folder / "clients.pem"
        self.renew()
        authority.cert_pem.write_to_path(self.client_ca)

    @property
    def pair(self) -> dict[str, Path]:
        return {"certfile": self.cert, "keyfile": self.key}

    def renew(self, authority: trustme.CA | None = None) -> None:
        """Write a new pair, by default of the same authority."""
        issued = (authority or self.authority).issue_cert("127.0.0.1")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)


def client_context(trusted: trustme.CA, signed_by: trustme.CA | None = None) -> ssl.SSLContext:
    """Return what a client trusts, and shows when an authority is given."""
    context = ssl.create_default_context()
    trusted.configure_trust(context)
    if signed_by is not None:
        signed_by.issue_cert("prometheus@example.org").configure_cert(context)
    return context

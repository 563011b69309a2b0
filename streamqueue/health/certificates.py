"""The certificates of a TLS server, read again when their files change."""

from __future__ import annotations

import os
import ssl
import threading
from typing import TYPE_CHECKING, Never

from .. import plain
from ..errors import ConfigurationError

if TYPE_CHECKING:
    StrPath = str | os.PathLike[str]

logger = plain.logger("streamqueue.health")


class Certificates:
    """What a server shows its clients, and whom it lets in. TLS 1.2 or newer.

    Args:
        certfile: PEM: the server's certificate, then the authorities between it and the root.
        keyfile: PEM: its private key, without a passphrase. None when `certfile` holds it too.
        client_ca: PEM: the authorities one of which must have signed a client's certificate. None
            asks clients for no certificate.

    Raises:
        ConfigurationError: a file cannot be read or is not what it should be, or the key is not
            that of the certificate.
    """

    def __init__(
        self, certfile: StrPath, keyfile: StrPath | None = None, client_ca: StrPath | None = None
    ) -> None:
        self._cert = os.fspath(certfile)
        self._key = self._cert if keyfile is None else os.fspath(keyfile)
        self._client_ca = None if client_ca is None else os.fspath(client_ca)
        # Before the files are read: what is written in between is found by the next look.
        self._seen = self._stamps()
        self._complained_of = self._seen
        self._context = self._read()
        self._turn = threading.Lock()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next client: of the files as they are now.

        Renewed files that cannot be used, perhaps because only one of a pair is written yet, are
        logged once and tried again with every client; until then the last good ones are in use.
        Safe to call from any thread.
        """
        # While another thread reads, nobody waits for it: what there is, is good.
        if self._turn.acquire(blocking=False):
            try:
                self._renew()
            finally:
                self._turn.release()
        return self._context

    def _renew(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        try:
            self._context = self._read()
        except ConfigurationError as error:
            if stamps != self._complained_of:
                logger.error(
                    "Going on with the previous certificates: %s",
                    error,
                    extra={"event": "certificates_refused"},
                )
            self._complained_of = stamps
        else:
            self._seen = stamps
            logger.info("Read the renewed certificates", extra={"event": "certificates_renewed"})

    def _stamps(self) -> list[tuple[int, ...] | None]:
        paths = [self._cert, self._key, *([] if self._client_ca is None else [self._client_ca])]
        return [_stamp(path) for path in paths]

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _check(self._cert, "certificate", "CERTIFICATE")
        _check(self._key, "private key", "PRIVATE KEY")
        try:
            context.load_cert_chain(self._cert, self._key, password=self._refuse_passphrase)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"the certificate {self._cert} and the private key {self._key} do not go together "
                f"or are damaged ({_reason(error)}): give a PEM pair that was made together"
            ) from error
        except OSError as error:
            raise _unreadable(self._cert, "certificate or its key", error) from error
        if self._client_ca is not None:
            self._ask_for_client_certificates(context, self._client_ca)
        return context

    def _ask_for_client_certificates(self, context: ssl.SSLContext, path: str) -> None:
        what = "client authority"
        _check(path, what, "CERTIFICATE")
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"the {what} in {path} is damaged ({_reason(error)}): give a file of PEM "
                "certificates"
            ) from error
        except OSError as error:
            raise _unreadable(path, what, error) from error
        context.verify_mode = ssl.CERT_REQUIRED
        # What the file names is trusted, also when it is signed by a root that the file leaves out.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    def _refuse_passphrase(self) -> Never:
        # OpenSSL would ask for it on the terminal, and wait.
        raise ConfigurationError(
            f"the private key {self._key} has a passphrase: give one without, which only this user "
            "may read"
        )


def _stamp(path: str) -> tuple[int, ...] | None:
    """Return what differs once a file is written again, or replaced, or linked elsewhere."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)


def _check(path: str, what: str, label: str) -> None:
    """Find the mistakes that OpenSSL does not tell apart."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise _unreadable(path, what, error) from error
    if f"{label}-----".encode() not in content:
        raise ConfigurationError(
            f"there is no {what} in {path}: give a PEM file, which has a line that ends in "
            f"{label}-----"
        )


def _unreadable(path: str, what: str, error: OSError) -> ConfigurationError:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return ConfigurationError(
        f"cannot read the {what} {path!r}, {reason}: give a PEM file that this user may read"
    )


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()

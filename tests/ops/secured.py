"""A replica set that lets nobody in without a password, or speaks nothing but TLS, and its users.

Starts as the package's own embedded server does. Access control is on from the first moment, and
the first user is made through the exception that the server makes for the loopback interface; TLS
is optional until the set is initiated, and then required (``tlsMode`` only ever gets stricter).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import trustme
from pymongo import MongoClient

from streamqueue.embedded import EmbeddedServer

ROLES = Path(__file__).parents[2] / "deploy" / "mongodb" / "roles"
PLACEHOLDER = "JOBS_DATABASE"
ADMIN = "admin"

Role = dict[str, Any]


@dataclass(frozen=True)
class SecuredServer:
    """A server with access control.

    Attributes:
        port: on 127.0.0.1.
        client: logged in as one who may do everything.
        password: of that one.
        options: what every address of this server ends with.
    """

    port: int
    client: MongoClient[dict[str, Any]]
    password: str = field(repr=False)
    options: str = ""

    @property
    def host(self) -> str:
        """Where it listens, as it stands in an address."""
        return f"127.0.0.1:{self.port}"

    def address(
        self, user: str = ADMIN, password: str | None = None, *, database: str = "test"
    ) -> str:
        """Return what to connect with as that user."""
        password = self.password if password is None else password
        return (
            f"mongodb://{quote_plus(user)}:{quote_plus(password)}@{self.host}/{database}"
            f"?replicaSet=rs0&authSource=admin{self.options}"
        )

    def user(self, database: str, *roles: Role) -> str:
        """Make a user with these roles, and return the address for that database."""
        name, password = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
        for role in roles:
            self.client.admin.command(role)
        names = [role["createRole"] for role in roles]
        self.client.admin.command("createUser", name, pwd=password, roles=names)
        return self.address(name, password, database=database)


def role(name: str, database: str) -> Role:
    """Return a role as it is shipped, for that database and under a name of its own."""
    text = (ROLES / f"{name}.json").read_text(encoding="utf-8")
    shipped: Role = json.loads(text.replace(PLACEHOLDER, database))
    return shipped | {"createRole": f"{shipped['createRole']}-{secrets.token_hex(4)}"}


def actions(role: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return what the role may do: pairs of a collection and an action."""
    return {
        (privilege["resource"]["collection"], action)
        for privilege in role["privileges"]
        for action in privilege["actions"]
    }


def without(role: Role, collection: str, action: str) -> Role:
    """Return the role without one of its actions."""
    privileges = [
        privilege | {"actions": [name for name in privilege["actions"] if name != action]}
        if privilege["resource"]["collection"] == collection
        else privilege
        for privilege in role["privileges"]
    ]
    return role | {"privileges": [privilege for privilege in privileges if privilege["actions"]]}


@dataclass(frozen=True)
class Authority:
    """Who signs certificates, and files with what was signed.

    Attributes:
        ca: the file with the authority's own certificate.
    """

    folder: Path
    ca: Path
    signer: trustme.CA = field(repr=False)

    @classmethod
    def new(cls, folder: Path) -> Authority:
        """Make one whose files are in that folder."""
        folder.mkdir(parents=True, exist_ok=True)
        signer = trustme.CA()
        signer.cert_pem.write_to_path(str(folder / "ca.pem"))
        return cls(folder, folder / "ca.pem", signer)

    def issue(self, *names: str, **settings: Any) -> Path:
        """Return a file with a new certificate for these names, and its key."""
        path = self.folder / f"{secrets.token_hex(4)}.pem"
        self.signer.issue_cert(*names, **settings).private_key_and_cert_chain_pem.write_to_path(
            str(path)
        )
        path.chmod(0o600)
        return path


@contextmanager
def secured(folder: Path) -> Iterator[SecuredServer]:
    """Run a replica set with access control; its key is kept in the folder."""
    with _started(folder, []) as server:
        yield server


@contextmanager
def encrypted(
    folder: Path, *, client_certificates: bool = False
) -> Iterator[tuple[SecuredServer, Authority]]:
    """Run a replica set with access control that speaks nothing but TLS.

    Its certificate is for 127.0.0.1 alone. With `client_certificates` it asks for one.
    """
    authority = Authority.new(folder / "authority")
    arguments = [
        *("--tlsMode", "allowTLS", "--tlsCAFile", str(authority.ca)),
        *("--tlsCertificateKeyFile", str(authority.issue("127.0.0.1"))),
    ]
    mine = {"tlsCAFile": str(authority.ca)}
    if client_certificates:
        mine["tlsCertificateKeyFile"] = str(authority.issue(common_name=ADMIN))
    else:
        arguments.append("--tlsAllowConnectionsWithoutCertificates")
    options = f"&tls=true&tlsCAFile={quote_plus(str(authority.ca))}"
    with _started(folder, arguments, options, tls=True, **mine) as server:
        for mode in ("preferTLS", "requireTLS"):
            server.client.admin.command("setParameter", 1, tlsMode=mode)
        yield server, authority


@contextmanager
def _started(
    folder: Path, arguments: Sequence[str], options: str = "", **settings: Any
) -> Iterator[SecuredServer]:
    key, password = folder / "key", secrets.token_hex(8)
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    with EmbeddedServer(options=("--auth", "--keyFile", str(key), *arguments)) as server:
        with MongoClient[dict[str, Any]](server.uri) as nobody:
            nobody.admin.command("createUser", ADMIN, pwd=password, roles=["root"])
        user: dict[str, Any] = {"username": ADMIN, "password": password}
        with MongoClient[dict[str, Any]](server.uri, tz_aware=True, **user, **settings) as client:
            yield SecuredServer(server.port, client, password, options)

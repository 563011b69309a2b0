"""The shape of the package: one order of imports, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import streamqueue

PACKAGE = Path(streamqueue.__file__).parent

ORDER = [
    "errors",
    "connection",
    "durations",
    "backoff",
    "options",
    "clock",
    "outage",
    "document",
    "tracing",
    "put",
    "operations",
    "observations",
    "stuck",
    "server",
    "stream",
    "job",
    "buckets",
    "series",
    "metrics",
    "health",
    "certificates",
    "health_connection",
    "health_server",
    "health_app",
    "notify",
    "group_commit",
    "_supervisor",
    "embedded",
    "diagnosis",
    "logs",
    "store",
    "async_store",
    "census",
    "state",
    "exporter",
    "doorbell",
    "async_doorbell",
    "queue",
    "async_queue",
    "watcher",
    "worker.slots",
    "worker.feed",
    "worker.seat",
    "worker.table",
    "worker.peers",
    "worker.backlog",
    "worker.handler",
    "worker.lease",
    "worker.completer",
    "worker.threads",
    "worker.execution",
    "worker.hand",
    "worker.claimer",
    "worker.timers",
    "worker.dealer",
    "worker.reaper",
    "worker.run",
    "worker.runtime",
    "worker.supervised",
    "worker.processes",
    "worker",
    "__init__",
    "testing",
    "pulse",
    "tables",
    "top",
    "demo",
    "bench",
    "loading",
    "flags",
    "commands",
    "cli",
    "__main__",
]
"""Every module, after all that it may import. A new one must be given its place here; those of
``bench`` share one, because nothing but the command line uses them."""

TYPES_FROM_LATER = {("worker.lease", "worker.completer")}
"""Imports against the order, for annotations only: an attempt asks the completer to end it, and the
completer ends attempts."""

TALKS_TO_MONGODB = {
    *("store", "async_store", "doorbell", "async_doorbell", "queue", "async_queue", "watcher"),
    *("worker.peers", "worker.backlog", "worker.claimer", "worker.completer", "worker.lease"),
    *("census", "exporter", "pulse", "embedded", "diagnosis", "demo", "bench", "commands"),
}
COMMANDS = {
    "aggregate",
    "bulk_write",
    "command",
    "count_documents",
    "create_index",
    "create_indexes",
    "delete_many",
    "delete_one",
    "distinct",
    "drop_index",
    "drop_indexes",
    "estimated_document_count",
    "find_one",
    "find_one_and_delete",
    "find_one_and_replace",
    "find_one_and_update",
    "insert_many",
    "insert_one",
    "list_indexes",
    "replace_one",
    "start_session",
    "update_many",
    "update_one",
    "watch",
}


class Import(NamedTuple):
    importer: str
    imported: str
    types_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def place(name: str) -> str:
    """What stands for a module in the order."""
    return "bench" if name.startswith("bench.") else name


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_statements(
    node: ast.AST, types_only: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import in a module, in functions too, and whether it is for annotations only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, types_only
        yield from import_statements(child, types_only or is_type_checking(child))


def imports_of(importer: str) -> Iterator[Import]:
    """What a module imports from the package."""
    is_package = (PACKAGE / Path(*importer.split(".")) / "__init__.py").exists()
    here = [] if importer in ("__init__", "__main__") else importer.split(".")
    folder = here if is_package else here[:-1]
    for statement, types_only in import_statements(SOURCES[importer]):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                first, _, rest = alias.name.partition(".")
                if first == "streamqueue":
                    yield Import(importer, rest or "__init__", types_only)
            continue
        if statement.level:
            base = folder[: len(folder) - statement.level + 1]
            base += statement.module.split(".") if statement.module else []
        elif statement.module and statement.module.split(".")[0] == "streamqueue":
            base = statement.module.split(".")[1:]
        else:
            continue
        for alias in statement.names:
            name = ".".join([*base, alias.name])
            imported = name if name in SOURCES else ".".join(base) or "__init__"
            yield Import(importer, imported, types_only)


IMPORTS = sorted({found for name in SOURCES for found in imports_of(name)})


def test_every_module_has_its_place_in_the_order() -> None:
    assert {place(name) for name in SOURCES} - set(ORDER) == set()


def test_no_module_has_two_places() -> None:
    assert len(ORDER) == len(set(ORDER))


def test_imports_are_found() -> None:
    # The tests below would pass with none.
    assert Import("async_queue", "group_commit", False) in IMPORTS
    assert Import("worker.claimer", "worker.completer", True) in IMPORTS
    assert Import("queue", "operations", False) in IMPORTS
    assert Import("worker.runtime", "options", False) in IMPORTS
    assert Import("cli", "__init__", False) in IMPORTS


def against_the_order(types_only: bool) -> set[tuple[str, str]]:
    return {
        (found.importer, found.imported)
        for found in IMPORTS
        if found.types_only == types_only
        and ORDER.index(place(found.imported)) >= ORDER.index(place(found.importer))
        and not place(found.imported) == place(found.importer) == "bench"
    }


def test_a_module_imports_only_what_stands_before_it() -> None:
    assert against_the_order(types_only=False) == set()


def test_annotations_follow_the_same_order_with_one_exception() -> None:
    assert against_the_order(types_only=True) == TYPES_FROM_LATER


@pytest.mark.parametrize("module", ["asyncio", "pickle", "marshal", "shelve", "dill", "trio"])
def test_no_module_imports(module: str) -> None:
    importers = {
        name
        for name, source in SOURCES.items()
        for statement, _ in import_statements(source)
        for imported in (
            [alias.name for alias in statement.names]
            if isinstance(statement, ast.Import)
            else [statement.module or ""]
        )
        if imported.split(".")[0] == module
    }

    assert importers == set()


@pytest.mark.parametrize("function", ["eval", "exec", "compile", "__import__"])
def test_no_module_calls(function: str) -> None:
    callers = {
        name
        for name, source in SOURCES.items()
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == function
    }

    assert callers == set()


@pytest.mark.parametrize("setting", ["tlsinsecure", "tlsallowinvalid", "cert_none"])
def test_no_module_makes_tls_accept_anybody(setting: str) -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

    assert [name for name, source in sources.items() if setting in source.lower()] == []


def test_only_the_shells_and_the_engine_talk_to_mongodb() -> None:
    talkers = {
        place(name)
        for name, source in SOURCES.items()
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in COMMANDS
    }

    assert talkers <= TALKS_TO_MONGODB


@pytest.mark.parametrize(
    "module",
    ["operations", "observations", "document", "put", "backoff", "durations", "job", "tracing"],
)
def test_what_is_said_to_be_pure_looks_at_no_clock(module: str) -> None:
    modules = {
        alias.name if isinstance(statement, ast.Import) else f"{statement.module}.{alias.name}"
        for statement, types_only in import_statements(SOURCES[module])
        if not types_only
        for alias in statement.names
    }
    calls = {
        node.func.attr
        for node in ast.walk(SOURCES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }

    assert not {name for name in modules if name.split(".")[0] in ("time", "clock")}
    assert not {"now", "utcnow", "today"} & calls


def test_no_module_prints_but_the_command_line() -> None:
    printers = {
        place(name)
        for name, source in SOURCES.items()
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }

    assert printers <= {"cli", "commands", "top", "demo", "bench", "_supervisor"}

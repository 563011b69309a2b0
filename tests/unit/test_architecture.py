"""The shape of the package: one order of imports, and what no module may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import streamqueue

PACKAGE = Path(streamqueue.__file__).parent

ORDER = [
    "errors",
    "plain",
    "passwords",
    "failures",
    "tracebacks",
    "running",
    "logs",
    "uri",
    "durations",
    "backoff",
    "names",
    "options",
    "clock",
    "driver",
    "exporter.roll",
    "outage",
    "signals",
    "interpreter",
    "protocol.progress",
    "protocol.stored",
    "protocol.steps",
    "protocol.limits",
    "protocol.slots",
    "protocol.settings",
    "protocol.rates",
    "protocol.topics",
    "protocol.document",
    "protocol.schema",
    "protocol.foreign",
    "protocol.trace",
    "protocol.fitting.kinds",
    "protocol.fitting.values",
    "protocol.fitting.libraries",
    "protocol.fitting.readers",
    "protocol.fitting.stored",
    "protocol.payload",
    "protocol.mongoqueue",
    "protocol.result",
    "protocol.calls",
    "protocol.tasks",
    "protocol.terms",
    "protocol.unique",
    "protocol.dependencies",
    "protocol.put",
    "protocol.puts",
    "protocol.ticks",
    "protocol.schedules",
    "protocol.operations.commands",
    "protocol.operations.expressions",
    "protocol.operations.keys.holding",
    "protocol.operations.replies",
    "protocol.operations.transitions",
    "protocol.operations.queues",
    "protocol.operations.attempts",
    "protocol.operations.cancels",
    "protocol.operations.claims",
    "protocol.operations.limits",
    "protocol.operations.held_back",
    "protocol.operations.misfits",
    "protocol.operations.timers",
    "protocol.operations.waiting",
    "protocol.operations.expiry",
    "protocol.operations.awaited",
    "protocol.operations.dependencies",
    "protocol.operations.looks",
    "protocol.operations.emptiness",
    "protocol.operations.deaths",
    "protocol.operations.earlier",
    "protocol.operations.consumers",
    "protocol.operations.rates",
    "protocol.operations.settings.queues",
    "protocol.operations.settings.topics",
    "protocol.operations.settings.schedules",
    "protocol.operations.passing_time",
    "protocol.operations.keys.unique",
    "protocol.operations.indexes",
    "protocol.operations.events",
    "protocol.operations",
    "exporter.queries",
    "exporter.limit_queries",
    "exporter.counts",
    "exporter.settings",
    "store.collection",
    "store.refused",
    "store.given_up",
    "store.write_limit",
    "stream.verdict",
    "queue.flow",
    "queue.outcome",
    "queue.holder",
    "queue.lines",
    "queue.view",
    "queue.info",
    "queue.parents",
    "queue.steps",
    "queue.job",
    "metrics.buckets",
    "metrics.bundles",
    "metrics.series",
    "health.renderings",
    "health.health",
    "health.certificates",
    "health.places",
    "health.connection",
    "health.http",
    "health.server",
    "health.app",
    "health.systemd",
    "store.group_commit",
    "embedded._supervisor",
    "embedded.binary",
    "embedded.causes",
    "embedded.mongod",
    "embedded.replica_set",
    "embedded.server",
    "embedded",
    "cli.diagnosis",
    "store.indexes",
    "store.lines",
    "store.known_settings",
    "store.starts",
    "store.turns",
    "store.ruled",
    "store.left",
    "store.state",
    "store.flows.steps",
    "store.flows.changes",
    "store.flows.stored_steps",
    "store.flows.dependencies",
    "store.flows.unique",
    "store.flows.setting_up",
    "store.flows.settings",
    "store.flows.held_back",
    "store.flows.timers",
    "store.flows.misfits",
    "store.flows.head",
    "store.flows.rates",
    "store.flows.ruled",
    "store.flows.claims",
    "store.blocking",
    "store.answered",
    "store.moments",
    "store.asynchronous",
    "store.rights",
    "store.first_answer",
    "store.present_settings",
    "exporter.discovery",
    "exporter.limits",
    "exporter.census",
    "exporter.collector",
    "exporter.exporter",
    "stream.doorbell",
    "stream.async_doorbell",
    "stream.ends",
    "stream.async_ends",
    "queue.ends",
    "queue.steering.present_settings",
    "queue.unique",
    "queue.dependencies",
    "queue.producer",
    "queue.transactions",
    "queue.publisher",
    "queue.steering.canceller",
    "queue.steering.steering",
    "queue.consumer",
    "queue.steering.limiting",
    "queue.steering.pausing",
    "queue.looking",
    "queue.answers.waits",
    "queue.answers.waiting",
    "queue.answers.answers",
    "queue.blocking",
    "queue.shielded",
    "queue.asynchronous",
    "queue.topic",
    "queue.schedules.info",
    "queue.schedules.changes",
    "queue.schedules.schedules",
    "stream.watcher",
    "worker.slots",
    "worker.sharing.fairness",
    "worker.sharing.shares",
    "worker.source",
    "worker.partition",
    "worker.sharing.lanes",
    "worker.rules.queues",
    "worker.backlog",
    "worker.failing",
    "worker.handler",
    "worker.handler_types",
    "worker.annotations",
    "worker.queues",
    "worker.nearest",
    "worker.execution.attempt",
    "worker.execution.threads",
    "worker.execution.tasks",
    "worker.deaths",
    "worker.leases",
    "worker.ends",
    "worker.steps",
    "worker.completer",
    "worker.execution.begun",
    "worker.execution.middleware",
    "worker.execution.time_limits",
    "worker.execution.processes",
    "worker.execution.blocked",
    "worker.execution.unbegun",
    "worker.execution.batches",
    "worker.execution.outcomes",
    "worker.execution.executor",
    "worker.intake",
    "worker.delivery",
    "worker.claims",
    "worker.claimer",
    "worker.until_empty",
    "worker.scheduler",
    "worker.misfits",
    "worker.reaper",
    "worker.execution.runners",
    "worker.listener",
    "worker.drain",
    "worker.rules.declaration",
    "worker.tasks.function",
    "worker.schedules.declared",
    "worker.schedules.firing",
    "worker.schedules.declaration",
    "worker.schedules.schedules",
    "worker.lifespan",
    "worker.settings",
    "worker.schedules.declaring",
    "worker.parts",
    "worker.run",
    "worker.handling",
    "worker.tasks.tasking",
    "worker.worker",
    "processes.messages",
    "processes.frames",
    "processes.members",
    "processes.subscriber",
    "processes.waiting_jobs",
    "processes.dispatcher",
    "processes.child",
    "processes.process",
    "processes.supervisor",
    "processes.reloading",
    "worker",
    "__init__",
    "testing.plugin",
    "testing.passing_time",
    "testing.runs",
    "testing.made_jobs",
    "testing",
    "cli.command",
    "cli.completion",
    "cli.monitor.pulse",
    "cli.tables",
    "cli.monitor.top",
    "cli.demo",
    "bench",
    "cli.loading",
    "cli.connection",
    "cli.options",
    "cli.given",
    "cli.begin",
    "cli.exits",
    "cli.local",
    "cli.setup",
    "cli.services",
    "cli.jobs",
    "cli.monitor.monitor",
    "cli.monitor.stats",
    "cli.steering",
    "cli.dead",
    "cli.schedules",
    "cli.limits",
    "cli.topics",
    "cli.migrate",
    "cli.main",
    "__main__",
]
"""Every module, after all that it may import. A new one must be given its place here; those of
``bench`` share one, because nothing but the command line uses them."""

ROOMS = [
    *(
        "errors",
        "durations",
        "backoff",
        "clock",
        "driver",
        "names",
        "plain",
        "passwords",
        "failures",
    ),
    *("tracebacks", "running", "outage", "signals", "interpreter", "uri", "options", "logs"),
    *("protocol", "metrics", "health", "stream", "store", "queue", "exporter", "worker"),
    *("processes", "embedded", "__init__", "testing", "bench", "cli", "__main__"),
]
"""The packages, and the modules beside them, after all that they may import."""


TALKS_TO_MONGODB = {
    *(
        "store.blocking",
        "store.asynchronous",
        "store.moments",
        "stream.doorbell",
        "stream.async_doorbell",
        "stream.ends",
        "stream.async_ends",
        "queue.blocking",
        "queue.asynchronous",
        "queue.dependencies",
        "queue.ends",
        "queue.unique",
        "queue.producer",
        "queue.transactions",
        "queue.publisher",
        "queue.steering.canceller",
        "queue.steering.steering",
        "queue.consumer",
        "queue.looking",
        "queue.schedules.changes",
        "stream.watcher",
    ),
    *(
        "worker.partition",
        "worker.backlog",
        "worker.delivery",
        "worker.until_empty",
        "worker.completer",
        "worker.ends",
        "worker.leases",
        "worker.schedules.firing",
        "worker.schedules.declaration",
        "worker.schedules.schedules",
    ),
    *(
        "exporter.discovery",
        "exporter.limits",
        "exporter.census",
        "exporter.exporter",
        "cli.monitor.pulse",
        "embedded.replica_set",
        "cli.diagnosis",
        "cli.demo",
        "bench",
        "cli.setup",
    ),
    *("cli.dead", "cli.migrate"),
    *("testing.plugin", "testing.passing_time"),
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
    module_name(path): source
    for path in sorted(PACKAGE.rglob("*.py"))
    if len((source := ast.parse(path.read_text(encoding="utf-8"))).body) > 1  # not a docstring only
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
        if isinstance(child, ast.expr):  # most of what there is, and no place for an import
            continue
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
    assert Import("queue.asynchronous", "store.group_commit", False) in IMPORTS
    assert Import("worker.claimer", "worker.delivery", True) in IMPORTS
    assert Import("queue.consumer", "protocol.operations", False) in IMPORTS
    assert Import("worker.worker", "options", False) in IMPORTS
    assert Import("cli.main", "__init__", False) in IMPORTS


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


def test_rooms_import_one_way() -> None:
    between = {(name.importer.split(".")[0], name.imported.split(".")[0]) for name in IMPORTS}

    assert {room for pair in between for room in pair} <= set(ROOMS)
    assert not {(one, other) for one, other in between if ROOMS.index(other) > ROOMS.index(one)}


def test_annotations_follow_the_same_order() -> None:
    assert against_the_order(types_only=True) == set()


@pytest.mark.parametrize("module", ["pickle", "marshal", "shelve", "dill", "trio"])
def test_no_module_imports(module: str) -> None:
    assert importers_of(module) == set()


def test_two_modules_ask_the_event_loop_itself() -> None:
    assert importers_of("asyncio") == {"worker.execution.tasks", "store.answered", "driver"}


def importers_of(module: str) -> set[str]:
    return {name for name, imported in IMPORTED if imported.split(".")[0] == module}


IMPORTED = {
    (name, imported)
    for name, source in SOURCES.items()
    for statement, _ in import_statements(source)
    for imported in (
        [alias.name for alias in statement.names]
        if isinstance(statement, ast.Import)
        else [statement.module or ""]
    )
}
CALLS = [
    (name, node.func)
    for name, source in SOURCES.items()
    for node in ast.walk(source)
    if isinstance(node, ast.Call)
]
"""What each module calls."""


@pytest.mark.parametrize("function", ["eval", "exec", "compile", "__import__"])
def test_no_module_calls(function: str) -> None:
    callers = {name for name, called in CALLS if is_named(called, function)}

    assert callers == set()


def is_named(called: ast.expr, function: str) -> bool:
    return isinstance(called, ast.Name) and called.id == function


@pytest.mark.parametrize("setting", ["tlsinsecure", "tlsallowinvalid", "cert_none"])
def test_no_module_makes_tls_accept_anybody(setting: str) -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

    assert [name for name, source in sources.items() if setting in source.lower()] == []


def test_only_the_shells_and_the_engine_talk_to_mongodb() -> None:
    talkers = {
        place(name)
        for name, called in CALLS
        if isinstance(called, ast.Attribute)
        and called.attr in COMMANDS
        and ast.unparse(called.value) != "operations"  # which makes what others send
    }

    assert talkers <= TALKS_TO_MONGODB


@pytest.mark.parametrize(
    "module",
    [
        *(name for name in SOURCES if name.startswith("protocol.operations")),
        "protocol.payload",
        "protocol.stored",
        "protocol.steps",
        "queue.steps",
        "exporter.queries",
        "exporter.limit_queries",
        "protocol.document",
        "protocol.unique",
        "protocol.put",
        "protocol.schedules",
        "protocol.ticks",
        "protocol.limits",
        "protocol.rates",
        "store.starts",
        "backoff",
        "durations",
        "queue.view",
        "queue.job",
        "queue.info",
        "queue.outcome",
        "queue.lines",
        "protocol.trace",
    ],
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
    printers = {place(name) for name, called in CALLS if is_named(called, "print")}

    assert printers <= {
        "cli.main",
        "cli.exits",
        "cli.completion",
        "cli.tables",
        "cli.local",
        "cli.setup",
        "cli.jobs",
        "cli.dead",
        "cli.migrate",
        "cli.monitor.top",
        "cli.demo",
        "bench",
        "embedded._supervisor",
    }


SPREADS_TIMERS = {"exporter.exporter", "worker.partition", "worker.scheduler", "cli.demo"}
"""Who spreads what is done at intervals, or by turns; those are no tries."""


def test_every_pause_between_tries_comes_from_backoff() -> None:
    # A power, or jitter, that is written by hand is where a pause would overflow in a long outage.
    by_hand = []
    for name, source in SOURCES.items():
        for node in ast.walk(source):
            match node:
                case ast.BinOp(op=ast.Pow(), right=exponent):
                    if not isinstance(exponent, ast.Constant) and name != "backoff":
                        by_hand.append(f"{name}:{node.lineno}")
                case ast.Attribute(attr="uniform"):
                    if name not in SPREADS_TIMERS and not name.startswith("bench"):
                        by_hand.append(f"{name}:{node.lineno}")
    assert by_hand == []


def test_tests_cite_laws_by_the_names_that_the_architecture_page_gives_them() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Laws")[2]
    laws = [law.lower() for law in re.findall(r"^\d+\. \*\*(.+?)[.,]?\*\*", page, re.MULTILINE)]
    cited = {
        name
        for path in (root / "tests").rglob("test_*.py")
        for line in re.findall(r"^(?:\"\"\")?Laws?: (.+)\.", path.read_text("utf-8"), re.MULTILINE)
        for name in line.split("; ")
    }

    assert len(laws) == 18
    assert len(cited) > 10
    assert {name for name in cited if not any(law.startswith(name) for law in laws)} == set()

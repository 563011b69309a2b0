"""What the command line prints of what it found: JSON, or lines of columns, narrow enough to read.

Names and errors are what anybody has stored: control characters in them would reach the terminal.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..plain import as_json, printable
from ..protocol.document import id_text
from ..tracebacks import last_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..exporter.counts import ConsumerCensus, LimitCensus, QueueCensus
    from ..queue.info import JobInfo, PastStep
    from .command import Options
    from .monitor.pulse import Pulse


def show(options: Options, content: Any, lines: Iterable[str]) -> None:
    """Print what a command found, as JSON or in lines: whatever is in it, a terminal obeys none."""
    if options.json:
        print(as_json(content))
    else:
        for line in lines:
            print(printable(line))


def consumers(found: Iterable[ConsumerCensus]) -> Iterator[str]:
    """Yield a line for each consumer, under a header; or say that there is none."""
    rows = [
        (
            consumer.name,
            ",".join(consumer.queues) or "(not on the list)",
            f"{consumer.running}/{'?' if consumer.slots is None else consumer.slots}",
            length(consumer.longest) if consumer.running else "-",
            "-" if consumer.up is None else length(consumer.up),
            "-" if consumer.silent is None else length(consumer.silent),
        )
        for consumer in found
    ]
    if not rows:
        yield "no live consumers"
        return
    header = ("CONSUMER", "QUEUES", "HOLDS", "LONGEST", "UP", "SEEN")
    yield from columns([header, *rows])


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows with their cells in columns, two spaces apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield printable("  ".join(cells).rstrip())


def length(seconds: float) -> str:
    """Return a length of time in its largest unit: 0.4s, 12s, 3m, 5h, 2d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    for unit, size, limit in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if seconds < size * limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


# jobs

GROUP_WIDTH = 30
WAITS_WIDTH = 40


def job_facts(info: JobInfo, *, data: bool) -> dict[str, Any]:
    """Return what a job shows of itself, for JSON; without `data` neither payload nor result."""
    left_out = () if data else ("data", "result")
    facts = {
        field.name: getattr(info, field.name)
        for field in fields(info)
        if not field.name.startswith("_") and field.name not in left_out
    }
    errors = [error._asdict() for error in info.errors]
    steps = [step._asdict() for step in info.steps]
    return {
        **facts,
        "id": id_text(info.id),
        "errors": errors,
        "steps": steps,
        "ended": info.ended,
    }


def job_lines(info: JobInfo) -> Iterator[str]:
    """Yield the lines that show a job to people; what it does not have is left out."""
    facts = job_facts(info, data=True)
    for name in ("errors", "ended"):
        del facts[name]
    facts["steps"] = "\n".join(map(_step, info.steps)) or None
    for name, value in facts.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else as_json(value).strip('"')
        first, *others = text.splitlines() or [""]
        yield f"{name:<12} {first}"
        for line in others:
            yield f"{'':<12} {line}"


def _step(step: PastStep) -> str:
    return f"{step.name}  {'?' if step.at is None else f'{step.at:%Y-%m-%d %H:%M:%S}'}"


def job_rows(found: Sequence[JobInfo], *, data: bool) -> list[list[str]]:
    """Return a row for each job, under a header: its time is what its state is sorted by. Tasks
    and groups are shown where there are some, and so is what jobs wait for."""
    groups = any(info.group is not None for info in found)
    tasks = any(info.task is not None for info in found)
    waits = any(info.waits_for is not None for info in found)
    header = ["ID", "STATE", "PRIORITY", "ATTEMPTS", "TIME", *["TASK"] * tasks]
    header += [*["GROUP"] * groups, *["WAITS FOR"] * waits, "LAST ERROR"]
    rows = [header + ["PAYLOAD"] * data]
    for info in found:
        time = info.finished_at if info.ended else info.locked_until or info.run_at
        row = [
            *(id_text(info.id), info.state, str(info.priority), str(info.attempts)),
            "-" if time is None else f"{time:%Y-%m-%d %H:%M:%S}",
            *[_cut(info.task or "-", GROUP_WIDTH)] * tasks,
            *[_cut(info.group or "-", GROUP_WIDTH)] * groups,
            *[_waits_for(info.waits_for)] * waits,
            last_line(info.last_error)[:60] if info.last_error else "-",
        ]
        rows.append(row + [as_json(info.data)] * data)
    return rows


def _waits_for(what: Mapping[str, Any] | None) -> str:
    """Return for which job one waits, and why: ``parent 6b0e…``, ``failed parent 6b0e…``."""
    if what is None:
        return "-"
    failed = "failed " * (what.get("failed") is True)
    named = (f"{name} {id_text(value)}" for name, value in what.items() if name != "failed")
    return _cut(printable(f"{failed}{', '.join(named)}"), WAITS_WIDTH)


# limits


def limit_text(limit: LimitCensus) -> str:
    """Return how a limit stands: whose it is, how many of how many run, and what it holds back."""
    return f"{_scope(limit)} {_use(limit)}{_saturated(limit)}"


def _scope(limit: LimitCensus) -> str:
    """Return whose jobs a limit counts together."""
    if limit.task is None:
        return limit.per
    task = printable(limit.task)
    return f"task {task}" if limit.per != "group" else f"group of {task}"


def _use(limit: LimitCensus) -> str:
    """Return how many of how many run, and how many may start in a time."""
    uses = []
    if limit.limit is not None:
        uses.append(f"running {short(limit.running or 0)}/{short(limit.limit)}")
    if limit.rate is not None:
        uses.append(f"rate {limit.rate}")
    return ", ".join(uses)


def _saturated(limit: LimitCensus) -> str:
    if not limit.saturated:
        return ""
    if limit.per == "queue" or (limit.per == "task" and limit.task is not None):
        return " (saturated)"
    return f" ({limit.saturated:,} saturated)"


# the pulse

WIDTH = 80
NAME_WIDTH = 20
MOST_NAMED = 3
MOST_QUEUES, MOST_LIMITS, MOST_CONSUMERS = 12, 8, 10


def some_of(names: Sequence[str]) -> str:
    """Return the first few of some names, and whether there are more."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def pulse(title: str, now: Pulse) -> Iterator[str]:
    """Yield the lines of ``streamqueue top``, none longer than 80 characters."""
    for line in _pulse(title, now):
        yield _cut(printable(line), WIDTH)


def _pulse(title: str, now: Pulse) -> Iterator[str]:
    yield f"{title}  {now.at:%H:%M:%S} UTC  stream {now.stream}"
    yield ""
    yield from _queues(now)
    yield ""
    yield from _consumers(now)
    yield ""
    yield "LATEST FAILURES"
    for failure in now.failures:
        when = "--:--:--" if failure.at is None else f"{failure.at:%H:%M:%S}"
        what = "dead" if failure.dead else f"attempt {failure.attempts}"
        yield f"{when} {name_cell(failure.queue).strip()} {failure.job_id} {what}: {failure.error}"
    if not now.failures:
        yield "none"


def _queues(now: Pulse) -> Iterator[str]:
    yield (
        f"{'QUEUE':<{NAME_WIDTH}} {'READY':>6} {'SCHED':>6} {'WAIT':>6} {'RUN/SLOTS':>9} "
        f"{'DEAD':>6} {'OLDEST':>6} {'IN/S':>6} {'OUT/S':>6}"
    )
    queues = sorted(now.census.queues.values(), key=lambda queue: -queue.ready - queue.running)
    paused = [queue.name for queue in queues if queue.paused]
    for queue in queues[:MOST_QUEUES]:
        flow = now.flows.get(queue.name)
        came, went = (None, None) if flow is None else (flow.came, flow.went)
        yield (
            f"{name_cell(queue.name)} {short(queue.ready):>6} {short(queue.scheduled):>6} "
            f"{short(queue.waiting):>6} {f'{short(queue.running)}/{short(queue.slots)}':>9} "
            f"{short(queue.dead):>6} {length(queue.oldest_ready_age):>6} "
            f"{_rate(came):>6} {_rate(went):>6}"
        )
    if len(queues) > MOST_QUEUES:
        yield f"and {len(queues) - MOST_QUEUES} more queues"
    if not queues:
        yield "no queues yet"
    if paused:
        yield f"PAUSED: {', '.join(paused)}"
    yield from _unserved(now, queues)
    yield from _limits(queues)
    late = now.census.late_schedules.items()
    if late:
        each = ", ".join(f"{name} {length(seconds)}" for name, seconds in late)
        yield f"LATE SCHEDULES: {each}"
    if now.census.paused_schedules:
        yield f"PAUSED SCHEDULES: {', '.join(now.census.paused_schedules)}"


def _unserved(now: Pulse, queues: Sequence[QueueCensus]) -> Iterator[str]:
    """Yield a line for queues whose ready jobs nobody works on, and one for those whose consumers
    have all of their slots taken by other queues."""
    ready = [queue for queue in queues if queue.ready and not queue.paused]
    consumers = now.census.consumers
    if consumers is None:  # this user may not know
        return
    nobody = [queue.name for queue in ready if not queue.consumers]
    full = [
        queue.name
        for queue in ready
        if queue.consumers and not queue.running
        if all(
            one.slots is not None and one.running >= one.slots
            for one in consumers.values()
            if queue.name in one.queues
        )
    ]
    for what, names in (("NOBODY WORKS ON", nobody), ("OTHERS HAVE ALL SLOTS OF", full)):
        if names:
            more = f", and {len(names) - MOST_LIMITS} more" if len(names) > MOST_LIMITS else ""
            yield f"{what}: {', '.join(names[:MOST_LIMITS])}{more}"


def _limits(queues: Sequence[QueueCensus]) -> Iterator[str]:
    """Yield a line for each limit, those that hold jobs back first, and what a dead job holds."""
    found = [(queue.name, limit) for queue in queues for limit in queue.limits]
    found.sort(key=lambda each: not each[1].saturated)
    for name, limit in found[:MOST_LIMITS]:
        yield f"LIMIT: {name_cell(name)} {limit_text(limit)}"
    if len(found) > MOST_LIMITS:
        yield f"and {len(found) - MOST_LIMITS} more limits"
    for what, held in (
        ("HELD GROUPS", [(queue.name, queue.held_groups or 0) for queue in queues]),
        ("HELD DEPENDENTS", [(queue.name, queue.held_dependents) for queue in queues]),
    ):
        some = [f"{name} {short(count)}" for name, count in held if count]
        if some:
            yield f"{what}: {', '.join(some)}"


def _consumers(now: Pulse) -> Iterator[str]:
    if now.census.consumers is None:
        yield "CONSUMERS: this user has no right to read their list"
        return
    found = sorted(now.census.consumers.values(), key=lambda one: (-one.running, one.name))
    yield f"{'CONSUMER':<30} {'QUEUES':<20} {'HOLDS':>7} {'LONGEST':>7} {'UP':>5} {'SEEN':>5}"
    for consumer in found[:MOST_CONSUMERS]:
        slots = "?" if consumer.slots is None else short(consumer.slots)
        queues = ",".join(consumer.queues) or "(not on the list)"
        yield (
            f"{_fit(consumer.name, 30)} {_fit(queues, 20)} "
            f"{f'{short(consumer.running)}/{slots}':>7} "
            f"{length(consumer.longest) if consumer.running else '-':>7} "
            f"{'-' if consumer.up is None else length(consumer.up):>5} "
            f"{'-' if consumer.silent is None else length(consumer.silent):>5}"
        )
    if len(found) > MOST_CONSUMERS:
        yield f"and {len(found) - MOST_CONSUMERS} more consumers"
    if not found:
        yield "no live consumers"


def name_cell(name: str) -> str:
    """Return a queue's name as wide as its column."""
    return _fit(name, NAME_WIDTH)


def _fit(text: str, width: int) -> str:
    return _cut(printable(text), width).ljust(width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def short(count: int) -> str:
    """Return a count in at most six characters: 999, 12,345, 123k, 4.5M."""
    if count < 100_000:
        return f"{count:,}"
    if count < 1_000_000:
        return f"{count / 1000:.0f}k"
    return f"{count / 1e6:.1f}M"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.1f}" if rate < 100 else short(round(rate))

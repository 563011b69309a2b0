"""A real Prometheus and a real Alertmanager for drills, and a receiver for what they send.

::

    rules = tmp_path / "rules.yml"
    rules.write_text(hasten(Path("streamqueue.rules.yml").read_text(), 30))
    with Monitoring(tmp_path, {"worker": ["127.0.0.1:9464"]}, [rules]) as monitoring:
        monitoring.wait_until_up()
        ...
        monitoring.wait_for_notice("StreamqueueStreamDown", "firing", within=30)

They scrape, evaluate and notify every second, are told nothing of any other server, keep their data
in the given folder, and are gone when the block is left.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import yaml

from tests.waiting import free_port, wait_until

PACKAGES = {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}
"""Debian's package of each program."""

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = r"((?:\d+(?:ms|[smhdw]))+)"


class NotInstalled(Exception):
    """A program of the drill is not on PATH; the message says which package has it."""


class Sample(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    value: float


class Notice(NamedTuple):
    """What Alertmanager told the receiver about one alert."""

    name: str
    status: str
    """firing or resolved"""
    labels: dict[str, str]
    annotations: dict[str, str]


def missing_programs() -> list[str]:
    """Return which of the programs are not on PATH, for a test's reason to skip."""
    return [program for program in PACKAGES if shutil.which(program) is None]


def hasten(
    rules: str, factor: float, replace: Mapping[str, str] | None = None, shortest: float = 5.0
) -> str:
    """Return the rules with every ``for``, every window and its steps shorter by this factor.

    The expressions stay what they are otherwise, so a drill of seconds evaluates the real ones.
    What they compare with stays as well: a limit in seconds is no waiting time of Prometheus's.
    Where a drill cannot reach one, `replace` puts other text into the expressions.

    Args:
        rules: the text of a rules file.
        factor: 60 makes minutes seconds.
        replace: old text to new, in the expressions, before durations are shortened.
        shortest: seconds below which no window goes, because a rate needs several scrapes. A
            ``for`` and a step may be shorter, though not below a second, the interval of
            evaluation.

    Raises:
        ValueError: a text to replace is in no expression, so that the drill would test nothing.
    """
    parsed = yaml.safe_load(rules)
    unused = set(replace or ())
    for rule in (rule for group in parsed["groups"] for rule in group["rules"]):
        expression = rule["expr"]
        for old, new in (replace or {}).items():
            if old in expression:
                unused.discard(old)
                expression = expression.replace(old, new)

        def shorter(match: re.Match[str]) -> str:
            return match[1] + _in_seconds(match[2], factor, shortest) + match[3]

        def nearer(match: re.Match[str]) -> str:
            return ":" + _in_seconds(match[1], factor, 1.0) + "]"

        rule["expr"] = re.sub(rf"(\[|\boffset\s+){_DURATION}(\]?)", shorter, expression)
        rule["expr"] = re.sub(rf":{_DURATION}\]", nearer, rule["expr"])
        if "for" in rule:
            rule["for"] = _in_seconds(str(rule["for"]), factor, 1.0)
    if unused:
        raise ValueError(f"no expression holds {sorted(unused)}")
    return str(yaml.safe_dump(parsed, sort_keys=False, width=100))


def _in_seconds(duration: str, factor: float, shortest: float) -> str:
    parts = re.findall(r"(\d+)(ms|[smhdw])", duration)
    length = sum(int(number) * _UNITS[unit] for number, unit in parts) / factor
    return f"{round(max(length, shortest) * 1000)}ms"


class Monitoring:
    """Prometheus, Alertmanager and a receiver, on free ports of the loopback address.

    Args:
        folder: for configuration, data and the programs' output; an existing one.
        targets: the job label to the addresses (``host:port``) that are scraped under it.
        rules: the rules files.
        labels: what every target of a job is given besides ``job`` and ``instance``.
        scrape: more settings of a job, such as ``{"worker": {"scheme": "https", ...}}``.
        interval: seconds between two scrapes and between two evaluations.
        alertmanager: the address of one that runs already; it is then not started, nor is a
            receiver.

    Raises:
        NotInstalled: on entering, when a program is not on PATH.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[str]],
        rules: Iterable[Path] = (),
        *,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        scrape: Mapping[str, Mapping[str, Any]] | None = None,
        interval: int = 1,
        alertmanager: str | None = None,
    ) -> None:
        self._folder = folder
        self._targets = {job: list(addresses) for job, addresses in targets.items()}
        self._rules = [path.absolute() for path in rules]
        self._labels = labels or {}
        self._scrape = scrape or {}
        self._interval = interval
        self._alertmanager = alertmanager
        self._receiver = Receiver()
        self._open = ExitStack()
        self.address = ""
        """Of Prometheus, as ``host:port``, for a dashboard to look at."""

    def __enter__(self) -> Self:
        needed = list(PACKAGES) if self._alertmanager is None else ["prometheus"]
        if absent := [PACKAGES[name] for name in needed if shutil.which(name) is None]:
            raise NotInstalled(
                f"not installed: {', '.join(absent)}; "
                f"apt-get install --no-install-recommends {' '.join(absent)}"
            )
        with ExitStack() as opened:
            if self._alertmanager is None:
                self._alertmanager = self._start_alertmanager(opened)
            self.address = self._start_prometheus(opened, self._alertmanager)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def notices(self) -> list[Notice]:
        """What Alertmanager told the receiver so far, in the order of arrival."""
        return self._receiver.notices()

    def wait_for_notice(self, alert: str, status: str, within: float = 60.0) -> Notice:
        """Return the first notice that this alert is ``firing`` or ``resolved``, or fail."""
        notice = wait_until(
            lambda: next((n for n in self.notices if n[:2] == (alert, status)), None),
            f"{alert} is told as {status}",
            within,
        )
        assert notice is not None
        return notice

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Return the value of each series now, or at this unix time.

        Raises:
            ValueError: Prometheus refuses the expression; the message is its own.
        """
        parameters = {"query": expression} | ({} if at is None else {"time": str(at)})
        found = self._ask("query", parameters)
        if found["resultType"] == "scalar":
            return [Sample({}, float(found["result"][1]))]
        return [Sample(series["metric"], float(series["value"][1])) for series in found["result"]]

    def query_range(
        self, expression: str, start: float, end: float, step: float = 1.0
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return each series' labels and its (unix time, value) pairs.

        Raises:
            ValueError: Prometheus refuses the expression.
        """
        found = self._ask(
            "query_range",
            {"query": expression, "start": str(start), "end": str(end), "step": str(step)},
        )
        return [
            (series["metric"], [(float(at), float(value)) for at, value in series["values"]])
            for series in found["result"]
        ]

    def series_names(self) -> set[str]:
        """Return the name of every metric it has seen."""
        return set(self._ask("label/__name__/values", {}))

    def alerts(self) -> list[dict[str, Any]]:
        """Return what is pending or firing: ``state``, ``labels``, ``annotations``, ``value``."""
        return list(self._ask("alerts", {})["alerts"])

    def rule_errors(self) -> dict[str, str]:
        """Return the last error of every rule that could not be evaluated; {} when all is well."""
        groups = self._ask("rules", {})["groups"]
        return {
            rule["name"]: rule["lastError"]
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        }

    def wait_until_up(self, within: float = 30.0) -> None:
        """Return once every target has been scraped, or fail with what is wrong with the rest."""
        expected = sum(map(len, self._targets.values()))
        down: dict[str, str] = {}

        def all_up() -> bool:
            active = self._ask("targets", {"state": "active"})["activeTargets"]
            down.clear()
            down.update({t["scrapeUrl"]: t["lastError"] for t in active if t["health"] != "up"})
            return len(active) == expected and not down

        try:
            wait_until(all_up, "every target is scraped", within)
        except AssertionError as late:
            raise AssertionError(f"{late}: {down}") from None

    def _ask(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise ValueError(json.load(refusal)["error"]) from None

    def _start_alertmanager(self, opened: ExitStack) -> str:
        receiver = opened.enter_context(self._receiver)
        address = f"127.0.0.1:{free_port()}"
        config = self._written(
            "alertmanager.yml",
            {
                "route": {
                    "receiver": "drill",
                    "group_by": ["..."],
                    "group_wait": "1s",
                    "group_interval": "1s",
                    "repeat_interval": "1h",
                },
                "receivers": [
                    {"name": "drill", "webhook_configs": [{"url": f"http://{receiver.address}/"}]}
                ],
            },
        )
        arguments = [
            f"--config.file={config}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ]
        self._start(opened, "prometheus-alertmanager", arguments, address)
        return address

    def _start_prometheus(self, opened: ExitStack, alertmanager: str) -> str:
        address = f"127.0.0.1:{free_port()}"
        each = f"{self._interval}s"
        config = self._written(
            "prometheus.yml",
            {
                "global": {
                    "scrape_interval": each,
                    "scrape_timeout": each,
                    "evaluation_interval": each,
                },
                "rule_files": [str(path) for path in self._rules],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
                "scrape_configs": [
                    {
                        "job_name": job,
                        "static_configs": [
                            {"targets": addresses, "labels": dict(self._labels.get(job, {}))}
                        ],
                        **self._scrape.get(job, {}),
                    }
                    for job, addresses in self._targets.items()
                ],
            },
        )
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
            "--rules.alert.resend-delay=1s",  # a minute by default: a lost message would cost that
            "--rules.alert.for-grace-period=0s",
        ]
        self._start(opened, "prometheus", arguments, address)
        return address

    def _written(self, name: str, config: Mapping[str, Any]) -> Path:
        path = self._folder / name
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        return path

    def _start(
        self, opened: ExitStack, program: str, arguments: Sequence[str], address: str
    ) -> None:
        log = self._folder / f"{program}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C at the drill must not end it before the drill does
            )
        opened.callback(_stop, process)

        def ready() -> bool:
            assert process.poll() is None, (
                f"{program} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
            )
            try:
                with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                    return True
            except (OSError, urllib.error.URLError):
                return False

        wait_until(ready, f"{program} answers", _START_SECONDS)


class Receiver:
    """A web server that keeps what is posted to it, as Alertmanager's webhooks post it."""

    def __init__(self) -> None:
        self._posted: list[tuple[float, dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.address = ""

    def __enter__(self) -> Self:
        keep = self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _keep(self, post: dict[str, Any]) -> None:
        with self._lock:
            self._posted.append((time.time(), post))

    @property
    def posted(self) -> list[tuple[float, dict[str, Any]]]:
        """Each post as it came, with the unix time of its arrival."""
        with self._lock:
            return list(self._posted)

    def notices(self) -> list[Notice]:
        """Each alert of each post."""
        return [
            Notice(
                alert["labels"]["alertname"], alert["status"], alert["labels"], alert["annotations"]
            )
            for _, post in self.posted
            for alert in post["alerts"]
        ]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

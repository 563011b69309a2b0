"""What the site has beside the pages: the tree of pages, the reference, the tables of defaults.

All of it is made of the code, so none of it is ever behind: whoever adds a public name, a setting
or a guide writes a docstring or a page, and nothing here.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

import streamqueue
from streamqueue.cli.main import HOMES, cli
from streamqueue.errors import StreamQueueError
from streamqueue.options import WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = {
    "Begin": ["/docs/start", "/docs/install", "/docs/comparison"],
    "Guides": ["/examples/README", "/docs/guides/*"],
    "Concepts": ["/docs/guarantees", "/docs/architecture", "/docs/speed", "/docs/capacity"],
    "Reference": ["/docs/reference/*", "/CHANGELOG"],
    "Running it": ["/deploy/README", "/deploy/*/README", "/grafana/README", "/SECURITY"],
    "Changing it": ["/CONTRIBUTING", "/docs/releasing", "/docs/decisions/*", "/README"],
}
"""The parts of the site; what an earlier part has, a later one leaves out."""

BESIDE = {
    "queues": [],
    "workers": ["streamqueue.options.WorkerOptions", "streamqueue.logs.JsonFormatter"],
    "errors": [],
}
"""What is public without being in ``streamqueue.__all__``, by the page that has it."""

FOREIGN = "Exception, list, object"
"""The bases whose members are Python's, and not ours to explain."""

NO_DEFAULT = inspect.Parameter.empty


class Undocumented(Exception):
    """Public names without a docstring."""


def page_of(name: str) -> str:
    """Return the page of the reference that has a public name."""
    public = getattr(streamqueue, name)
    if inspect.isclass(public) and issubclass(public, BaseException):
        return "errors"
    home = public.__module__.removeprefix("streamqueue.").partition(".")[0]
    return "workers" if home in {"worker", "health", "testing", "embedded"} else "queues"


def names() -> list[str]:
    """Return the public names that the reference has."""
    return [name for name in streamqueue.__all__ if not name.startswith("__")]


def undocumented() -> list[str]:
    """Return the public names, and the members of public classes, that have no docstring."""
    found = []
    for name in names():
        public = getattr(streamqueue, name)
        if not public.__doc__:
            found.append(name)
        if inspect.isclass(public):
            members = {each: inspect.getattr_static(public, each) for each in _members(public)}
            found += [f"{name}.{each}" for each in members if not inspect.getdoc(members[each])]
    return found


def check() -> None:
    """Raise where a public name is without a docstring.

    Raises:
        Undocumented: with their names.
    """
    if found := undocumented():
        raise Undocumented(f"these public names have no docstring: {', '.join(found)}")


def _members(public: type) -> list[str]:
    """Return the methods and properties that a class of ours has, inherited ones included."""
    ours = [each for each in public.__mro__ if each.__module__.startswith("streamqueue")]
    found = {
        name: None
        for each in ours
        for name, value in vars(each).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod)))
    }
    return list(found)


def added_to(page: str) -> str:
    """Return what the site adds to a page, as MyST; for most pages nothing."""
    if page == "docs/README":
        return "\n\n" + "\n".join(_tree())
    if page == "docs/reference/defaults":
        return "\n\n" + "\n".join(defaults())
    folder, _, name = page.rpartition("/")
    if folder == "docs/reference" and name in BESIDE:
        return "\n\n" + "\n".join(_reference(name))
    return ""


def _tree() -> Iterator[str]:
    for caption, pages in TREE.items():
        yield f"```{{toctree}}\n:caption: {caption}\n:hidden:\n:glob:\n"
        yield from pages
        yield "```\n"


def _reference(page: str) -> Iterator[str]:
    paths = [f"streamqueue.{name}" for name in names() if page_of(name) == page]
    yield "```{eval-rst}"
    for path in [*paths, *BESIDE[page]]:
        public: Any = getattr(streamqueue, path.rpartition(".")[2], None)
        if path in paths and not inspect.isclass(public):
            yield f".. autofunction:: {path}\n"
            continue
        yield f".. autoclass:: {path}"
        yield "   :members:"
        yield "   :show-inheritance:" if page == "errors" else f"   :inherited-members: {FOREIGN}"
        yield ""
    yield "```"


def defaults() -> Iterator[str]:
    """Yield a table of each argument of a public call that has a default, and of each option.

    The async classes are left out: what they take is what their blocking twins take.
    """
    yield "## In Python\n"
    yield "| call | argument | default |"
    yield "|---|---|---|"
    for call, function in calls():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not NO_DEFAULT:
                yield f"| `{call}` | `{parameter.name}` | `{_shown(parameter.default)}` |"
    yield "\n## On the command line\n"
    yield "| command | option | variable | what it is, and its default |"
    yield "|---|---|---|---|"
    for command, option in options():
        flags = ", ".join(f"`{flag}`" for flag in option.opts)
        variable = f"`STREAMQUEUE_{option.name.upper()}`" if option.name else ""
        if not option.allow_from_autoenv:
            variable = ""
        text = (option.help or "").replace("|", "\\|").replace("<", "\\<")
        yield f"| `{command}` | {flags} | {variable} | {text} |"


def calls() -> Iterator[tuple[str, Any]]:
    """Yield each public call and what it calls."""
    for name in names():
        public = getattr(streamqueue, name)
        if not inspect.isclass(public):
            yield name, public
        elif not (name.startswith("Async") or issubclass(public, StreamQueueError)):
            yield name, public
            for member in _members(public):
                value = inspect.getattr_static(public, member)
                if inspect.isfunction(value):
                    yield f"{name}.{member}", value
    yield "Worker(**settings)", WorkerOptions


def options() -> Iterator[tuple[str, click.Option]]:
    """Yield each option of each command that is shown in its help."""
    context = click.Context(cli)
    for name in HOMES:
        command = cli.get_command(context, name)
        if command is not None:
            yield from _options_of(name, command)


def _options_of(name: str, command: click.Command) -> Iterator[tuple[str, click.Option]]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield name, parameter
    if isinstance(command, click.Group):
        for inner, each in command.commands.items():
            yield from _options_of(f"{name} {inner}", each)


def _shown(default: object) -> str:
    return repr(default).replace("|", "\\|")

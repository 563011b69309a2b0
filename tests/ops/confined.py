"""Become a command that may do no more than a unit allows, as far as that goes without systemd.

::

    python confined.py UNIT COMMAND ARGUMENT...

Enforced are NoNewPrivileges=, CapabilityBoundingSet= (by root), SystemCallFilter=,
RestrictAddressFamilies= and, on Linux 6.3 or newer, MemoryDenyWriteExecute=.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.ops.units import Unit

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
EQUAL = 4
SET_NO_NEW_PRIVS, CAPBSET_DROP, SET_MDWE, REFUSE_EXEC_GAIN = 38, 24, 65, 1


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
    )


def system_calls() -> dict[str, set[str]]:
    """Return what is in each set, such as ``@system-service``."""
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    sets: dict[str, set[str]] = {}
    for line in listing.splitlines():
        if line.startswith("@"):
            members = sets.setdefault(line, set())
        elif line.startswith(" ") and line.strip()[0] != "#":
            members.add(line.strip())
    return sets


def allowed(unit: Unit) -> set[str]:
    """Return the system calls that a unit allows."""
    sets = system_calls()

    def expanded(name: str) -> set[str]:
        return {name}.union(*map(expanded, sets.get(name, ())))

    names: set[str] = set()
    for value in unit.all("SystemCallFilter"):
        listed = set().union(*map(expanded, value.lstrip("~").split()))
        names = names - listed if value.startswith("~") else names | listed
    return names


def confine(unit: Unit) -> None:
    """Give up, for this process and all that come of it, what the unit does not allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p

    assert unit.one("NoNewPrivileges") == unit.one("MemoryDenyWriteExecute") == "yes"
    assert unit.all("CapabilityBoundingSet") == []
    context = ctypes.c_void_p(seccomp.seccomp_init(REFUSE))
    for name in allowed(unit) - {"socket"}:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are of other architectures
            assert seccomp.seccomp_rule_add_array(context, ALLOW, number, 0, None) == 0
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in unit.one("RestrictAddressFamilies").split():
        comparison = _Comparison(0, EQUAL, int(getattr(socket, family)), 0)
        added = seccomp.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(comparison))
        assert added == 0
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0)
    assert libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert seccomp.seccomp_load(context) == 0


if __name__ == "__main__":
    confine(Unit(Path(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])

"""The trace a job belongs to, in the form of the W3C: ``00-<trace id>-<span id>-<flags>``.

Where a program uses OpenTelemetry, a put takes over its current span, and what a worker measures of
the job carries the trace as an exemplar: from a slow point on a board to the trace behind it is one
click. Programs that do not use it pay one look into a dict; any producer may store the field.
"""

from __future__ import annotations

import re
import sys

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_NO_TRACE = "0" * 32


def current_traceparent() -> str | None:
    """Return the current span's, or None without OpenTelemetry or outside of any span."""
    # Looked up and not imported: whoever has not loaded it is in no span.
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id(traceparent: str | None) -> str | None:
    """Return the id of the trace, or None for what is none."""
    if traceparent is None:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    return None if found is None or found[1] == _NO_TRACE else found[1]

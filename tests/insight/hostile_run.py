"""A run folder in which every text is an attack on the page that shows it."""

import json
import shutil
from pathlib import Path

from commands.command_line import rows

OLD = Path(__file__).parents[1] / "faults/fixtures/version-0.2-dev"
"""Runs of an earlier version, of language models too."""
HOSTILE = "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>\u202e\x1b[2K"


def hostile(trained, place):
    """A run folder in which every text is an attack; returns it."""
    run = place / "r<img src=x onerror=window.ran=1>"
    shutil.copytree(trained, run)
    config = (run / "config.toml").read_text()
    assert 'id = "CartPole-v1"' in config
    (run / "config.toml").write_text(
        config.replace('"CartPole-v1"', json.dumps(f"evil{HOSTILE}:Env"))
    )
    lines = [{**row, HOSTILE: row["update"]} for row in rows(trained)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((run / "result.json").read_text())
    result |= {"stopped_by": HOSTILE, "warnings": [HOSTILE, 10**400, {"a": "\ud800"}]}
    result |= {"evaluation": 1e999, "profile": {"phases": {"env": {"share": HOSTILE}, "act": 3}}}
    (run / "result.json").write_text(json.dumps(result))
    (run / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE, "torch": 10**30}))
    (run / "log").write_text(f"{HOSTILE}\n" * 1000)
    return run

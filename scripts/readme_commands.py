"""Run what the README tells people to run: its console commands and its Python snippets, in a temporary folder.

    python scripts/readme_commands.py [--list]

Fenced blocks marked `console` hold commands after a `$ `; blocks marked `python` run as they stand. A block that follows the comment
`<!-- not run: reason -->` is left out, and listed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"(?P<skip><!-- not run: (?P<why>.*?) -->\n)?```(?P<kind>console|python)\n(?P<body>.*?)```", re.DOTALL)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(kind, body, reason not to run it) of each runnable block."""
    return [(m["kind"], m["body"], m["why"] or "") for m in FENCE.finditer(text)]


def commands(body: str) -> list[str]:
    return [line[2:] for line in body.splitlines() if line.startswith("$ ")]


def main() -> None:
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, body, why in found:
            for script in commands(body) if kind == "console" else [body]:
                label = script if kind == "console" else f"python: {script.splitlines()[0]}"
                if why or "--list" in sys.argv:
                    print(f"not run ({why}): {label}" if why else label)
                    continue
                started = time.monotonic()
                in_root = script.startswith("make")
                argv = ["bash", "-c", script] if kind == "console" else [sys.executable, "-c", script]
                path = f"{Path(sys.executable).parent}:"
                done = subprocess.run(argv, cwd=ROOT if in_root else folder, env=_environment(path), capture_output=True, text=True)
                print(f"{'ok' if done.returncode == 0 else 'FAILED'} {time.monotonic() - started:.0f}s: {label}", flush=True)
                if done.returncode:
                    failed += 1
                    print(done.stdout[-3000:], done.stderr[-3000:])
    raise SystemExit(1 if failed else 0)


def _environment(path: str) -> dict[str, str]:
    import os

    return {**os.environ, "PATH": path + os.environ["PATH"]}


if __name__ == "__main__":
    main()

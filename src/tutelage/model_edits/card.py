"""The card of an edited checkpoint: what was done, to what, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = """---
library_name: transformers
tags: [tutelage, {edit}]
---

# {title}

| | before | after |
|---|---|---|
{rows}

Settings: {settings}.

`edit.json` holds the fingerprint of every tensor before and after; `tutelage edit remove` brings the model before the edit back, to the
bit. Made by `{command}`.
"""


def write_card(folder: Path, *, title: str, edit: str, details: Mapping[str, Any], command: str) -> None:
    """Write README.md from `details`: `method`, its settings, and the numbers `before` and `after` by name."""
    before, after = details["before"], details["after"]
    rows = "\n".join(f"| {name} | {_number(before.get(name))} | {_number(after[name])} |" for name in after)
    settings = ", ".join(f"{key} {value}" for key, value in details["method"].items())
    text = CARD.format(edit=edit, title=title, rows=rows, settings=settings, command=command or "tutelage")
    (folder / "README.md").write_text(text, encoding="utf-8")


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"

"""`ls`, `show` and `cp`: find a part, read it, take it with you."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from tutelage.errors import MissingExtraError, TutelageError, unknown
from tutelage.registry import NOUNS, Part


def parts(noun: str | None = None) -> list[Part]:
    """All parts, or those of one noun (singular or plural); without a noun, one whose packages are not installed is left out."""
    chosen = [r for r in NOUNS if noun in (None, r.noun, r.group.split(".")[1])]
    if not chosen:
        raise unknown("noun", str(noun), [r.group.split(".")[1] for r in NOUNS])
    found = []
    for registry in chosen:
        try:
            found += [registry.get(name) for name in registry.names()]
        except MissingExtraError:
            if noun is not None:
                raise
    return found


def find(name: str) -> Part:
    """The part called `name` or `noun/name`; a bare name of several parts means the first noun's (a curriculum before its replication)."""
    noun, _, bare = name.rpartition("/")
    candidates = [p for p in parts(noun or None) if p.name == bare]
    if not candidates:
        raise unknown("part", bare, {p.name for p in parts(noun or None)})
    return candidates[0]


def describe(part: Part) -> dict[str, Any]:
    """What `show --json` prints."""
    parameters = {
        n: {"default": None if p.default is p.empty else p.default, "type": str(p.annotation)} for n, p in part.parameters.items()
    }
    return {"noun": part.noun, "name": part.name, "doc": inspect.getdoc(part.target), "parameters": parameters, "file": part.file}


def render(found: list[Part], console: Any) -> None:
    from rich.table import Table

    width = max(len(p.name) for p in found) if found else 0
    noun = None
    for part in found:
        if part.noun != noun:
            noun = part.noun
            console.print(f"[bold]{noun}[/bold]")
            table = Table.grid(padding=(0, 2))
            table.add_column(min_width=width + 2)
            table.add_column()
            for p in (p for p in found if p.noun == noun):
                table.add_row(f"  {p.name}", p.summary)
            console.print(table, highlight=False)


def show(part: Part, console: Any, *, source: bool) -> None:
    from rich.syntax import Syntax

    console.print(f"[bold]{part.noun} {part.name}[/bold]   {part.file}\n", highlight=False)
    console.print(inspect.getdoc(part.target) or "", highlight=False, markup=False)
    if part.parameters:
        console.print("\n[bold]Parameters[/bold]")
        for name, parameter in part.parameters.items():
            default = "required" if parameter.default is parameter.empty else repr(parameter.default)
            console.print(f"  {name}: {parameter.annotation} = {default}", highlight=False, markup=False)
    if source:
        console.print("\n[bold]Source[/bold]")
        console.print(Syntax(Path(part.file).read_text(encoding="utf-8"), "python", background_color="default"))


def copy(part: Part, to: Path) -> tuple[Path, str]:
    """Copy a part's file; names registered in the copy get the prefix "my_", so that both can live side by side."""
    source = Path(part.file)
    target = to / source.name if to.is_dir() or not to.suffix else to
    if target.exists():
        raise TutelageError(f"{target} exists already. Give another file name, or remove it first.")
    text = source.read_text(encoding="utf-8")
    renamed = re.sub(r"(@\w+\.register\(\")([^\"]+)(\"\))", r"\1my_\2\3", text)
    renamed = re.sub(rf"^(    name = \"){re.escape(part.name)}\"", r"\1my_" + part.name + '"', renamed, flags=re.MULTILINE)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(renamed, encoding="utf-8")
    return target, f"my_{part.name}"

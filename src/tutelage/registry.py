"""Where parts are found by name: curricula, teachers, objectives, verifiers, edits, audits, replications.

A part is a typed class or function, registered by decorator; its keyword-only parameters *are* its configuration schema. Modules of the
library register on first use of their registry; third parties register through an entry point of the same group:

    [project.entry-points."tutelage.curricula"]
    mine = "my_package.my_module"        # importing it runs the decorator
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tutelage.errors import MissingExtraError, TutelageError, unknown

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part:
    """A registered class or function and what can be told about it without running it."""

    name: str
    noun: str
    target: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.target) or "").split("\n", 1)[0]

    @property
    def file(self) -> str:
        """The file in which the part is written."""
        return inspect.getsourcefile(inspect.unwrap(self.target)) or ""

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters: the part's configuration schema."""
        return {n: p for n, p in inspect.signature(self.target).parameters.items() if p.kind is p.KEYWORD_ONLY}

    def check(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return `config` with each value converted to its declared type; unknown keys and wrong types raise `TutelageError`."""
        schema = self.parameters
        for key in config:
            if key not in schema:
                raise unknown(f"parameter of {self.noun} {self.name!r}:", key, schema)
        init = self.target.__init__ if inspect.isclass(self.target) else self.target
        hints = typing.get_type_hints(init)
        return {key: self._convert(key, value, hints.get(key, Any)) for key, value in config.items()}

    def _convert(self, key: str, value: Any, hint: Any) -> Any:
        from pydantic import ConfigDict, TypeAdapter, ValidationError
        from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

        try:
            try:
                adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            except PydanticUserError:  # a type that brings its own configuration
                adapter = TypeAdapter(hint)
            return adapter.validate_python(value)
        except PydanticSchemaGenerationError:
            return value
        except ValidationError as error:
            expected = error.errors()[0]["msg"]
            raise TutelageError(f"{self.noun} {self.name!r}: parameter {key}={value!r} does not fit {hint}: {expected}.") from None


def _import_all(name: str) -> None:
    """A package and its public modules."""
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if not module.name.startswith("_"):
            importlib.import_module(f"{name}.{module.name}")


def _home(target: Callable[..., Any]) -> tuple[str, str]:
    return target.__module__, target.__qualname__


class Registry:
    """All parts of one noun. `packages` hold the library's own, imported on first use; `tutelage.<plural>` is the entry-point group.

    Of several packages, those after the first may need an extra; without it their parts are not there.
    """

    def __init__(self, noun: str, plural: str, *packages: str) -> None:
        self.noun = noun
        self.group = f"tutelage.{plural}"
        self._packages = packages
        self._parts: dict[str, Part] = {}
        self._begun = 0  # how many packages are imported, or being imported; one more for the entry points

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator: register a class or function under `name`."""

        def add(target: F) -> F:
            if name in self._parts and _home(self._parts[name].target) != _home(target):  # the same place again is a reload
                raise TutelageError(f"The {self.noun} name {name!r} is taken by {self._parts[name].file}; choose another name.")
            self._parts[name] = Part(name, self.noun, target)
            return target

        return add

    def load(self) -> None:
        """Import the library's own parts and those of installed third parties."""
        while self._begun <= len(self._packages):
            self._load_next()

    def _load_next(self) -> None:
        number = self._begun
        self._begun += 1  # before the imports, which may themselves look a name up
        try:
            if number == len(self._packages):
                for entry in importlib.metadata.entry_points(group=self.group):
                    self._load_entry(entry)
            else:
                with contextlib.suppress(*([MissingExtraError] if number else [])):
                    _import_all(self._packages[number])
        except BaseException:
            self._begun = number
            raise

    def _load_entry(self, entry: importlib.metadata.EntryPoint) -> None:
        try:
            entry.load()
        except TutelageError:
            raise
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "an installed package"
            raise TutelageError(
                f"The {self.noun} {entry.name!r} of {package} ({entry.value}) cannot be imported: {type(error).__name__}: {error}. "
                "Repair or uninstall that package."
            ) from error

    def names(self) -> list[str]:
        self.load()
        return sorted(self._parts)

    def get(self, name: str) -> Part:
        """The part called `name`; an unknown name raises `TutelageError` and names the nearest. Nothing is imported beyond need."""
        while name not in self._parts and self._begun <= len(self._packages):
            self._load_next()
        if name not in self._parts:
            raise unknown(self.noun, name, self._parts)
        return self._parts[name]

    def build(self, name: str, /, *args: Any, **config: Any) -> Any:
        """Build the part called `name` with a checked configuration."""
        part = self.get(name)
        checked = part.check(config)
        missing = [n for n, p in part.parameters.items() if p.default is p.empty and n not in checked]
        if missing:
            raise TutelageError(f"The {self.noun} {name!r} needs the parameter {missing[0]!r}, which has no default.")
        return part.target(*args, **checked)


curricula = Registry("curriculum", "curricula", "tutelage.curricula", "tutelage.curricula.neural")
teachers = Registry("teacher", "teachers", "tutelage.teachers")
objectives = Registry("objective", "objectives", "tutelage.objectives")
verifiers = Registry("verifier", "verifiers", "tutelage.tasks.verifiers")
edits = Registry("edit", "edits", "tutelage.edits", "tutelage.model_edits")
audits = Registry("audit", "audits", "tutelage.audits")
replications = Registry("replication", "replications", "tutelage.replications")

NOUNS: tuple[Registry, ...] = (curricula, teachers, objectives, verifiers, edits, audits, replications)

"""Finding parts by name: checked configuration, third parties by decorator and by entry point, and errors that name the nearest."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import tutelage as tt
from tutelage import TaskPool, TutelageError
from tutelage.errors import missing_extra, unknown
from tutelage.registry import NOUNS, Registry, curricula

POOL = TaskPool(arm=[0, 0, 1], difficulty=[0.0, 1.0, 2.0])
OURS = ["dump", "easy_to_hard", "hard_to_easy", "mixture", "odf", "sec", "uniform"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry over a package of our own on disk, with a module that registers one part."""
    package = tmp_path / "school"
    package.mkdir()
    (package / "__init__.py").write_text('"""Empty."""\n')
    (package / "_private.py").write_text("raise RuntimeError('private modules are not imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    school = Registry("lesson", "lessons", "school")
    monkeypatch.setattr("tutelage.registry.school", school, raising=False)
    (package / "first.py").write_text(
        "from __future__ import annotations\n"
        "from tutelage.registry import school\n\n\n"
        '@school.register("first")\n'
        "def first(pool, *, rate: float = 0.5, steps: int, mode: 'str | None' = None) -> dict:\n"
        '    """The first lesson.\n\n    More."""\n'
        "    return {'pool': pool, 'rate': rate, 'steps': steps, 'mode': mode}\n"
    )
    yield school
    for name in [n for n in sys.modules if n.split(".")[0] == "school"]:
        del sys.modules[name]


def entry_point(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = importlib.metadata.EntryPoint(name="theirs", value=value, group="tutelage.lessons")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "tutelage.lessons" else [])


# --- names


def test_the_librarys_own_curricula() -> None:
    assert set(OURS) <= set(curricula.names())
    for name in OURS:
        part = curricula.get(name)
        assert part.noun == "curriculum"
        assert part.summary
        assert Path(part.file).is_file()
        assert "seed" in part.parameters
        built = curricula.build(name, POOL, seed=4)
        assert built.name == name
        assert built.seed == 4


def test_nouns_have_groups_of_their_own() -> None:
    groups = [noun.group for noun in NOUNS]
    assert len(set(groups)) == len(groups)
    assert curricula.group == "tutelage.curricula"


@pytest.mark.parametrize(("asked", "near"), [("uniforn", "'uniform'"), ("easy-to-hard", "'easy_to_hard'"), ("SEC", None), ("zzz", None)])
def test_unknown_names_name_the_nearest(asked: str, near: str | None) -> None:
    with pytest.raises(TutelageError) as raised:
        curricula.get(asked)
    message = str(raised.value)
    assert f"Unknown curriculum {asked!r}." in message
    assert (f"Did you mean {near}?" in message) if near else ("Did you mean" not in message)
    assert "dump, easy_to_hard" in message


def test_a_listing_loads_each_module_once_and_no_private_one(registry: Registry) -> None:
    assert registry.names() == ["first"]
    assert registry.names() == ["first"]
    part = registry.get("first")
    assert part.summary == "The first lesson."
    assert list(part.parameters) == ["rate", "steps", "mode"]
    assert part.file.endswith("first.py")


# --- configuration


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"alph": 0.1}, r"Unknown parameter of curriculum 'sec': 'alph'\. Did you mean 'alpha'\? Known: alpha, by, decay_unseen"),
        ({"pool": POOL}, "Unknown parameter of curriculum 'sec': 'pool'"),
        ({"tau": "warm"}, r"curriculum 'sec': parameter tau='warm' does not fit .*float.*: Input should be a valid number"),
        ({"policy": "softmx"}, "parameter policy='softmx' does not fit .*Input should be 'softmax', 'proportional' or 'greedy'"),
        ({"by": 3}, "parameter by=3 does not fit"),
        ({"seed": 0.5}, "parameter seed=0.5 does not fit"),
        ({"decay_unseen": "maybe"}, "parameter decay_unseen='maybe' does not fit"),
    ],
)
def test_bad_parameters(config: dict[str, Any], said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        curricula.build("sec", POOL, **config)


def test_values_are_converted_as_the_command_line_gives_them() -> None:
    sec = curricula.build("sec", POOL, tau="0.25", decay_unseen="false", by=["arm"], seed="7")
    assert sec.config == {"alpha": 0.5, "tau": 0.25, "by": ("arm",), "decay_unseen": False, "policy": "softmax", "signal": "advantage"}
    assert sec.seed == 7
    mixture = curricula.build("mixture", POOL, weights={"0": "1", "1": 3})
    assert mixture.share_A.tolist() == [0.25, 0.75]


def test_a_parameter_without_default_is_asked_for(registry: Registry) -> None:
    assert registry.build("first", "p", steps="3") == {"pool": "p", "rate": 0.5, "steps": 3, "mode": None}
    with pytest.raises(TutelageError, match="The lesson 'first' needs the parameter 'steps', which has no default"):
        registry.build("first", "p", rate=1.0)


# --- third parties


def test_a_decorator_adds_a_curriculum() -> None:
    @curricula.register("test_backwards")
    class Backwards(tt.Curriculum):
        """From the last row to the first.

        stride: rows skipped.
        """

        name = "test_backwards"

        def __init__(self, pool: TaskPool, *, seed: int = 0, stride: int = 1, end: Literal["wrap"] = "wrap") -> None:
            super().__init__(pool, seed=seed, config={"stride": stride, "end": end})

        def _propose(self, n: int) -> np.ndarray:
            return (len(self.pool) - 1 - np.arange(n) * self.config["stride"]) % len(self.pool)

    try:
        assert "test_backwards" in curricula.names()
        assert curricula.get("test_backwards").summary == "From the last row to the first."
        assert tt.curriculum("test_backwards", POOL, stride="2").propose(4).tolist() == [2, 0, 1, 2]
        with pytest.raises(TutelageError, match="Did you mean 'stride'"):
            tt.curriculum("test_backwards", POOL, strid=2)
    finally:
        del curricula._parts["test_backwards"]


def test_a_taken_name_is_refused_and_a_reload_is_not() -> None:
    curricula.load()

    class SEC(tt.Curriculum):
        """Another of the same class name."""

    SEC.__qualname__ = "SEC"
    with pytest.raises(TutelageError, match=r"The curriculum name 'sec' is taken by .*sec\.py; choose another name"):
        curricula.register("sec")(SEC)
    target = curricula.get("sec").target
    assert curricula.register("sec")(target) is target


def test_an_entry_point_adds_parts(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "school_extra.py").write_text(
        "from tutelage.registry import school\n\n\n@school.register('theirs')\ndef theirs(*, size: int = 1):\n    return size\n"
    )
    entry_point(monkeypatch, "school_extra")
    assert registry.names() == ["first", "theirs"]
    assert registry.build("theirs", size="4") == 4
    sys.modules.pop("school_extra")


def test_a_broken_entry_point_is_named_and_can_be_repaired(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, "no_such_module_anywhere")
    for _ in range(2):  # the second time too: a failed load is not taken for a finished one
        with pytest.raises(
            TutelageError, match=r"The lesson 'theirs' of .* \(no_such_module_anywhere\) cannot be imported: ModuleNotFoundError"
        ):
            registry.names()
    monkeypatch.undo()


def test_a_broken_module_of_the_library_raises_every_time(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "school" / "second.py").write_text("raise RuntimeError('broken')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            registry.names()
    (tmp_path / "school" / "second.py").unlink()
    assert registry.names() == ["first"]


# --- the words


def test_the_errors_words() -> None:
    assert str(unknown("arm", "eazy", ["easy", "hard"])) == "Unknown arm 'eazy'. Did you mean 'easy'? Known: easy, hard."
    assert str(unknown("arm", "x", [])) == "Unknown arm 'x'. Known: none."
    assert "pip install 'tutelage[lm]'" in str(missing_extra("torch", "lm"))


def test_finding_curricula_imports_no_torch() -> None:
    script = """
        import sys
        import tutelage
        from tutelage.registry import curricula
        from tutelage.testing import check_curriculum
        assert len(curricula.names()) >= 7
        heavy = {"torch", "transformers", "trl", "datasets"} & set(sys.modules)
        print(sorted(heavy))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(tt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "[]", done.stderr

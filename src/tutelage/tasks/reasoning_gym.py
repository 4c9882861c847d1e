"""Tasks from reasoning-gym: families as arms, in graded levels, with that library's own verifiers.

A level is a dict of the family's generator settings. `BUILTIN_LEVELS` holds levels made for the built-in student; `levels_of` reads the
library's own curriculum attributes for any of its families. Held-out tasks are told apart by a hash of the question, never by the
generator's seed: small families repeat themselves across seeds, so a seed split would leak.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.pools import TaskPool
from tutelage.tasks.families import BUILTIN_LEVELS
from tutelage.tasks.solutions import worked_solution
from tutelage.tasks.tables import pool_of

log = logging.getLogger(__name__)

Settings = dict[str, Any]
"""One level of a family: its generator's settings."""

HELDOUT_SHARE = 8
"""One question in this many is held out of all training, the built-in student's included."""


def is_heldout(question: str) -> bool:
    """Whether a question belongs to the held-out eighth (decided by its BLAKE2 hash alone)."""
    return hashlib.blake2b(question.encode(), digest_size=4).digest()[0] % HELDOUT_SHARE == 0


def generate(family: str, level: dict[str, Any], seed: int, *, chunk: int = 256) -> Iterator[dict[str, Any]]:
    """Yield endless rows `question`, `answer`, `entry` (the library's own record as JSON, which its verifier reads) and `solution`.

    The worked solution is None for families that `tutelage.tasks.solutions` does not know.
    """
    import reasoning_gym

    offset = 0
    while True:
        # A fresh seed for each chunk: one reasoning-gym data set derives item i from seed + i, so neighbouring seeds overlap.
        dataset = reasoning_gym.create_dataset(family, seed=_mix(seed, family, offset), size=chunk, **level)
        for i in range(chunk):
            entry = dataset[i]
            yield {
                "question": entry["question"],
                "answer": str(entry["answer"]),
                "entry": json.dumps(entry, default=str, ensure_ascii=False),
                "solution": worked_solution(family, entry),
            }
        offset += 1


def _mix(seed: int, family: str, offset: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{family}/{offset}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1)


PATIENCE = 1024
"""Draws in a row without a new question after which a level counts as exhausted."""


UNREPEATABLE = frozenset({"codeio", "isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note"})
"""Families whose questions differ between processes at one seed, by a global generator or the order of sets (reasoning-gym 0.1.25)."""


def make_pool(
    families: str | Sequence[str] | Mapping[str, Sequence[Settings]] | None = None,
    *,
    levels: int | None = None,
    tasks_per_arm: int = 256,
    seed: int = 0,
    heldout: bool = False,
) -> TaskPool:
    """A pool of reasoning-gym families in levels: arms `family/level` (levels from 1), difficulty = level.

    families: None for the built-in set; names, which take their built-in levels where there are some, else `levels_of(name, count=4)`; or a
    mapping from names to levels as generator settings. levels: only the first so many of each family (for names without built-in levels: so
    many). heldout: only questions that `is_heldout` selects, otherwise only the others.

    Columns: prompt, answer, solution (worked, null where `tutelage.tasks.solutions` does not know the family; left out where it knows
    none), entry (the library's record as JSON), family, level; the key is the hash of the question. A question stands in the pool once, at
    the lowest level that drew it. A level with fewer questions than asked for gives those it has, and a log line says so.
    The same arguments give the same pool, but for the families in `UNREPEATABLE`, of which a log line warns. Raises `TutelageError` for
    unknown families and settings, and for a level without any question.
    """
    if tasks_per_arm < 1:
        raise TutelageError(f"tasks_per_arm={tasks_per_arm} must be at least 1.")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    short: list[str] = []
    for family, settings in _levels_by_family(families, levels).items():
        if family in UNREPEATABLE:
            log.warning(
                f"reasoning-gym draws other questions of {family!r} in each process, at any seed; leave it out of runs to be repeated."
            )
        for level, level_settings in enumerate(settings, start=1):
            drawn = _draw(family, level, level_settings, seed, tasks_per_arm, heldout, seen)
            if not drawn:
                raise _exhausted(f"{family}/{level}", heldout)
            if len(drawn) < tasks_per_arm:
                short.append(f"{family}/{level} {len(drawn)}")
            rows += [{**row, "family": family, "level": level} for row in drawn]
    if short:
        # The built-in set is known to have small levels; of what a user chose it is news.
        log.log(
            logging.INFO if families is None else logging.WARNING,
            f"{len(short)} arms have fewer {'held-out ' if heldout else ''}questions than {tasks_per_arm}: {', '.join(short)}.",
        )
    if not any(row["solution"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "solution"} for row in rows]
    return pool_of(rows, prompt="question", answer="answer", arm=["family", "level"], difficulty="level", source="reasoning-gym")


def _exhausted(arm: str, heldout: bool) -> TutelageError:
    kind = f"held-out questions (one in {HELDOUT_SHARE}, chosen by hash)" if heldout else "questions of its own for training"
    return TutelageError(
        f"Arm {arm} has no {kind}: {PATIENCE} draws brought none that no lower level has. The level is too small or repeats another; "
        "leave it out, or give the family levels of your own as {name: [settings, ...]}."
    )


def _draw(family: str, level: int, settings: Settings, seed: int, count: int, heldout: bool, seen: set[str]) -> list[dict[str, Any]]:
    """Up to `count` rows whose questions are not in `seen`, which grows by them."""
    rows: list[dict[str, Any]] = []
    idle = 0
    try:
        for row in generate(family, settings, _mix(seed, family, level)):  # levels must not share a seed: they would draw alike
            question = row["question"]
            if is_heldout(question) == heldout and question not in seen:
                seen.add(question)
                rows.append(row)
                idle = 0
            else:
                idle += 1
            if len(rows) == count or idle == PATIENCE:
                break
    except Exception as error:  # a generator may fail in any way on settings it does not check
        raise TutelageError(
            f"reasoning-gym cannot generate {family}/{level} with the settings {settings}: {type(error).__name__}: {error}. "
            "Change the settings of this level or leave it out."
        ) from error
    return rows


def _levels_by_family(families: Any, levels: int | None) -> dict[str, list[Settings]]:
    """What `make_pool` was asked for, checked: settings of each level of each family."""
    catalogue = _catalogue()
    if levels is not None and levels < 1:
        raise TutelageError(f"levels={levels} must be at least 1.")
    names = [families] if isinstance(families, str) else list(BUILTIN_LEVELS if families is None else families)
    if not names:
        raise TutelageError("No reasoning-gym family was named, so the task pool would be empty; name one or leave the argument out.")
    chosen: dict[str, list[Settings]] = {}
    for name in names:
        if name not in catalogue:
            raise unknown("reasoning-gym family", name, catalogue)
        given = families[name] if isinstance(families, Mapping) else BUILTIN_LEVELS.get(name) or levels_of(name, levels or 4)
        if not given or (levels or 1) > len(given):
            raise TutelageError(
                f"Family {name!r} has {len(given)} levels here; {levels or 'at least one'} asked for. Ask for fewer, or pass a mapping "
                f"with levels of your own; {{{name!r}: levels_of({name!r}, count)}} takes the library's."
            )
        chosen[name] = [_checked(name, dict(settings), catalogue) for settings in given[:levels]]
    return chosen


def _checked(family: str, settings: Settings, catalogue: Mapping[str, Any]) -> Settings:
    known = [name for name in catalogue[family][1].__dataclass_fields__ if name not in ("seed", "size")]
    for name in settings:
        if name not in known:
            raise unknown(f"setting of reasoning-gym's {family!r}:", name, known)
    return settings


def _catalogue() -> Mapping[str, Any]:
    """reasoning-gym's families: name to (data set class, configuration class)."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise missing_extra("reasoning-gym", "lm") from None
    return DATASETS


def levels_of(family: str, count: int = 4, *, inclusive: bool = True) -> list[Settings]:
    """The first `count` levels of reasoning-gym's own curriculum for a family, as generator settings, easiest first.

    Level k sets every attribute of the curriculum to its k-th level, or to its last where it has fewer. An attribute that is a range
    reaches from its first to its k-th level (inclusive, the library's default), or spans the k-th alone; the latter parts the levels
    cleanly, but some generators fail on it. The list is shorter where the library defines fewer levels; levels that the family's own
    configuration refuses are left out, and a log line says so. A family without a curriculum has one level: its default settings.
    """
    catalogue = _catalogue()
    if family not in catalogue:
        raise unknown("reasoning-gym family", family, catalogue)
    if count < 1:
        raise TutelageError(f"count={count} must be at least 1.")
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA

    if family not in CURRICULA:
        return [{}]
    context = DefaultCurriculumContext(mode=RangeAttributeMode.INCLUSIVE if inclusive else RangeAttributeMode.UPPER_BOUND)
    highest = max(len(attribute.levels) for attribute in CURRICULA[family]().attributes.values())
    levels: list[Settings] = []
    for number in range(min(count, highest)):
        curriculum = CURRICULA[family]()
        curriculum.set_global_level(number)
        config = curriculum.generate_configuration(context=context)
        try:
            getattr(config, "validate", lambda: None)()  # some configurations have none
        except AssertionError as error:
            log.warning(f"reasoning-gym refuses level {number + 1} of its own curriculum for {family!r} ({error}); it is left out.")
            continue
        levels.append({name: getattr(config, name) for name in _fields(curriculum)})
    if not levels:
        raise TutelageError(
            f"reasoning-gym refuses every level of its own curriculum for {family!r}; pass levels of your own: {{{family!r}: [settings]}}."
        )
    return levels


def _fields(curriculum: Any) -> list[str]:
    """The configuration fields that a curriculum's attributes set."""
    names = ("field_name", "lower_field_name", "upper_field_name")
    return [getattr(attribute, name) for attribute in curriculum.attributes.values() for name in names if hasattr(attribute, name)]

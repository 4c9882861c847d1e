"""Tables to task pools, and task pools to the data sets that a trainer reads.

`pool_of` finds the columns by name and makes each task's identity from its prompt; `to_dataset` writes the same rows, in the same order, as
TRL wants them, with the chat template where the tokenizer has one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError, missing_extra, unknown
from tutelage.pools import TaskPool
from tutelage.tasks.readers import columns_of_rows, one_split
from tutelage.tasks.solutions import from_answers

PROMPT_NAMES = ("prompt", "question", "problem", "input", "instruction")
ANSWER_NAMES = ("answer", "solution", "target", "output", "response", "label")
SOLUTION_NAMES = ("solution", "worked_solution", "rationale", "demonstration", "explanation", "reasoning")
RESERVED = frozenset(
    {"attention_mask", "chosen", "completion", "completion_ids", "completions", "environment", "environments", "input_ids", "labels"}
    | {"log_extra", "log_metric", "messages", "prompts", "rejected", "tools", "trainer_state"}
)
"""Column names that TRL reads, or passes to reward functions itself; `to_dataset` writes such columns as `task_<name>`."""


def prompt_key(prompt: Any) -> str:
    """The identity of a task without a key column: the 128-bit BLAKE2b hash of its prompt (text, or chat messages as JSON), in hex."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def pool_of(
    table: Any,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    solution: str | None = None,
    arm: str | Sequence[str] | Mapping[str, Any] | None = None,
    difficulty: str | None = None,
    key: str | None = None,
    source: str = "",
) -> TaskPool:
    """A pool over a table: columns as a mapping, a list of mappings, or a `datasets.Dataset` (whose columns stay there and are indexed).

    prompt, answer: column names; by default the first that is there of prompt, question, problem, input, instruction, and of answer,
    solution, target, output, response, label. In the pool they are called `prompt` and `answer`; every other column keeps its name, but for
    one that would take the place of these or of `key`, which becomes `original_<name>`. A prompt is text or a list of chat messages.
    solution: the column of worked solutions (text, or null where there is none), in the pool `solution`; by default the first that is
    there and is text of solution, worked_solution, rationale, demonstration, explanation, reasoning; without one, the workings that the
    answers themselves hold (`tutelage.tasks.solutions.from_answers`: GSM8K, MATH).
    arm: a column, several (their product makes the arms), or labels by name; default one arm. difficulty: a numeric column, larger is
    harder, or "length", which is the number of characters of the answer where no column is called so. key: a column of unique integers or
    strings; default `prompt_key`, or the row number where there is no prompt. source: where the table came from, for error messages.
    """
    columns = columns_of(table, source)
    if not columns or not len(next(iter(columns.values()))):
        raise TutelageError(f"{source or 'The table'} holds no tasks. Expected at least one row; check the file, the filter or the split.")
    kept = renamed(columns, prompt=prompt, answer=answer, solution=solution, source=source)
    if "key" in kept:  # a pool's row is told apart by its key, so no further column may be called so
        column = kept.pop("key")
        if key != "key":
            kept["original_key"] = column
    for row, value in enumerate(kept.get("prompt", ())):
        _check_prompt(value, row, source)
    return TaskPool(
        arm=_arms(columns, arm, source),
        difficulty=_difficulty(columns, kept.get("answer"), difficulty, source),
        key=_keys(columns, kept.get("prompt"), key, source),
        columns=kept,
    )


def columns_of(table: Any, source: str = "") -> dict[str, Any]:
    """The columns of a table by name, as they are; what is no table raises `TutelageError`."""
    if hasattr(table, "column_names") and not isinstance(table, Mapping):
        if not hasattr(table, "__len__"):
            raise TutelageError(
                "A streaming dataset has no length and cannot be indexed, so its tasks cannot be drawn by number. "
                "Load it without streaming=True, or make a dataset of its first rows: Dataset.from_list(list(stream.take(n)))."
            )
        return {name: table[name] for name in table.column_names}
    if isinstance(table, Mapping):
        if table and all(hasattr(value, "column_names") for value in table.values()):  # a DatasetDict
            return columns_of(one_split(table, source, "Pass one of them, for instance the one called"), source)
        return dict(table)
    if isinstance(table, Sequence) and not isinstance(table, str):
        return columns_of_rows(table, source)
    raise TutelageError(
        f"A table of tasks is a mapping from names to columns, a list of mappings, or a datasets.Dataset; got {type(table).__name__}."
    )


def _named(columns: Mapping[str, Any], name: str, role: str, source: str) -> Any:
    if name not in columns:
        where = f" of {source}:" if source else ""
        raise TutelageError(f"{unknown(f'{role} column{where}', name, columns)} Pass {role}= the name of one of these.")
    return columns[name]


def _find(columns: Mapping[str, Any], name: str | None, candidates: Sequence[str], role: str, source: str) -> str | None:
    """The column that plays a role: the one named, else the first candidate that is there, else None."""
    if name is not None:
        _named(columns, name, role, source)
        return name
    found = [candidate for candidate in candidates if candidate in columns]
    if found[:2] == ["input", "instruction"]:
        raise TutelageError(
            f"{source or 'The table'} has the columns 'input' and 'instruction', and either could be the prompt. Name it with prompt=, or "
            "join the two into a column 'prompt' first (in Alpaca's format the input completes the instruction)."
        )
    return found[0] if found else None


def renamed(
    columns: Mapping[str, Any], *, prompt: str | None, answer: str | None, solution: str | None = None, source: str = ""
) -> dict[str, Any]:
    """The columns with those of prompt, answer and worked solution under these names (see `pool_of`), and all others under their own."""
    prompt = _find(columns, prompt, PROMPT_NAMES, "prompt", source)
    answer = _find(columns, answer, ANSWER_NAMES, "answer", source)
    roles = {"prompt": prompt, "answer": answer, "solution": _find_solution(columns, solution, (prompt, answer), source)}
    kept = {role: columns[name] for role, name in roles.items() if name is not None}
    for name, column in columns.items():
        if name not in roles.values():
            kept[f"original_{name}" if name in kept else name] = column
    if "solution" not in kept and "answer" in kept and (workings := from_answers(kept["answer"])) is not None:
        kept["solution"] = workings
    return kept


def _find_solution(columns: Mapping[str, Any], name: str | None, taken: Sequence[str | None], source: str) -> str | None:
    """The column of worked solutions: the one named, else the first candidate that has no other role and holds text."""
    if name is None:
        found = [candidate for candidate in SOLUTION_NAMES if candidate in columns and candidate not in taken]
        return next((candidate for candidate in found if _not_text(columns[candidate]) is None), None)
    wrong = _not_text(_named(columns, name, "solution", source))
    if wrong is not None:
        raise TutelageError(
            f"The worked solution in column {name!r} is {columns[name][wrong]!r} in {_where(wrong, source)}; expected text, or null where "
            "there is none. Name another column with solution=."
        )
    return name


def _not_text(column: Any) -> int | None:
    """The first row that is neither text nor null; the first at all where there is no text."""
    rows = list(column)
    other = next((row for row, value in enumerate(rows) if value is not None and not isinstance(value, str)), None)
    return 0 if other is None and not any(rows) else other


def _where(row: int, source: str) -> str:
    return f"row {row + 1}{f' of {source}' if source else ''} (counted from 1)"


def _check_prompt(value: Any, row: int, source: str) -> None:
    if isinstance(value, str) and value.strip():
        return
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if all(isinstance(message, Mapping) and "role" in message and "content" in message for message in value):
            return
        raise TutelageError(
            f"The prompt in {_where(row, source)} is a list, but not of chat messages: {str(value)[:80]}. "
            'Expected text, or messages such as [{"role": "user", "content": "1 + 1 ="}].'
        )
    what = "blank" if isinstance(value, str) or not value else f"of type {type(value).__name__}"
    raise TutelageError(
        f"The prompt in {_where(row, source)} is {what}: {str(value)[:60]!r}. "
        "Expected text that is not blank, or a list of chat messages; drop the row or choose another column with prompt=."
    )


def _arms(columns: Mapping[str, Any], arm: Any, source: str) -> dict[str, NDArray[Any]] | None:
    if arm is None or isinstance(arm, Mapping):
        return None if arm is None else dict(arm)
    names = [arm] if isinstance(arm, str) else list(arm)
    return {name: _labels(_named(columns, name, "arm", source), name, source) for name in names}


def _labels(column: Any, name: str, source: str) -> NDArray[Any]:
    """A column of labels as an array. Whole floats (integers beside which a null once stood) become integers; mixed types become text."""
    values = _values(column)
    for row, value in enumerate(values):
        if not isinstance(value, (str, Real)) or value != value:  # NaN alone differs from itself
            fix = "fill the column or drop the row" if value is None or value != value else "use a column of text or numbers"
            raise TutelageError(
                f"The arm in column {name!r} is {str(value)[:60]} in {_where(row, source)}; every task needs an arm: {fix}."
            )
    is_text = {isinstance(value, str) for value in values}
    labels = np.asarray(values if len(is_text) == 1 else [str(value) for value in values])
    whole = labels.dtype.kind == "f" and (labels == np.round(labels)).all()
    return labels.astype(np.int64) if whole else labels


def _values(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _difficulty(columns: Mapping[str, Any], answers: Any, name: str | None, source: str) -> NDArray[np.float32] | None:
    if name is None:
        return None
    if name == "length" and "length" not in columns and answers is not None:
        return np.fromiter((len(str(answer)) for answer in answers), dtype=np.float32, count=len(answers))
    values = _values(_named(columns, name, "difficulty", source))
    for row, value in enumerate(values):
        if not isinstance(value, Real) or not np.isfinite(float(value)):
            raise TutelageError(
                f"The difficulty in column {name!r} is {value!r} in {_where(row, source)}; expected a finite number, larger for harder "
                "tasks. Convert the column, or use it as arm= if it holds labels."
            )
    return np.asarray(values, dtype=np.float32)


def _keys(columns: Mapping[str, Any], prompts: Any, name: str | None, source: str) -> Any:
    if name is not None:
        values = _values(_named(columns, name, "key", source))
        for row, value in enumerate(values):
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                raise TutelageError(
                    f"The key in column {name!r} is {value!r} in {_where(row, source)}; expected an integer or text, unique to the task."
                )
        return np.asarray(values if len({isinstance(value, str) for value in values}) == 1 else [str(value) for value in values])
    if prompts is None:
        return None
    key_N = np.asarray([prompt_key(prompt) for prompt in prompts])
    repeats = len(key_N) - len(np.unique(key_N))
    if repeats:
        raise _repeated(key_N, repeats, prompts, source)
    return key_N


def _repeated(key_N: NDArray[Any], repeats: int, prompts: Any, source: str) -> TutelageError:
    seen: dict[str, int] = {}
    row, first = next((row, first) for row, key in enumerate(key_N.tolist()) if (first := seen.setdefault(key, row)) != row)
    return TutelageError(
        f"Duplicate keys: rows {first + 1} and {row + 1}{f' of {source}' if source else ''} (counted from 1) have the same prompt "
        f"{str(prompts[row])[:60]!r}, and {repeats} rows in all repeat an earlier prompt. Without a key column a task is known by its "
        "prompt's hash; drop the repetitions, or name a column of unique keys with key=."
    )


def to_dataset(pool: TaskPool, tokenizer: Any = None, *, template: str | None = None) -> Any:
    """The pool as a `datasets.Dataset` for TRL: row i of the data set is row i of the pool.

    Column `prompt` is conversational (`[{"role": "user", "content": …}]`, to which TRL applies the chat template) where the tokenizer has a
    chat template, else plain text that ends in a newline. `key` and all further columns follow under their names, those of `RESERVED` as
    `task_<name>`. Chat prompts of several messages need a chat template. Values are copied into the data set.

    template: a text in which `{prompt}` stands for the task's prompt (of chat messages, for the content of the last); other braces are
    left as they are. Plain text is then exactly the template. A base model that does not follow instructions is given one with
    `tokenizer=None`, so that no chat template is used.
    """
    try:
        import datasets
        import pyarrow
    except ImportError:
        raise missing_extra("datasets", "lm") from None
    if "prompt" not in pool.columns:
        raise TutelageError(
            f"This pool has no column 'prompt'; its columns are {', '.join(pool.columns) or 'none'}. A trainer needs prompts."
        )
    if template is not None and "{prompt}" not in template:
        raise TutelageError(f"The template {template[:60]!r} has no place for the task; write {{prompt}} where its prompt goes.")
    make = _as_messages if getattr(tokenizer, "chat_template", None) else _as_text
    columns = {"prompt": [make(prompt, template) for prompt in pool.columns["prompt"]], "key": pool.key_N.tolist()}
    for name, column in pool.columns.items():
        if name not in columns:
            columns[f"task_{name}" if name in RESERVED else name] = _values(column)
    try:
        return datasets.Dataset.from_dict(columns)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        mixed = [name for name, column in columns.items() if not _fits(column)]
        raise TutelageError(
            f"A data set cannot hold the columns {', '.join(map(repr, mixed))}: their values are of mixed types, or too large. Give all "
            "values of a column one type (write numbers as text, say), or leave the column out of the pool."
        ) from None


def with_answers(dataset: Any, column: str = "answer") -> Any:
    """The rows of `to_dataset` as prompt and completion for supervised training, both as chat messages where the prompts are.

    column: what is imitated: the "answer", or the worked "solution"; a row without it raises.
    """
    import datasets

    if column not in dataset.column_names:
        raise TutelageError(
            f"There is nothing to imitate: the tasks have no column {column!r}; theirs are {', '.join(dataset.column_names)}. Name yours "
            "in `columns`, or imitate another one."
        )
    prompts, texts = dataset["prompt"][:], dataset[column][:]
    for row, text in enumerate(texts):
        if text is None or not str(text).strip():
            raise TutelageError(
                f"The {column} of task {row + 1} (counted from 1) is {text!r}: there is nothing to imitate. Fill it, or drop it."
            )
    chat = not isinstance(prompts[0], str)
    completions = [[{"role": "assistant", "content": str(text)}] if chat else str(text) for text in texts]
    return datasets.Dataset.from_dict({"prompt": prompts, "completion": completions})


def _fits(column: list[Any]) -> bool:
    import pyarrow

    try:
        pyarrow.array(column)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        return False
    return True


def _as_messages(prompt: Any, template: str | None) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    if template is not None:
        messages[-1]["content"] = template.replace("{prompt}", _plain_content(messages[-1]["content"]))
    return messages


def _as_text(prompt: Any, template: str | None) -> str:
    if not isinstance(prompt, str):
        if len(prompt) > 1:
            raise TutelageError(
                f"A prompt consists of {len(prompt)} chat messages, but the tokenizer has no chat template to join them. Use a tokenizer "
                "with a chat template (an instruction-tuned model's), or prompts that are plain text."
            )
        prompt = _plain_content(prompt[0]["content"])
    if template is not None:
        return template.replace("{prompt}", prompt)
    return prompt if prompt.endswith("\n") else f"{prompt}\n"


def _plain_content(content: Any) -> str:
    if not isinstance(content, str):
        raise TutelageError(
            f"A prompt's message holds {type(content).__name__} {str(content)[:60]!r}, not plain text: without a chat template, or in a "
            "prompt template, only text has a place. Use a tokenizer with a chat template and no template, or prompts that are plain text."
        )
    return content

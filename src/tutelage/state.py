"""A state on disk: nested mappings of plain values and numpy arrays in one `.npz` file, without pickle.

The file is an ordinary zip archive: `state.json` holds everything but the arrays, each of which is an `.npy` entry that the JSON refers to
as {"$array": name}. Integers of any size (the 128 bits of a generator) and floats come back exactly; tuples come back as lists, numpy
scalars as Python numbers.
"""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TutelageError
from tutelage.files import atomic_open

_FORMAT = "tutelage-state-1"
_REFERENCE = "$array"


def save_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` to `path`, all or nothing (see `tutelage.files`).

    Raises `TutelageError` for a value that is neither JSON nor an array, naming its place, and for a file that cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    document = json.dumps({"format": _FORMAT, "state": _encode(state, "state", arrays)})
    with atomic_open(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("state.json"), document)  # no clock: equal states make equal files
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state that `save_state` wrote; a missing, truncated or damaged file raises `TutelageError` and names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # every checksum, before anything is believed
            if damaged is not None:
                raise zipfile.BadZipFile(f"bad checksum of its entry {damaged}")
            document = json.loads(archive.read("state.json"))
            if document["format"] != _FORMAT:
                raise TutelageError(f"{path} has the format {document['format']!r}; this version of tutelage reads {_FORMAT!r}.")
            return _decode(document["state"], archive)
    except TutelageError:
        raise
    except FileNotFoundError:
        raise TutelageError(f"There is no state file {path}.") from None
    except Exception as error:  # damage can surface anywhere in zipfile, json or numpy
        raise TutelageError(
            f"{path} is not a whole tutelage state: {error or type(error).__name__}. It may have been cut short while being copied, or be "
            "another kind of file; fall back to an earlier checkpoint."
        ) from error


def _encode(value: Any, place: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """`value` as JSON, its arrays moved to `arrays`."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str) or key == _REFERENCE]
        if wrong:
            raise TutelageError(f"{place} has the key {wrong[0]!r}; the keys of a state are strings other than {_REFERENCE!r}.")
        return {key: _encode(item, f"{place}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {_REFERENCE: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = "an array of Python objects" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise TutelageError(f"{place} is {kind}; a state holds mappings, lists, numbers, strings, booleans, None and arrays of plain types.")


def _decode(value: Any, archive: zipfile.ZipFile) -> Any:
    if isinstance(value, list):
        return [_decode(item, archive) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_REFERENCE}:
        with archive.open(f"{value[_REFERENCE]}.npy") as entry:
            return np.lib.format.read_array(entry, allow_pickle=False)
    return {key: _decode(item, archive) for key, item in value.items()}

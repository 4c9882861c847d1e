"""State files and atomic writing: exact round trips, damage of every kind, full disks and interrupted writes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tutelage.errors import TutelageError
from tutelage.files import atomic_dir, atomic_open, atomic_write
from tutelage.state import load_state, save_state
from tutelage.testing._lessons import same

plain = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(max_size=8)
arrays = hnp.arrays(st.sampled_from(["f8", "f4", "i8", "i1", "u8", "?", "U3", "c16"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
keys = st.text(max_size=6).filter(lambda key: key != "$array")
states = st.dictionaries(
    keys, st.recursive(plain | arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
)


def whole() -> dict[str, Any]:
    """A state as a curriculum has it."""
    return {
        "schema": 1,
        "config": {"tau": 0.1, "by": None, "weights": {"easy": 1 / 3}},
        "rng": np.random.default_rng(0).bit_generator.state,
        "memory": {"value_A": np.linspace(0, 1, 7), "count_A": np.arange(7), "names": ["a", "b"]},
    }


# --- round trips


@settings(max_examples=80, deadline=None)
@given(states)
def test_every_state_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("state") / "s.npz"
    save_state(path, state)
    assert same(load_state(path), state)


def test_generators_resume_from_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng([7, 2**31])
    rng.random(5)
    save_state(tmp_path / "s.npz", {"rng": rng.bit_generator.state})
    other = np.random.default_rng(0)
    other.bit_generator.state = load_state(tmp_path / "s.npz")["rng"]
    assert np.array_equal(rng.random(1000), other.random(1000))


def test_equal_states_make_equal_files_that_numpy_reads_without_pickle(tmp_path: Path) -> None:
    save_state(tmp_path / "a.npz", whole())
    save_state(tmp_path / "b.npz", whole())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["array_0"], np.linspace(0, 1, 7))
        assert json.loads(archive["state.json"])["state"]["config"]["tau"] == 0.1


def test_numpy_scalars_and_tuples_become_plain(tmp_path: Path) -> None:
    save_state(tmp_path / "s.npz", {"n": np.int64(3), "x": np.float32(0.5), "flag": np.bool_(True), "pair": (1, np.arange(2))})
    back = load_state(tmp_path / "s.npz")
    assert back["n"] == 3
    assert type(back["n"]) is int
    assert back["x"] == 0.5
    assert back["flag"] is True
    assert back["pair"][0] == 1
    assert back["pair"][1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"memory": {"f": len}}, "state.memory.f is a builtin_function"),
        ({"memory": [1, {2, 3}]}, r"state.memory\[1\] is a set"),
        ({"x": np.array([None, 1])}, "state.x is an array of Python objects"),
        ({"x": {3: 1}}, "state.x has the key 3"),
        ({"$array": "array_0"}, "has the key '.array'"),
        ({"x": 1j}, "state.x is a complex"),
        ({"x": b"ab"}, "state.x is a bytes"),
    ],
)
def test_what_is_not_plain_is_refused_and_nothing_is_written(tmp_path: Path, state: dict[str, Any], said: str) -> None:
    path = tmp_path / "s.npz"
    save_state(path, {"old": 1})
    with pytest.raises(TutelageError, match=said):
        save_state(path, state)
    assert load_state(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["s.npz"]


# --- damage


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_state(path, whole())
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(TutelageError, match=r"s\.npz is not a whole tutelage state"):
            load_state(path)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save_state(path, whole())
    data = path.read_bytes()
    noticed = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x01  # of a digit it makes another digit
        path.write_bytes(broken)
        try:
            back = load_state(path)
        except TutelageError:
            noticed += 1
        else:
            assert same(back, whole()), f"byte {place} changed the state unnoticed"
    assert noticed > len(data) / 2  # the rest are time stamps and padding of the archive


def test_a_header_that_promises_less_than_there_is(tmp_path: Path) -> None:
    """Reading half an array never reaches the checksum at its end."""
    path = tmp_path / "s.npz"
    save_state(path, {"value": np.arange(2000.0)})
    assert path.read_bytes().count(b"(2000,)") == 1
    path.write_bytes(path.read_bytes().replace(b"(2000,)", b"(1000,)"))
    with pytest.raises(TutelageError, match="bad checksum of its entry array_0"):
        load_state(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", w=np.zeros(3))
    np.savez(tmp_path / "objects.npz", w=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("weights.npz", "objects.npz", "text.npz"):
        with pytest.raises(TutelageError, match=name):
            load_state(tmp_path / name)
    with pytest.raises(TutelageError, match=r"There is no state file .*absent\.npz"):
        load_state(tmp_path / "absent.npz")


def test_pickled_arrays_and_later_formats_are_refused(tmp_path: Path) -> None:
    document = {"format": "tutelage-state-1", "state": {"x": {"$array": "array_0"}}}
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("state.json", json.dumps(document))
        with archive.open("array_0.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TutelageError, match=r"evil\.npz"):
        load_state(tmp_path / "evil.npz")
    with zipfile.ZipFile(tmp_path / "later.npz", "w") as archive:
        archive.writestr("state.json", json.dumps({"format": "tutelage-state-2", "state": {}}))
    with pytest.raises(TutelageError, match="'tutelage-state-2'; this version of tutelage reads 'tutelage-state-1'"):
        load_state(tmp_path / "later.npz")


# --- atomic writing


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    atomic_write(path, "größer")
    atomic_write(path, b"again")
    assert path.read_bytes() == b"again"
    assert os.listdir(path.parent) == ["a.txt"]


def test_atomic_write_keeps_the_usual_permissions_and_links(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic_write(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to(tmp_path / "a")
    atomic_write(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "through"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "s.npz"
    save_state(path, {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(TutelageError, match=r"Cannot write .*s\.npz: No space left on device.*unchanged"):
            save_state(path, whole())
    assert load_state(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["s.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """The kernel itself refuses the write, in the middle of an array."""
    script = """
        import resource, sys
        import numpy as np
        from tutelage.errors import TutelageError
        from tutelage.state import load_state, save_state
        path = sys.argv[1]
        save_state(path, {"old": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_state(path, {"big": np.zeros(1_000_000)})
        except TutelageError as error:
            assert path in str(error), error
            assert load_state(path) == {"old": 1}
            print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s.npz")],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.stdout.strip() == "refused", done.stderr
    assert os.listdir(tmp_path) == ["s.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_while_writing(tmp_path: Path) -> None:
    """A process killed at any moment leaves the old state or the new one, never a part."""
    script = """
        import sys
        import numpy as np
        from tutelage.state import save_state
        step = 0
        while True:
            step += 1
            save_state(sys.argv[1], {"step": step, "value": np.full(200_000, step)})
            print(step, flush=True)
    """
    path = tmp_path / "s.npz"
    for lessons in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True, env=_environment()
        )
        assert process.stdout is not None
        for _ in range(lessons):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        state = load_state(path)
        assert state["step"] >= lessons
        assert (state["value"] == state["step"]).all()


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_open(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(TutelageError, match=r"Cannot write .*a/b\.txt"):
        atomic_write(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a").read_text() == "a file"


def test_atomic_dir_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "model") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"123")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "sub" / "weights").read_bytes() == b"123"
    assert os.listdir(tmp_path) == ["model"]


def test_a_failing_block_leaves_no_folder(tmp_path: Path) -> None:
    def fill(source: Path) -> None:
        with atomic_dir(tmp_path / "model") as folder:
            (folder / "weights").write_bytes(b"123")
            (folder / "more").write_bytes(source.read_bytes())

    with pytest.raises(TutelageError, match=r"Cannot write .*model: No such file or directory \(.*absent\)"):
        fill(tmp_path / "absent")
    assert os.listdir(tmp_path) == []


def test_atomic_dir_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_dir(tmp_path / "empty") as folder:
        (folder / "a").write_text("x")
    with pytest.raises(TutelageError, match="exists already"), atomic_dir(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty" / "a").read_text() == "x"


def _environment() -> dict[str, str]:
    import tutelage

    return {**os.environ, "PYTHONPATH": str(Path(tutelage.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

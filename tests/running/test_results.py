"""Result files: whole or not at all, never mixed, never unpickled."""

import pickle

import numpy as np
import pytest

from script_tools import results


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.npz"
    results.save(path, {"x": np.arange(3.0), "names": ["a", "b"]}, {"eps": 0.1, "net": "tiny"})
    arrays, settings = results.load(path)
    assert arrays["x"].tolist() == [0, 1, 2] and arrays["names"].tolist() == ["a", "b"]
    assert settings == {"eps": 0.1, "net": "tiny"}
    first = path.read_bytes()
    results.save(path, {"x": np.arange(3.0), "names": ["a", "b"]}, {"net": "tiny", "eps": 0.1})
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    assert results.resume(path, {"seed": 0}) == {}
    results.save(path, {"x": np.zeros(1)}, {"seed": 0, "points": 30})
    assert list(results.resume(path, {"seed": 0, "points": 30})) == ["x"]
    with pytest.raises(ValueError, match=r"other settings \(seed 0 there, 1 now\)"):
        results.resume(path, {"seed": 1, "points": 30})


class Bomb:
    fired = False

    def __reduce__(self):
        return setattr, (Bomb, "fired", True)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "object array", "another npz"])
def test_foreign_files_are_refused_and_never_unpickled(tmp_path, kind):
    path = tmp_path / "a.npz"
    results.save(path, {"x": np.arange(100.0)}, {})
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("eps,value\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "object array":
        np.savez(path, settings=np.array([Bomb()], dtype=object))
    else:
        np.savez(path, x=np.zeros(2))
    with pytest.raises(ValueError, match="truncated or not a result file"):
        results.load(path)
    assert not Bomb.fired


def test_nothing_is_lost_when_the_folder_is_in_the_way(tmp_path):
    path = tmp_path / "a.npz"
    results.save(path, {"x": np.zeros(1)}, {})
    before = path.read_bytes()
    (tmp_path / "a.npz.unfinished").mkdir()
    with pytest.raises(OSError, match="cannot be written"):
        results.save(path, {"x": np.ones(1)}, {})
    assert path.read_bytes() == before


def test_what_is_replaced_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "figure.pdf"
    with results.replacing(path) as beside:
        beside.write_text("first")
    assert path.read_text() == "first"
    for fault in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises((OSError, KeyboardInterrupt)) as error, results.replacing(path) as beside:
            beside.write_text("sec")
            raise fault
        assert path.read_text() == "first" and [file.name for file in path.parent.iterdir()] == ["figure.pdf"]
        if isinstance(fault, OSError):
            words = f"{path} cannot be written (No space left on device); what was there before is untouched"
            assert str(error.value) == words


def test_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="pickled"):
        results.save(tmp_path / "a.npz", {"x": np.array([object()])}, {})

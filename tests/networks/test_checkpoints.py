"""Checkpoints: exact round trips, what does not fit, and what must never be unpickled."""

import pytest
import torch
from checkpoints import Malicious, small

import networks
from networks import _checkpoint


def test_checkpoint_round_trip_is_exact_and_half_precision_is_read_as_float32(tmp_path):
    model = small()
    _checkpoint.save(tmp_path / "w.pt", model.state_dict())
    loaded = _checkpoint.load_weights(small(), _checkpoint.read(tmp_path / "w.pt"), "w.pt")
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    _checkpoint.save(tmp_path / "h.pt", small().half().state_dict())
    loaded = _checkpoint.load_weights(small(), _checkpoint.read(tmp_path / "h.pt"), "h.pt")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.parameters()) and not loaded.training
    assert sorted(file.name for file in tmp_path.iterdir()) == ["h.pt", "w.pt"]


def test_failed_save_leaves_the_old_file(tmp_path):
    _checkpoint.save(tmp_path / "w.pt", {"a": torch.ones(1)})
    with pytest.raises(AttributeError):
        _checkpoint.save(tmp_path / "w.pt", {"a": lambda: None})
    assert torch.equal(_checkpoint.read(tmp_path / "w.pt")["a"], torch.ones(1))
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("2.bias"), ["missing 2.bias"]),
        (lambda state: state.update({"4.weight": torch.ones(2)}), ["unexpected 4.weight"]),
        (lambda state: state.update({"0.weight": torch.ones(2, 4)}), ["0.weight", "(2, 4)", "(2, 3)"]),
        (lambda state: state["2.weight"].fill_(float("nan")), ["2.weight", "NaN"]),
        (lambda state: state["2.weight"].fill_(float("inf")), ["2.weight", "infinite"]),
        (lambda state: state.update({"0.bias": torch.ones(2, dtype=torch.int64)}), ["0.bias", "int64"]),
        (lambda state: state.update({"0.bias": "hello"}), ["0.bias", "str"]),
    ],
)
def test_checkpoint_that_does_not_fit(change, words):
    state = {key: value.clone() for key, value in small().state_dict().items()}
    change(state)
    with pytest.raises(ValueError) as error:
        _checkpoint.load_weights(small(), state, "some.pt")
    for word in ["some.pt", *words]:
        assert word in str(error.value)


def test_missing_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(networks.load("mnist"), "data_dir", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        networks.load("mnist").net()


def test_unreadable_checkpoints(tmp_path):
    path = tmp_path / "w.pt"
    _checkpoint.save(path, small().state_dict())
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.pt"):
            _checkpoint.read(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="list"):
        _checkpoint.read(path)
    torch.save({"a": Malicious(tmp_path / "executed")}, path)
    with pytest.raises(ValueError, match=r"w\.pt"):
        _checkpoint.read(path)
    assert not (tmp_path / "executed").exists()

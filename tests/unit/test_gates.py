"""Every gate, by every value that opens or closes it; and what stands in the way of FUSE."""

from __future__ import annotations

import pytest

from fused.gates import closed_gate, gates, store_only_entries

CLOSING = ["1", "true", "yes", "TRUE", "Yes", "tRuE"]
NOT_CLOSING = ["", "0", "false", "no", "on", "ON", " 1", "1 ", "true\n", "y", "t", "2", "11"]


@pytest.mark.parametrize("name", ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL"])
@pytest.mark.parametrize("value", CLOSING)
def test_gate_is_closed_by(name: str, value: str) -> None:
    gate = closed_gate({name: value})
    assert gate is not None
    assert (gate.name, gate.value) == (name, value)


@pytest.mark.parametrize("name", ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL"])
@pytest.mark.parametrize("value", NOT_CLOSING)
def test_gate_is_not_closed_by(name: str, value: str) -> None:
    assert closed_gate({name: value}) is None


@pytest.mark.parametrize("value", ["1", "true", "false", "0", "no", " ", "github"])
def test_ci_is_a_gate_whatever_it_says(value: str) -> None:
    gate = closed_gate({"CI": value})
    assert gate is not None
    assert gate.name == "CI"


@pytest.mark.parametrize("environ", [{}, {"CI": ""}, {"IPFS_KIT_ENABLE": "0", "HOME": "/root"}])
def test_no_gate_is_closed_by_an_empty_ci_or_other_variables(environ: dict[str, str]) -> None:
    assert closed_gate(environ) is None


def test_gates_are_asked_in_the_order_of_the_covered_program() -> None:
    everything = {"CI": "1", "STORAGE_FORCE_LOCAL": "1", "IPFS_KIT_DISABLE": "1"}
    assert [gate.name for gate in gates(everything)] == ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL", "CI"]
    gate = closed_gate(everything)
    assert gate is not None
    assert gate.name == "IPFS_KIT_DISABLE"


def test_state_of_every_gate_is_told_open_or_closed() -> None:
    states = gates({"CI": "x", "STORAGE_FORCE_LOCAL": "on"})
    assert [(gate.value, gate.closed) for gate in states] == [(None, False), ("on", False), ("x", True)]


def test_nothing_exists_only_in_the_store_while_nothing_evicts() -> None:
    assert store_only_entries("/nonexistent") == 0

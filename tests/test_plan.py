"""The Plan as data: what it keeps, what it leaves out, how it is printed, saved and refused."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan

untimed = settings(deadline=None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan: some columns, some of them neutral, with any finite numbers."""
    rows = draw(st.integers(1, 4))

    def column(name: str) -> list[float]:
        if name == "slot":
            return draw(st.lists(st.integers(-1, HISTORY_SLOTS - 1).map(float), min_size=rows, max_size=rows))
        number = st.floats(allow_nan=False, allow_infinity=name == "clip") | st.just(NEUTRAL[name])
        return draw(st.lists(number, min_size=rows, max_size=rows))

    names = draw(st.lists(st.sampled_from(list(NEUTRAL)), unique=True))
    return Plan.build(
        draw(st.text()),
        draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=rows, max_size=rows)),
        {name: column(name) for name in names},
        init_scale=draw(st.floats(0, 100)),
        stores=draw(st.sampled_from(["x0", "eps"])),
    )


# --- the table


def test_neutral_columns_are_left_out() -> None:
    """A column that does nothing in any row is not in the table; one that does something in one row is, whole."""
    plan = Plan.build("p", [2.0, 1.0], {**NEUTRAL, "px": [0.0, 3.0], "dy": [1.0, 0.5]})
    assert plan.columns == ("px", "dy")
    np.testing.assert_array_equal(plan.table, [[0.0, 1.0], [3.0, 0.5]])
    assert Plan.build("p", [1.0], NEUTRAL).table.shape == (1, 0)


@untimed
@given(order=st.permutations(list(NEUTRAL)))
def test_columns_have_one_order(order: list[str]) -> None:
    """The order of the columns is the library's, not the caller's, and every value stands under its name."""
    values = {name: 1.0 + i if name != "slot" else 2.0 for i, name in enumerate(NEUTRAL) if name != "scale_in"}
    plan = Plan.build("p", [1.0], {name: values[name] for name in order if name in values})
    assert plan.columns == tuple(values)
    assert dict(zip(plan.columns, plan.table[0], strict=True)) == values


def test_column() -> None:
    """A column is found whether it is in use or neutral; a number fills every row."""
    plan = Plan.build("p", [2.0, 1.0], {"px": 5.0})
    np.testing.assert_array_equal(plan.column("px"), [5.0, 5.0])
    for name, neutral in NEUTRAL.items():
        if name != "px":
            np.testing.assert_array_equal(plan.column(name), [neutral, neutral])
    with pytest.raises(InputError, match="unknown column 'p': did you mean 'px'"):
        plan.column("p")


def test_size() -> None:
    """A plan has a row for each network evaluation."""
    plan = Plan.build("p", [3.0, 2.0, 1.0], {})
    assert (len(plan), plan.nfe, plan.init_scale, plan.stores) == (3, 3, 1.0, "x0")


@pytest.mark.parametrize(
    ("columns", "slots"),
    [
        ({"px": 1.0}, 0),
        ({"slot": [-1.0, 0.0]}, 1),
        ({"slot": [2.0, -1.0]}, 3),
        ({"ch0": 1.0}, 1),
        ({"ch0": 1.0, "dh3": 1.0}, 4),  # the anchor reads history too
        ({"ch1": 1.0, "slot": 0.0}, 2),  # a slot that is read counts although it is never written
        ({"clip": 1.0, "cx": 1.0}, 0),  # names that begin like ch0
    ],
)
def test_history_slots(columns: dict[str, Any], slots: int) -> None:
    """As many slots as the highest one that a row reads or writes needs."""
    assert Plan.build("p", [2.0, 1.0], columns).history_slots == slots


@pytest.mark.parametrize(
    ("column", "anchor", "noise", "variance"),
    [
        ("cx", False, False, False),
        ("cy", True, False, False),
        ("dx", True, False, False),
        ("dy", True, False, False),
        ("dh1", True, False, False),
        ("cz", False, True, False),
        ("dz", True, True, False),
        ("cv", False, False, True),
        ("slot", False, False, False),
    ],
)
def test_what_a_plan_needs(column: str, anchor: bool, noise: bool, variance: bool) -> None:
    """Anchor, noise and learned variance are needed where one of their columns is in use, in any row."""
    plan = Plan.build("p", [2.0, 1.0], {column: [NEUTRAL[column], 2.0]})
    assert (plan.has_anchor, plan.draws_noise, plan.learns_variance) == (anchor, noise, variance)


@pytest.mark.parametrize("stores", ["x0", "eps"])
def test_layout(stores: str) -> None:
    """Bit k is set for the k-th name of `NEUTRAL`, whatever the order given; the bit behind them is for eps."""
    plan = Plan.build("p", [2.0, 1.0], {"slot": [0.0, 1.0], "px": 1.0, "scale_in": 2.0}, stores=stores)
    assert plan.layout == 0b11 | 1 << 28 | (stores == "eps") << 29
    assert Plan.build("p", [1.0], {}).layout == 0


def test_arrays_are_read_only_copies() -> None:
    """Nothing can change a plan."""
    t, px = np.array([1.0]), np.array([2.0])
    plan = Plan.build("p", t, {"px": px})
    t[0] = px[0] = 9.0
    assert (plan.t[0], plan.table[0, 0]) == (1.0, 2.0)
    for array in (plan.t, plan.table, plan.column("px")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9.0


# --- equality


def test_equality() -> None:
    """Plans are equal when all of their parts are, and equal plans have equal hashes."""
    parts: dict[str, Any] = {"name": "p", "t": [1.0], "columns": {"px": 2.0}, "init_scale": 3.0, "stores": "eps"}
    plan = Plan.build(**parts)
    assert plan == Plan.build(**parts)
    assert hash(plan) == hash(Plan.build(**parts))
    for part, other in (
        ("name", "q"),
        ("t", [1.5]),
        ("columns", {"px": 2.0 + 1e-15}),
        ("columns", {"po": 2.0}),
        ("init_scale", 4.0),
        ("stores", "x0"),
    ):
        assert plan != Plan.build(**{**parts, part: other})
    assert plan != "p"


def test_neutral_columns_do_not_distinguish() -> None:
    """Naming a column that does nothing makes no other plan."""
    assert Plan.build("p", [1.0], {"px": 2.0, "cz": 0.0}) == Plan.build("p", [1.0], {"px": [2.0]})


def test_equal_plans_have_equal_hashes_whatever_the_sign_of_zero() -> None:
    """0.0 == -0.0, so that plans that differ in nothing else are equal and must hash alike."""
    one, other = (Plan.build("p", [2.0, 1.0], {"px": [zero, 1.0]}) for zero in (0.0, -0.0))
    assert one == other
    assert hash(one) == hash(other)


# --- on disk


@untimed
@given(plan=plans())
def test_json_round_trip(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Saved and loaded, every number has the same bits, and nothing else changes."""
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded == plan
    assert loaded.table.tobytes() == plan.table.tobytes()
    assert loaded.t.tobytes() == plan.t.tobytes()
    assert (loaded.columns, loaded.init_scale, loaded.stores) == (plan.columns, plan.init_scale, plan.stores)


def test_save_takes_a_path_as_text_and_makes_its_folder(tmp_path: Path) -> None:
    """A plan is saved where nothing is yet, leaves no temporary file, and replaces what is there."""
    path = tmp_path / "new" / "plan.json"
    for value in (1.0, 2.0):
        plan = Plan.build("p", [1.0], {"clip": math.inf, "px": value})
        plan.save(str(path))
        assert Plan.load(str(path)) == plan
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no saved plan"),
        (b"not json", "is no saved plan"),
        (b"\xff\xfe\x00", "is no saved plan"),
        (b"[]", "is no saved plan"),
        (b"3", "is no saved plan"),
        (b"{}", "is no saved plan: .*missing"),
        (b'{"name": "p", "t": [1.0]}', "is no saved plan: .*missing.*'columns'"),
        (b'{"name": "p", "t": [1.0], "columns": {}, "steps": 3}', "unexpected keyword argument 'steps'"),
        (b'{"name": "p", "t": [1.0], "columns": []}', "is no saved plan"),
        (b'{"name": "p", "t": [], "columns": {}}', "is no saved plan: a plan needs at least one row"),
        (b'{"name": "p", "t": ["a"], "columns": {}}', "is no saved plan: could not convert"),
        (b'{"name": "p", "t": [1.0], "columns": {"qx": 1}}', "is no saved plan: unknown column 'qx'"),
        (b'{"name": "p", "t": [1.0], "columns": {"px": [1, 2]}}', "is no saved plan: column 'px' must"),
        (b'{"name": "p", "t": [1.0], "columns": {"px": NaN}}', "is no saved plan: column 'px' has values"),
        (b'{"name": "p", "t": [1.0], "columns": {}, "init_scale": null}', "is no saved plan"),
        (b'{"name": "p", "t": [1.0], "columns": {}, "stores": "x1"}', "unknown history content 'x1'"),
    ],
)
def test_load_refuses_what_is_no_plan(tmp_path: Path, content: bytes, message: str) -> None:
    """Any other file is an error that names it."""
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@untimed
@given(parts=st.fixed_dictionaries({}, optional=dict.fromkeys(["t", "columns", "init_scale", "stores"], junk)))
def test_load_of_junk(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever JSON a file holds, loading gives a plan or an InputError, never another exception."""
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_text(json.dumps({"name": "p", "t": [1.0], "columns": {"px": 1.0}} | parts))
    with suppress(InputError):
        plan = Plan.load(path)
        assert plan.table.shape == (len(plan), len(plan.columns))


def test_load_without_a_file(tmp_path: Path) -> None:
    """A missing file is the operating system's error, with the path in it."""
    with pytest.raises(FileNotFoundError, match="absent"):
        Plan.load(tmp_path / "absent.json")


# --- for people


def test_short_plans_are_printed_whole() -> None:
    """One line says what the plan is, one names the columns, and each row has its own, up to 16."""
    t = np.arange(16.0)[::-1] + 0.25
    lines = str(Plan.build("p(steps=16)", t, {"px": t / 3, "c0": 1.0}, init_scale=2.5)).splitlines()
    assert lines[0] == "p(steps=16): 16 rows, 16 network evaluations, init_scale 2.5"
    assert lines[1].split() == ["row", "t", "px", "c0"]
    cells = [line.split() for line in lines[2:]]
    assert cells == [[f"{row}", f"{t[row]:g}", f"{t[row] / 3:.6g}", "1"] for row in range(16)]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("rows", [17, 1000])
def test_long_plans_are_elided(rows: int) -> None:
    """Of longer plans the first and the last eight rows are printed, with a mark between."""
    lines = str(Plan.build("p", np.arange(float(rows)), {"px": 1.0})).splitlines()
    shown = [line.split()[0] for line in lines[2:]]
    assert shown == [*map(str, range(8)), "...", *map(str, range(rows - 8, rows))]
    assert lines[0].startswith(f"p: {rows} rows")


# --- what cannot be


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t": []}, r"a plan needs at least one row: t must be a non-empty 1-D array, got shape \(0,\)"),
        ({"t": 1.0}, r"got shape \(\)"),
        ({"t": [[1.0, 2.0]]}, r"got shape \(1, 2\)"),
        ({"stores": "x"}, "unknown history content 'x': did you mean 'x0'"),
        ({"columns": {"pz": 1.0}}, "unknown column 'pz': did you mean"),
        ({"columns": {"px": [1.0]}}, r"column 'px' must be a number or have one value for each of 2 rows, got \(1,\)"),
        ({"columns": {"px": [[1.0, 2.0]]}}, r"one value for each of 2 rows, got \(1, 2\)"),
        ({"columns": {"px": [1.0, math.nan]}}, "column 'px' has values that are not finite"),
        ({"columns": {"cz": math.inf}}, "column 'cz' has values that are not finite"),
        ({"columns": {"clip": math.nan}}, "column 'clip' has values that are not finite"),
        ({"columns": {"slot": 4.0}}, r"slot must be -1 \(none\) or 0..3"),
        ({"columns": {"slot": [0.0, 0.5]}}, r"slot must be -1 \(none\) or 0..3"),
        ({"columns": {"slot": -2.0}}, r"slot must be -1 \(none\) or 0..3"),
        ({"alpha": [1.0, 1.0, 1.0]}, "alpha and sigma must be finite, one before each of 2 rows and one behind"),
        ({"sigma": [1.0, 1.0, 1.0]}, "alpha and sigma must be finite, one before each of 2 rows and one behind"),
    ],
)
def test_bad_plans(changed: dict[str, Any], message: str) -> None:
    """A table that cannot be carried out is refused, each with its reason."""
    parts: dict[str, Any] = {"name": "p", "t": [2.0, 1.0], "columns": {}}
    with pytest.raises(InputError, match=message):
        Plan.build(**{**parts, **changed})


@pytest.mark.parametrize("changed", [{"t": [1.0, math.nan]}, {"t": [math.inf, 1.0]}, {"init_scale": math.nan}])
def test_times_and_start_must_be_finite(changed: dict[str, Any]) -> None:
    """A plan that would hand NaN or infinity to the network is refused when it is made."""
    with pytest.raises(InputError, match="finite"):
        Plan.build(**{"name": "p", "t": [2.0, 1.0], "columns": {}, **changed})


def test_clip_may_be_infinite_in_some_rows() -> None:
    """Infinity is how a row says that it does not clip."""
    assert Plan.build("p", [2.0, 1.0], {"clip": [math.inf, 1.0]}).columns == ("clip",)
    assert Plan.build("p", [2.0, 1.0], {"clip": math.inf}).columns == ()

# SPDX-License-Identifier: Apache-2.0
"""Each place where vLLM is touched is there; each test fails loudly when vLLM moves it."""

from __future__ import annotations

import sys
import types

import pytest

from vllm_surgery import EngineError
from vllm_surgery.engine import attributes
from vllm_surgery.engine.attributes import Attributes
from vllm_surgery.engine.touchpoints import (
    FOR_EXPERT_SLOTS,
    FOR_KERNELS,
    FOR_LOADING,
    FOR_LOCALIZING,
    FOR_MASKING,
    FOR_NAMING,
    FOR_SERVING,
    FOR_SLOTS,
    FOR_SWAPPING,
    FOR_V1_SLOTS,
    FOR_V2_SLOTS,
    FOR_WATCHING,
    TouchPoint,
)

ALL = (*FOR_LOADING, *FOR_SERVING, *FOR_SWAPPING, *FOR_MASKING, *FOR_WATCHING, *FOR_LOCALIZING, *FOR_KERNELS)
SLOTS = (*FOR_SLOTS, *FOR_V1_SLOTS, *FOR_V2_SLOTS, *FOR_EXPERT_SLOTS, *FOR_NAMING)


@pytest.mark.parametrize("point", (*ALL, *SLOTS), ids=lambda point: f"{point.module}.{point.path}")
def test_this_vllm_has_it(point: TouchPoint) -> None:
    assert point.get() is not None


OF_OBJECTS = [each for name, group in vars(attributes).items() if name.startswith("FOR_") for each in group]


@pytest.mark.parametrize("point", OF_OBJECTS, ids=lambda point: f"{point.module}.{point.path}-{point.purpose}")
def test_this_vllms_objects_have_it(point: TouchPoint) -> None:
    assert point.get() is not None


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with a class `Owner` whose method `double` can be touched."""

    class Owner:
        declared: int

        def __init__(self) -> None:
            self.assigned = 1
            self.both = self.at_once = 2

        def register_parameter(self, name: str) -> None: ...

        def register(self) -> None:
            self.register_parameter("registered")

        def double(self, number: int) -> int:
            return 2 * number

    made = types.ModuleType("touched")
    made.Owner = Owner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "touched", made)
    return made


def plus_one(original):
    def wrapper(self, number):
        return original(self, number) + 1

    return wrapper


def test_a_wrapped_method_is_called_through(module: types.ModuleType) -> None:
    TouchPoint("touched", "Owner.double", "testing").wrap(plus_one)
    assert module.Owner().double(4) == 9


def test_wrapping_twice_is_wrapping_once(module: types.ModuleType) -> None:
    for _ in range(2):
        TouchPoint("touched", "Owner.double", "testing").wrap(plus_one)
    assert module.Owner().double(4) == 9


def test_a_wrapper_keeps_name_and_signature(module: types.ModuleType) -> None:
    TouchPoint("touched", "Owner.double", "testing").wrap(plus_one)
    assert module.Owner.double.__name__ == "double"
    TouchPoint("touched", "Owner.double", "testing", ("number",)).get()


def test_a_temporary_wrapper_goes_even_when_the_block_fails(module: types.ModuleType) -> None:
    point = TouchPoint("touched", "Owner.double", "testing")
    with pytest.raises(RuntimeError), point.wrapped(plus_one):
        assert module.Owner().double(4) == 9
        raise RuntimeError
    assert module.Owner().double(4) == 8


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("absent", "anything", r"this vLLM has no absent\.anything \(testing\): No module named 'absent'"),
        ("touched", "Missing.double", r"this vLLM has no touched\.Missing\.double \(testing\)"),
        ("touched", "Owner.triple", r"this vLLM has no touched\.Owner\.triple \(testing\)"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_missing_is_named_with_what_is_lost(name: str, path: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        TouchPoint(name, path, "testing").get()


@pytest.mark.usefixtures("module")
def test_another_signature_is_named() -> None:
    with pytest.raises(EngineError, match=r"touched\.Owner\.double takes no factor in this vLLM \(testing\)"):
        TouchPoint("touched", "Owner.double", "testing", ("number", "factor")).get()


@pytest.mark.parametrize("name", ["declared", "assigned", "both", "at_once", "registered", "double"])
@pytest.mark.usefixtures("module")
def test_an_attribute_is_found_however_objects_get_it(name: str) -> None:
    assert Attributes("touched", "Owner", "testing", names=(name,)).there


@pytest.mark.usefixtures("module")
def test_an_attribute_that_objects_lack_is_named() -> None:
    lacking = Attributes("touched", "Owner", "testing", names=("assigned", "number"))
    with pytest.raises(EngineError, match=r"touched\.Owner has no number in this vLLM \(testing\)"):
        lacking.get()


def test_the_attribute_of_one_object(module: types.ModuleType) -> None:
    assert TouchPoint("touched", "Owner.double", "testing").of(module.Owner())(4) == 8

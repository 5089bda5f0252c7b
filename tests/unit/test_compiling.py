"""No kernel is compiled between real steps, and none is reported at the start."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_nfp.adapter.compiling import NotCompiledError, compiling_refused, compiling_unreported
from vllm_nfp.types import RefusedForNowError


class Triton:
    """Calls its hooks around a compilation, as ``triton.runtime.jit`` does."""

    def __init__(self) -> None:
        self.reported: list[str] = []
        self.compiled: set[str] = set()
        report = self.reported.append
        runtime = SimpleNamespace(
            jit_cache_hook=None, jit_post_compile_hook=lambda *, fn, **_: report(fn.name)
        )
        self.knobs = SimpleNamespace(runtime=runtime)

    def run(self, name: str) -> None:
        if name in self.compiled:
            return
        before, after = vars(self.knobs.runtime).values()
        what = {"fn": SimpleNamespace(name=name), "key": "k", "repr": "r", "compile": {}}
        if before is not None and before(**what):
            return
        self.compiled.add(name)
        if after is not None:
            after(**what)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    made = Triton()
    monkeypatch.setitem(sys.modules, "triton", made)  # type: ignore[arg-type]
    return made


def test_a_kernel_is_refused_ahead_of_its_compilation(triton: Triton) -> None:
    triton.run("known")
    with compiling_refused():
        triton.run("known")
        with pytest.raises(NotCompiledError, match="fused_moe_kernel would have to be compiled"):
            triton.run("fused_moe_kernel")
    assert triton.compiled == {"known"}
    assert issubclass(NotCompiledError, RefusedForNowError), "it is tried again later"


def test_hooks_are_put_back_after_an_error(triton: Triton) -> None:
    before = dict(vars(triton.knobs.runtime))
    for around in (compiling_refused, compiling_unreported):
        with pytest.raises(ZeroDivisionError), around():
            raise ZeroDivisionError
    assert vars(triton.knobs.runtime) == before


def test_what_is_compiled_while_nobody_waits_is_not_reported(triton: Triton) -> None:
    with compiling_unreported():
        triton.run("quiet")
    triton.run("loud")
    assert triton.compiled == {"quiet", "loud"}
    assert triton.reported == ["loud"]


@pytest.mark.parametrize("loaded", [None, SimpleNamespace(), SimpleNamespace(knobs=None)])
def test_without_a_triton_that_is_known_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    monkeypatch.setitem(sys.modules, "triton", loaded)
    with compiling_refused(), compiling_unreported():
        pass

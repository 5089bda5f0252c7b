"""What runs in forks here has what a process of its own would have."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from programs import ForkedChild, result_of, spawning_forks
from serving import wait_for

pytestmark = pytest.mark.engine

FAMILY = """
import atexit, json, multiprocessing, os, sys
from pathlib import Path

spawn = multiprocessing.get_context("spawn")

def grandchild(queue):
    queue.put([os.environ["SET_LATER"], os.getpgid(0), "vllm" in sys.modules])

def child(queue, left):
    atexit.register(Path(left).touch)
    process = spawn.Process(target=grandchild, args=(queue,))
    process.start()
    process.join()
    sys.exit(process.exitcode + 3)

if __name__ == "__main__":
    os.environ["SET_LATER"] = "yes"
    queue = spawn.Queue()
    process = spawn.Process(target=child, args=(queue, sys.argv[1]))
    process.start()
    found = queue.get()
    process.join()
    print("RESULT " + json.dumps([found, process.exitcode, os.getpid()]))
"""
SLEEPER = """
import multiprocessing, time
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,)).start()
    print("asleep", flush=True)
    time.sleep(600)
"""


def test_what_a_program_spawns_has_its_environment_group_and_exit_handlers(tmp_path: Path) -> None:
    program, left = tmp_path / "family.py", tmp_path / "left"
    program.write_text(FAMILY)
    found, code, pid = result_of(program, left)
    assert found == ["yes", pid, True]
    assert code == 3
    assert left.exists()


def test_what_this_process_spawns_has_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    monkeypatch.setenv("SET_LATER", "yes")
    with spawning_forks(), multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(os.getenv, ("SET_LATER",)) == "yes"
        assert pool.apply(os.path.basename, ("/a/b",)) == "b"


def test_a_child_ends_with_all_that_it_has_spawned(tmp_path: Path) -> None:
    program = tmp_path / "sleeper.py"
    program.write_text(SLEEPER)
    with ForkedChild([str(program)], tmp_path / "log", os.environ) as child:
        child.wait_until(lambda: "asleep" in child.log.read_text(), 300.0)
        assert child.returncode is None
    assert child.returncode == -signal.SIGTERM

    def gone() -> bool:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, what="the end of its group")

"""What the watchdog ends, without Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dina.rl.cluster.watchdog import MARK, members
from tests.rl.ray_world import gone, wait_until

# A marked process in a session of its own that ignores SIGTERM, its child without an environment, one that has
# written its title over its environment and logs into the folder, and a stranger that reads there.
DRIVER = """
import subprocess, sys
from pathlib import Path
from dina.rl.cluster.watchdog import marked, watch_over

folder = Path(sys.argv[1])
finish = watch_over(folder)
with marked(folder):
    helper = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; env -i sleep 600 & echo $!; wait"],
        start_new_session=True, stdout=subprocess.PIPE, text=True,
    )
    rename = "import setproctitle, time; setproctitle.setproctitle('ray::Agent'); print(flush=True); time.sleep(600)"
    log = open(folder / "logs" / "agent.err", "w")
    renamed = subprocess.Popen([sys.executable, "-c", rename], stdout=subprocess.PIPE, pass_fds=[log.fileno()])
    renamed.stdout.readline()
stranger = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stdin=open(log.name))
print(helper.pid, int(helper.stdout.readline()), renamed.pid, stranger.pid, flush=True)
sys.stdin.readline()
finish()
"""


@pytest.mark.parametrize("end", ["killed", "clean"])
def test_all_that_is_marked_ends_with_the_driver_and_nothing_else(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "ray"
    (folder / "logs").mkdir(parents=True)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None and driver.stdin is not None
    *marked, stranger = map(int, driver.stdout.readline().split())
    try:
        assert {process.pid for process in members(folder, driver.pid)} == set(marked)
        assert psutil.Process(marked[0]).environ()[MARK] == str(folder)
        (watchdog,) = [
            child.pid
            for child in psutil.Process(driver.pid).children()
            if "dina.rl.cluster.watchdog" in child.cmdline()
        ]
        if end == "killed":
            driver.send_signal(signal.SIGKILL)
        else:
            driver.stdin.close()
        driver.wait(30)
        assert wait_until(lambda: gone([*marked, watchdog]), 30)
        assert not folder.exists()
        assert psutil.pid_exists(stranger)
    finally:
        psutil.Process(stranger).kill()

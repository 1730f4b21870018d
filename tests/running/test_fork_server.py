"""A script in a forked process is what it is in an interpreter of its own: the tests that fork it say as much."""

import json
import subprocess
import sys

import pytest
from scripts import environment, fork

SHOW = """
import __main__, json, os, sys
own = [name for name in sys.modules if name.split(".")[0] in ("local_lipschitz", "script_tools", "scripts", "pytest")]
threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1
print(json.dumps([sys.argv[1:], sys.path, os.getcwd(), dict(os.environ), __file__, vars(__main__) is globals(),
    sys.stdin.read(), sys.stdout.isatty(), sys.stdout.encoding, own, threads]))
"""
ENDS = {
    "the end": "print('ü')",
    "nothing": "import sys; print('before'); sys.exit()",
    "a number": "import sys; sys.exit(3)",
    "a sentence": "import sys; sys.exit('a sentence')",
    "an error": "import atexit; atexit.register(print, 'late'); raise ValueError('an error')",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "an alarm": "import signal; signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()",
    "at once": "import os; os._exit(4)",
}


def both(folder, text: str, *args: str) -> list[subprocess.CompletedProcess]:
    """Of a forked script and of one that an interpreter runs."""
    script = folder / "below" / "script.py"
    script.parent.mkdir()
    script.write_text(text, encoding="utf-8")
    argv = ["below/script.py", *args]
    alone = subprocess.run([sys.executable, *argv], cwd=folder, capture_output=True, text=True, env=environment())
    return [fork(folder, argv), alone]


@pytest.mark.parametrize("name", ENDS)
def test_ends(name, tmp_path):
    forked, alone = both(tmp_path, ENDS[name])
    assert forked.returncode == alone.returncode
    assert forked.stdout == alone.stdout
    assert forked.stderr.splitlines()[-1:] == alone.stderr.splitlines()[-1:]
    assert len(forked.stderr.splitlines()) == len(alone.stderr.splitlines()) or "Traceback" in alone.stderr


def test_surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("A_VARIABLE", "its value")
    forked, alone = (json.loads(done.stdout) for done in both(tmp_path, SHOW, "--option", "ü b"))
    assert forked == alone

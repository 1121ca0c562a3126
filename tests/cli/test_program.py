"""How the program ends: with its code, whatever threads of libraries still do."""

from __future__ import annotations

import subprocess
import sys

STILL_READING = """
import atexit, io, sys, threading, time
import pyarrow as pa
import pyarrow.csv as csv
import mwuf_dist.__main__ as program

begun = threading.Event()

class Slow(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        begun.set()
        time.sleep(0.3)
        buffer[:4] = b"a,b\\n"
        return 4

def main():
    threading.Thread(target=csv.read_csv, args=(pa.PythonFile(Slow(), mode="r"),), daemon=True).start()
    begun.wait()
    atexit.register(print, "the end was prepared")
    print("said")
    sys.exit(2)

program.main = main
"""


def ended(call: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", STILL_READING + call], capture_output=True, text=True, check=False)


def test_a_thread_that_still_reads_a_file_does_not_abort_the_program() -> None:
    # With `main()` in its place the process is aborted (-6), where the interpreter is taken down under the thread.
    done = ended("program.program()")
    assert (done.returncode, done.stdout, done.stderr) == (2, "said\nthe end was prepared\n", "")

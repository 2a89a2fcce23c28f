"""Stands in for spark-submit where a test is not about Spark: it does what the application's arguments say.

print TEXT | sleep SECONDS | spawn | env NAME | exit CODE | crash | flood LINES | wait-for FILE | stubborn
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

arguments = sys.argv[1:]
properties = arguments[arguments.index("--properties-file") + 1]
main = next(i for i, argument in enumerate(arguments) if argument.endswith("run_job.py"))
words = iter(arguments[main + 1 :])
for word in words:
    if word == "print":
        print(next(words), flush=True)
    elif word == "sleep":
        time.sleep(float(next(words)))
    elif word == "spawn":
        # as pyspark's daemon does: a child in a process group of its own
        subprocess.Popen(["sleep", "600"], process_group=0)
    elif word == "env":
        print(os.environ.get(next(words)), flush=True)
    elif word == "environment":
        print(sorted(os.environ), flush=True)
    elif word == "properties":
        print(Path(properties).read_text(), flush=True)
    elif word == "exit":
        sys.exit(int(next(words)))
    elif word == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif word == "flood":
        for number in range(int(next(words))):
            print(f"line {number} " + "x" * 80)
        sys.stdout.flush()
    elif word == "wait-for":
        path = next(words)
        while not os.path.exists(path):
            time.sleep(0.02)
    elif word == "fail-until":
        path = next(words)
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < int(next(words)):
            sys.exit(3)

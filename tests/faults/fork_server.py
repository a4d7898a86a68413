"""A process that has imported what `diffcli train` needs, and forks a child for each command: a start costs no ten seconds.

Reads a JSON line for each: {"argv", "cwd", "log", "faults"} starts a command in a session of its own and answers its pid;
{"wait": pid} answers its exit code.  `faults` is Python that runs in the child first, and in the ranks that it starts: it puts the
fault in its place.
"""

import json
import os
import signal
import sys
import time
import traceback

from diffcli.sharing import die_with_parent

PATIENCE = 240  # seconds, of a command that hangs


def child(order):
    die_with_parent()
    os.setsid()
    os.chdir(order["cwd"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 70
    try:
        if order["faults"]:  # of the ranks, Python's own start runs them
            with open("sitecustomize.py", "w") as file:
                file.write(order["faults"])
            os.environ["PYTHONPATH"] = os.pathsep.join([order["cwd"], os.environ.get("PYTHONPATH", "")])
            exec(compile(order["faults"], "faults", "exec"), {})
        from diffcli.cli import main

        code = main(order["argv"])
    except SystemExit as error:  # as the interpreter would end
        code = error.code or 0
    except BaseException:  # noqa: BLE001 - the test sees it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def waited(pid):
    end, found = time.monotonic() + PATIENCE, (0, 0)
    while found[0] == 0:
        found = os.waitpid(pid, os.WNOHANG)
        if found[0] == 0 and time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def serve():
    die_with_parent()  # a test run that is killed leaves nothing behind
    import lightning  # noqa: F401

    import diffcli.cli
    import diffcli.commands.train
    import diffcli.training.loggers
    import diffcli.training.module
    import diffcli.training.preview  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(waited(order["wait"]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(order)
        print(pid, flush=True)


serve()

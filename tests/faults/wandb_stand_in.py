"""A stand-in for wandb that fails where FAULT says, and tells in the file TALE what it was asked."""

import json
import os
import signal
import time


def told(what, **more):
    with open(os.environ["TALE"], "a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid()} | more) + "\n")
    fault = os.environ.get("FAULT", "")
    if fault == what:
        raise OSError(f"injected, with {os.environ.get('WANDB_API_KEY')}\nand a second line")
    if fault == f"hang {what}":
        time.sleep(1000)
    if fault == f"kill {what}":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == f"exit {what}":
        raise SystemExit(7)


told("import")


class Settings:
    def __init__(self, **options):
        pass


class Image:
    def __init__(self, path):
        told("image", path=path)


class Config:
    def update(self, config, **options):
        told("config", config=config)


class Run:
    config = Config()

    def define_metric(self, *args, **options):
        pass

    def log(self, values):
        told("log", values={k: v for k, v in values.items() if not isinstance(v, Image)})

    def finish(self, exit_code):
        told("finish", code=exit_code)


def init(mode, id, dir, **options):
    told(f"init {mode}", id=id, group=options.get("group"), name=options.get("name"))
    return Run()


def teardown():
    told("teardown")

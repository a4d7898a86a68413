"""`diffcli COMMAND [key=value ...]`: from a command's name to Hydra, from any failure to a sentence and a code."""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from diffcli.errors import DiffcliError, UsageError
from diffcli.help import ABOUT, command_help, usage
from diffcli.signals import Interrupted, Interrupts, begin, check, received
from diffcli.writing import as_sentence, unwritten

ALIASES = {"likelihood": "nll"}
MODULES = {"import": "import_"}  # a command whose name is a keyword of Python
FROM_CHECKPOINT = (
    "sample",
    "encode",
    "decode",
    "interpolate",
    "nll",
    "evaluate",
    "compare",
    "explain",
    "diagnose",
    "tune",
)


class _Unread(BaseException):
    """Nobody reads what is printed; Hydra would catch an Exception and print the command's overrides."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code (the list is in the README)."""
    with Interrupts():
        return _answer(list(sys.argv[1:] if argv is None else argv))


def _answer(argv: list[str]) -> int:
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, _Unread):  # `diffcli train --help | head`
        _mute()
        return 0
    except OSError as error:  # nothing but what is printed is written here
        _mute()
        return report(unwritten("to standard output", error))
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not received():
            raise
        signum = getattr(error, "signum", None) or received() or signal.SIGINT
        if not getattr(error, "said", False):
            print(f"interrupted ({signal.Signals(signum).name})", file=sys.stderr)
        return 128 + signum


def _mute() -> None:
    """Let nothing of what is still to be printed fail, at the interpreter's end neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from diffcli import __version__

        print(f"diffcli {__version__}")
        return 0
    command, args = ALIASES.get(argv[0], argv[0]), argv[1:]
    try:
        if command in ("-sc", "--shell-completion"):
            return _complete(argv)
        if command not in ABOUT:
            from diffcli.advice import nearest

            known = ", ".join(ABOUT)
            raise UsageError(f"no command {command!r}{nearest(command, [*ABOUT, *ALIASES])}", f"one of {known}")
        if "-h" in args or "--help" in args:
            print(command_help(command, config_dir=_config_dir(args)))
            return 0
        return _run(command, args)
    except DiffcliError as error:
        return report(error)


def report(error: BaseException, debug: bool = False) -> int:
    """Print a failure as `error: what (where)` and what to try; the exit code."""
    if debug:
        traceback.print_exception(error)
    error = as_sentence(error) if isinstance(error, OSError) else error
    if isinstance(error, DiffcliError):
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"try: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    if not debug:
        print("try: the same command with debug=true shows where", file=sys.stderr)
    return 1


def _run(command: str, args: list[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from diffcli.advice import check_options, explain
    from diffcli.commands.job import Job
    from diffcli.commands.run_folder import new_folder
    from diffcli.commands.sweeps import folder_of, tidy, watched
    from diffcli.memory import keep_freed
    from diffcli.paths import conf_dir

    keep_freed()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and what a person reads is written here
    flags, settings = _split(args)
    _check_removals(command, settings)
    check_options(command, settings, _config_dir(args))
    sweep, made = _sweep_folder(command, flags, settings), []
    if sweep and (chosen := folder_of(settings)):
        sweep, made = chosen, [p for p in (chosen, *chosen.parents) if not p.exists()]
    elif sweep:
        sweep, made = new_folder(sweep)
    task = Job(command, _job)
    words = [*flags, *map(_quoted, _with_context(command, settings))]
    saved, sys.argv = sys.argv, ["diffcli", *words, *([f"hydra.sweep.dir='{sweep}'"] if sweep else [])]
    try:
        with watched(task):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: Hydra's, jobs let none out
        return report(explain(command, error, settings, _config_dir(args)))
    except OSError as error:  # Hydra's own folders and files; its word for a missing option is one too, answered above
        if isinstance(error, BrokenPipeError):
            raise
        return report(as_sentence(error))
    finally:
        sys.argv = saved
        if sweep:
            tidy(sweep, made)
    return task.code()


def _job(command: str, cfg):
    """One job of Hydra's and its Outcome: a failure ends this job and leaves the others of its sweep."""
    from omegaconf.errors import OmegaConfBaseException

    from diffcli.commands.job import Outcome
    from diffcli.commands.run_folder import leave

    left: BaseException | None = None
    begin()
    try:
        module = importlib.import_module(f"diffcli.commands.{MODULES.get(command, command)}")
        check()
        code = module.run(cfg) or 0
        check()
        if code > 128:  # stopped by a signal, which was meant for the rest of a sweep too
            raise Interrupted(code - 128, said=True)
        return Outcome(code)
    except KeyboardInterrupt as error:
        left = error
        raise
    except BrokenPipeError as error:
        raise _Unread from error
    except OmegaConfBaseException as error:
        unset = _unset(command, cfg, error)
        return Outcome(report(unset, debug=cfg.get("debug") is True), str(unset))
    except Exception as error:  # noqa: BLE001 - the outermost boundary: any failure becomes a sentence and a code
        left = error
        check()
        return Outcome(report(error, debug=cfg.get("debug") is True), str(error) or type(error).__name__)
    finally:
        leave(left)


def _unset(command: str, cfg, error: Exception) -> UsageError:
    """What to say where a value could not be had: it is ??? in the yaml, or refers to one that is not there."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import MissingMandatoryValue, OmegaConf

    from diffcli.advice import explain

    if not isinstance(error, MissingMandatoryValue):
        return explain(command, error, [])
    key = min(OmegaConf.missing_keys(cfg), key=len)  # others are the same one, seen through an interpolation
    group = key.partition(".")[0]
    option = HydraConfig.get().runtime.choices.get(group)
    return UsageError(f"{group}={option} needs {key}" if option else f"{command} needs {key}", f"{key}=…")


def _config_dir(args: list[str]) -> str | None:
    for i, a in enumerate(args):
        if a in ("--config-dir", "-cd") and i + 1 < len(args):
            return args[i + 1]
        if a.startswith("--config-dir="):
            return a.split("=", 1)[1]
    return None


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """A command's flags with their values, and its settings.  Raises UsageError for a flag that is not there.

    Flags may stand anywhere; Hydra's own parser wants them on one side of the settings, and prints its usage otherwise.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message):
        raise UsageError(message, "--help, --cfg job, --config-dir DIR, -m; a setting is written key=value")

    parser = get_args_parser()
    parser.error = refuse
    found, unknown = parser.parse_known_intermixed_args(args)
    if unknown:
        from diffcli.advice import nearest

        word = unknown[0].partition("=")[0]
        refuse(f"no flag {word!r}{nearest(word, parser._option_string_actions, 0.8)}")
    if found.resolve and not found.cfg:
        refuse("--resolve goes with --cfg")
    return [a for a in args if a not in found.overrides], found.overrides


def _check_removals(command: str, settings: list[str]) -> None:
    """Raise UsageError for ~key: a command needs all of its groups and settings (keys inside them have defaults)."""
    for key in (s[1:].partition("=")[0] for s in settings if s.startswith("~")):
        if "." not in key and "/" not in key:
            raise UsageError(f"~{key}: {command} cannot do without {key}", f"{key}=VALUE")


def _with_context(command: str, args: list[str]) -> list[str]:
    """Commands that take a model from a checkpoint start with empty groups; this lets their keys be set all the same.

    `data.root=DIR` changes a key of the checkpoint's data (Hydra wants a + there); `network=exact` needs no checkpoint,
    so what would have come from one gets a default; explain needs neither.
    """
    if command == "train":
        return _with_source(args)
    if command not in FROM_CHECKPOINT:
        return args

    def chosen(group):
        return any(a.startswith(f"{group}=") for a in args)

    if chosen("network") or (command == "explain" and not chosen("ckpt")):
        return args + [f"{group}={name}" for group, name in (("sde", "vp"), ("data", "mixture")) if not chosen(group)]
    free = tuple(f"{group}." for group in ("data", "sde", "source") if not chosen(group))
    return [f"+{a}" if free and a.startswith(free) else a for a in args]


def _quoted(word: str) -> str:
    """A setting whose value holds letters that Hydra's grammar takes in quotes alone, as in data.root=/home/jürgen."""
    key, _, value = word.partition("=")
    return word if value.isascii() or set(value) & set("'\"\\,=()[]{}$") else f'{key}="{value}"'


def _with_source(args: list[str]) -> list[str]:
    """`source=NAME` as Hydra writes an option of `data` by another name, and what goes with one where the user chose no other.

    An experiment may have chosen too.  `source=none`, the default, is left out: Hydra has no word for it.
    """
    words = [f"data@{a}" if a.startswith("source=") else a for a in args if a not in ("source=none", "source=null")]
    if not any(a.startswith("data@source=") for a in words):
        return words
    chosen = {a.lstrip("+").partition("=")[0] for a in args}
    if "experiment" in chosen:
        return words
    usual = {"sde": "flow", "loss": "flow", "prediction": "velocity"}
    return words + [f"{group}={name}" for group, name in usual.items() if group not in chosen]


def _sweep_folder(command: str, flags: list[str], settings: list[str]) -> Path | None:
    """Where a sweep goes unless the user says; None where this is none."""
    words = {s.lstrip("+") for s in settings}
    if not {"-m", "--multirun"} & set(flags) and "hydra.mode=MULTIRUN" not in words:
        return None
    if any(word.startswith("hydra.sweep.dir=") for word in words):
        return None
    from diffcli.commands.run_folder import new_name

    return Path("outputs") / command / new_name()


def _complete(argv: list[str]) -> int:
    """Hydra's shell functions call `diffcli -sc query=bash` with the line in COMP_LINE, command word included."""
    command = "train"
    if any("query=" in a for a in argv):
        line = os.environ.get("COMP_LINE", "")
        words = line.split()
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(ABOUT))
            return 0
        command = ALIASES.get(words[1], words[1])
        if command not in ABOUT:
            return 0
        head, _, rest = line.partition(words[1])
        os.environ["COMP_LINE"] = head + rest.lstrip()
    return _run(command, argv)

"""Internal. The command line: ``fastopt info``, ``bench``, ``show`` and ``run``; ``python -m fastopt`` is the same."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import settings
from ._version import __version__
from .backends.choice import get_backend, load_backend
from .bench.workloads import NAMES as _WORKLOADS
from .checks import did_you_mean
from .documentation import listing, table
from .errors import BackendUnavailable, install_command
from .info import compiler_flags, show_config
from .rules import RULES

_FIRST = ("adam", "adamw", "sgd")  # what people ask first
_BY_ROW = [name for name, rule in RULES.items() if rule.by_row]
_TIMED = [*_FIRST, *(name for name in RULES if name not in (*_FIRST, *_BY_ROW))]
_EXTRA = ("rich", "sklearn", "ml_dtypes", "matplotlib", "jinja2")  # what only `fastopt bench` needs
_SIZES = sorted([10**k for k in range(2, 10)] + [3 * 10**k for k in range(2, 9)])
_DTYPES = ("float32", "float64", "bfloat16", "float16")
_PICTURES = (".gif", ".html", ".mp4", ".png", ".svg")  # what `fastopt show` saves
_SCENES = ("beale", "saddle", "ravine", "fluctuation", "nag", "loss", "claims")


def _count(text: str) -> int:
    """A whole number >= 1, also as 2e7."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 2**63 or number != int(number):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 1")
    return int(number)


def _whole(text: str) -> int:
    """A whole number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 0")
    return int(text)


def _threads(text: str) -> int:
    """A number of threads."""
    number = _count(text)
    if number > settings.MAX_THREADS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 1 and <= {settings.MAX_THREADS}")
    return number


def _counts(text: str) -> list[int]:
    """Whole numbers, separated by commas, in order."""
    return sorted(set(map(_count, text.split(","))))


def _seconds(text: str) -> float:
    """A number > 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds > 0")
    return number


def _among(allowed: Iterable[str], aliases: Mapping[str, str] | None = None) -> Callable[[str], list[str]]:
    """Return a parser of names, separated by commas, of those allowed, or of other names of theirs."""
    meant = aliases or {}

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(meant.get(name.strip(), name.strip()) for name in text.split(",")))
        known = list(allowed)
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"found {name!r}, expected some of {', '.join(known)}{did_you_mean(name, known)}"
                )
        return names

    return read


def _rules(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of rules, by their names or those of their classes; a class's first rule is its default."""
    classes: dict[str, str] = {}
    for name, rule in RULES.items():
        classes.setdefault(rule.optimizer, name)
    return _among(allowed, classes)


def _hosts(text: str) -> list[tuple[str, int]]:
    """Machines with the number of processes that each has room for, as a:2,b:2."""
    hosts = []
    for host in text.split(","):
        name, _, slots = host.partition(":")
        if not name.strip() or not (slots or "1").isdecimal() or not int(slots or "1"):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected machines with numbers of processes, as a:2,b:2")
        hosts.append((name.strip(), int(slots or "1")))
    return hosts


def _peers(text: str) -> list[str]:
    """Names of peers, ``all`` or ``none``."""
    from .bench.peers import PEERS

    return list(PEERS) if text == "all" else [] if text == "none" else _among(PEERS)(text)


def _file(text: str) -> Path:
    """A file that can be written."""
    try:
        open(text, "a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _folder(text: str) -> Path:
    """A folder that can be written; it is made if there is none."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not text or not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a folder that can be written")
    return path


def picture(text: str, endings: Sequence[str] = (".png", ".svg")) -> Path:
    """A file's name for pictures, in a folder that there is."""
    path = Path(text)
    if path.suffix not in endings or not path.parent.is_dir():
        known = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a name ending in {known}, in a folder there is")
    return path


def _scene(text: str) -> str:
    """The name of a scene."""
    if text not in _SCENES:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected one of {', '.join(_SCENES)}{did_you_mean(text, _SCENES)}"
        )
    return text


def _results(text: str) -> dict[str, Any]:
    """Read the file that an earlier run wrote."""
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
        from .bench.baseline import shares

        whole = "configuration" in found and all(0 < x < math.inf for _, share in shares(found) for x in share)
    except ModuleNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected what fastopt bench --json wrote: {error}") from None
    except (TypeError, AttributeError, KeyError):
        whole = False
    if not whole:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected what fastopt bench --json wrote")
    return found


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help tells more\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("fastopt", description="Optimizer updates at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser("info", help="what this installation is and chose")
    info.add_argument("--rules", action="store_true", help="prints the rules, their formulas and sources instead")
    info.add_argument("--cflags", action="store_true", help="prints what compiling a C program needs instead")
    info.add_argument("--libs", action="store_true", help="prints what linking it needs; both go together")
    _add_bench(commands)
    show = commands.add_parser(
        "show",
        help="shows the paths of optimizers on small objectives, in a window or a file",
        description="Shows the paths of optimizers on objectives of two parameters, and prints a table of the steps "
        "that they took. The picture is in a window that plays it, or in a file.",
    )
    show.add_argument("scene", type=_scene, metavar="SCENE", help="one of " + ", ".join(_SCENES) + " (a table alone)")
    show.add_argument("--rules", type=_rules(RULES), help="as sgd,momentum,adam (default: those the scene is about)")
    show.add_argument("--steps", type=_count, help="how many (default: as many as the scene needs)")
    show.add_argument(
        "--save", type=partial(picture, endings=_PICTURES), metavar="FILE",
        help="a picture (.png, .svg), an animation (.gif; .mp4, by ffmpeg) or a page with a slider (.html)",
    )  # fmt: skip
    run = commands.add_parser(
        "run",
        help="runs a program that uses fastopt.distributed in several processes",
        description="Runs a Python program in several processes, on this machine or on several, by MPI. If one fails, "
        "all end.",
    )
    run.add_argument(
        "-n", "--ranks", type=_count, help="how many processes (default: as many as --hosts have room for)"
    )
    run.add_argument(
        "--hosts", type=_hosts, default=[], help="machines, reached by ssh, as a:2,b:2 (default: this one)"
    )
    run.add_argument(
        "--restarts", type=_whole, default=0, metavar="K",
        help="if a process fails, starts anew with one fewer, up to K times: for programs that load their checkpoint",
    )  # fmt: skip
    run.add_argument(
        "--servers", type=_count, default=0, metavar="S",
        help="how many processes fastopt.distributed.run has for servers; others go on where one ends",
    )  # fmt: skip
    run.add_argument(
        "--spares", type=_whole, default=0, metavar="S", help="how many wait to take over from a server that ends"
    )
    run.add_argument("program", help="a file of Python")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")
    return parser


def _options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The names of a command's options."""
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return list(commands[command]._option_string_actions)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="times every rule against the ceiling of memory and other libraries",
        description="Times every rule's update of one large array, in turns with other libraries' and with the fastest "
        "streaming kernel that reads and writes as much; then trains on handwritten digits. Lists are separated by "
        "commas.",
    )
    what = bench.add_argument_group("what is compared")
    what.add_argument("--rules", type=_rules([*_TIMED, *_BY_ROW]), help="as adam,SGD (default all)")
    what.add_argument("--size", type=_count, help="elements of an array (default 2e7; 1e8 with --goals)")
    what.add_argument("--dtypes", type=_among(_DTYPES), default=["float32"], help=f"of {', '.join(_DTYPES)}")
    what.add_argument("--backends", type=_among(("native", "numba")), default=["native", "numba"], help="(default all)")
    what.add_argument(
        "--peers", type=_peers, help="other libraries: names, all, or none (default: those quick to start)"
    )
    what.add_argument("--threads", type=_threads, help="of all who can be told (default: as fastopt info says)")
    what.add_argument("--repeats", type=_count, default=11, help="rounds; slow ones take part in fewer (default 11)")
    what.add_argument(
        "--neighbours", type=_threads, default=0, metavar="N", help="beside N processes that compute without end"
    )
    more = bench.add_argument_group("what else is measured")
    more.add_argument("--sizes", type=_counts, nargs="?", const=_SIZES, default=[], help="Adam at 1e2,3e2 ... 1e9")
    more.add_argument("--scaling", action="store_true", help="Adam with 1, 2, 4 ... threads")
    more.add_argument("--tensors", action="store_true", help="steps of many small tensors")
    more.add_argument("--matrices", action="store_true", help="steps of whole matrices, beside torch's")
    more.add_argument("--sparse", action="store_true", help="updates of an embedding table's rows")
    more.add_argument(
        "--distributed", action="store_true", help="Adam in 2 and 4 processes, beside MPI's bare exchange"
    )
    more.add_argument("--precision", action="store_true", help="Adam stored in fewer bits")
    more.add_argument(
        "--workloads", type=_among(_WORKLOADS), nargs="?", const=list(_WORKLOADS), default=[], metavar="NAMES",
        help="trainings of benchmarks/workloads, minutes each, of " + ", ".join(_WORKLOADS),
    )  # fmt: skip
    more.add_argument(
        "--cuda", action="store_true", help="instead: a CUDA device, by rules, storages, rows ... (size default 2e8)"
    )
    more.add_argument(
        "--kernels", action="store_true", help="instead: what limits CUDA kernels as compiled; needs no GPU"
    )
    more.add_argument("--goals", action="store_true", help="all that has a goal, and which goals are met")
    more.add_argument("--no-digits", dest="digits", action="store_false", help="does not train on digits")
    made = bench.add_argument_group("time and output")
    made.add_argument("--budget", type=_seconds, metavar="SECONDS", help="what it may take; says what it left out")
    made.add_argument("--json", type=_file, metavar="FILE", help="also writes the results there")
    made.add_argument("--baseline", type=_results, metavar="FILE", help="compares with what --json wrote earlier")
    made.add_argument(
        "--draw", type=_results, metavar="FILE", help="instead: shows, plots, reports what --json wrote earlier"
    )
    made.add_argument(
        "--plot", type=picture, metavar="FILE", help="draws x.svg or x.png as x-rules.svg, x-sizes.svg ..."
    )
    made.add_argument("--report", type=_folder, metavar="DIR", help="writes one page with everything there")


def _bench(given: argparse.Namespace, command: str) -> int:
    """Runs ``fastopt bench``."""
    from .bench import goals, kernels, sparse
    from .bench.command import Outputs, bench, draw
    from .bench.peers import USUAL
    from .bench.section import Options

    if given.draw:
        return draw(given.draw, given.rules, _picked(given, Outputs))
    if given.goals:
        given.tensors = given.sparse = given.precision = given.startup = True
        given.size = given.size or 10**8
        given.sizes = given.sizes or [10**k for k in range(6, 10)]
        given.workloads = given.workloads or ["text"]
        given.peers = goals.PEERS if given.peers is None else given.peers
    by_row = [name for name in given.rules or () if name in _BY_ROW]
    if by_row and (not given.sparse or given.cuda or given.kernels):
        return _fail(given, f"found --rules {by_row[0]} without --sparse, expected both: it is a rule of rows", 2)
    given.rows = [name for name in sparse.CASES if name in (given.rules or ())] or list(sparse.CASES)
    given.rules = [name for name in given.rules or _TIMED if name not in by_row]
    if given.kernels:
        kernels.check()
    if given.cuda:
        load_backend("numba-cuda")
    if given.cuda or given.kernels:
        given.peers = []
    given.size = given.size or (200_000_000 if given.cuda else 20_000_000)
    given.threads = given.threads or settings.get_num_threads()
    given.peers = USUAL if given.peers is None else given.peers
    given.limited = given.budget is not None
    return bench(_picked(given, Options), _picked(given, Outputs), given.budget, command)


def _picked(given: argparse.Namespace, kind: Any) -> Any:
    """A dataclass of what was given."""
    return kind(**{own.name: getattr(given, own.name) for own in fields(kind) if hasattr(given, own.name)})


def _show(given: argparse.Namespace, command: str) -> int:
    """Runs ``fastopt show``."""
    from . import trajectories

    chosen = {name: value for name in ("rules", "steps", "save") if (value := getattr(given, name)) is not None}
    if given.scene == "claims":
        if chosen:
            return _fail(given, f"found --{next(iter(chosen))} with claims, expected none: claims are a table", 2)
        print(trajectories.claims_table())
        return 0
    path = chosen.pop("save", None)
    try:
        scene = trajectories.SCENES[given.scene](**chosen)
    except ValueError as error:
        return _fail(given, str(error), 2)
    print(scene.table(), flush=True)
    if path is None:
        trajectories.show(scene)
    else:
        trajectories.save(scene, path)
    return 0


def _run(given: argparse.Namespace, command: str) -> int:
    """Runs ``fastopt run``."""
    from .distributed import launch

    room = sum(slots for _, slots in given.hosts)
    if given.ranks is None and not given.hosts:
        return _fail(given, "found neither -n nor --hosts, expected a number of processes, as -n 4", 2)
    ranks = given.ranks or room
    if given.hosts and ranks > room:
        return _fail(given, f"found -n {ranks}, expected at most {room}, for which --hosts have room", 2)
    if given.spares and not given.servers:
        return _fail(given, "found --spares without --servers, expected both", 2)
    return launch.run(
        ranks, given.program, given.arguments,
        hosts=given.hosts, restarts=given.restarts, servers=given.servers, spares=given.spares,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0; 1 where a package or the C library is missing, or something cannot be written; 2 where an
        argument or a variable of the environment is of no use; 130 after Ctrl-C; 141 where nobody reads on.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for name in _options(parser, options.command) if name.startswith("--")]
        parser.error(
            f"{options.command}: found {unknown[0]!r}, expected some of {', '.join(known)}"
            f"{did_you_mean(unknown[0].partition('=')[0], known)}"
        )
    if options.command == "info" and options.rules and (options.cflags or options.libs):
        parser.error("info: found --rules with --cflags or --libs, expected one or the other")
    command = shlex.join(["fastopt", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        _check_environment()
    except ValueError as error:
        return _fail(options, str(error), 2)
    try:
        try:
            return {"info": _info, "bench": _bench, "show": _show, "run": _run}[options.command](options, command)
        finally:
            if sys.stdout is not None:  # it is None where it was closed
                sys.stdout.flush()
    except BackendUnavailable as error:
        return _fail(options, str(error))
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        return _fail(options, f"no {package} here; install it: {install_command('bench')}")
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return _fail(options, f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except MemoryError as error:
        return _fail(options, f"out of memory: {error}")
    except KeyboardInterrupt:
        return _fail(options, "interrupted", 130)


def _info(options: argparse.Namespace, command: str) -> int:
    """Runs ``fastopt info``."""
    if options.cflags or options.libs:
        print(compiler_flags(options.cflags, options.libs))
    elif not options.rules:
        show_config()
    elif sys.stdout is not None and sys.stdout.isatty():
        print(listing(shutil.get_terminal_size().columns))
    else:
        print(table())
    return 0


def _check_environment() -> None:
    """Raises ValueError where a variable of the environment is of no use."""
    settings.get_num_threads()
    get_backend()
    with suppress(BackendUnavailable):
        load_backend("native")  # by which FASTOPT_ISA is read


def _fail(options: argparse.Namespace, why: str, status: int = 1) -> int:
    print(f"fastopt {options.command}: {why}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """Drop what is still to be written to stdout: when the process ends Python would try once more."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

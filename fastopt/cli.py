"""The command line: ``fastopt info`` and ``fastopt bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import BackendUnavailable
from .info import compiler_flags, rule_table, show_config
from .rules import RULES

_ELEMENTWISE = [name for name, rule in RULES.items() if not rule.by_row]
_EXTRA = ("rich", "sklearn", "ml_dtypes")  # what only `fastopt bench` needs


def _count(text: str) -> int:
    """A whole number >= 1, also as 2e7."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 2**63 or number != int(number):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 1")
    return int(number)


def _rules(text: str) -> list[str]:
    """Names of rules, separated by commas."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in _ELEMENTWISE:
            raise argparse.ArgumentTypeError(f"found {name!r}, expected some of {', '.join(_ELEMENTWISE)}")
    return names


def _file(text: str) -> str:
    """A file that can be written."""
    try:
        open(text, "a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fastopt", description="Optimizer updates at the speed of memory.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser("info", help="what this installation is and chose")
    info.add_argument("--rules", action="store_true", help="prints the rules, their formulas and sources instead")
    info.add_argument("--cflags", action="store_true", help="prints what compiling a C program needs instead")
    info.add_argument("--libs", action="store_true", help="prints what linking it needs; both go together")
    bench = commands.add_parser(
        "bench",
        help="times every rule against the ceiling of memory, NumPy and torch",
        description="Times every rule's update of one large float32 array, interleaved with its peers and with the "
        "fastest streaming kernel that reads and writes as much; then trains on handwritten digits.",
    )
    bench.add_argument("--size", type=_count, default=20_000_000, help="elements of an array (default 2e7)")
    bench.add_argument("--rules", type=_rules, default=_ELEMENTWISE, help="only these, as adam,sgd (default all)")
    bench.add_argument("--threads", type=_count, help="threads of all but NumPy (default: as fastopt info says)")
    bench.add_argument("--repeats", type=_count, default=9, help="times each is run; slow ones less often (default 9)")
    bench.add_argument("--tensors", action="store_true", help="also times steps of many small tensors")
    bench.add_argument("--sparse", action="store_true", help="also times updates of an embedding table's rows")
    bench.add_argument("--precision", action="store_true", help="also times Adam stored in fewer bits")
    bench.add_argument("--no-digits", dest="digits", action="store_false", help="does not train")
    bench.add_argument("--json", type=_file, metavar="FILE", help="also writes the results there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit status: 0; 1 where a package or the C library is missing; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "info":
            if options.cflags or options.libs:
                print(compiler_flags(options.cflags, options.libs))
            elif options.rules:
                print(rule_table())
            else:
                show_config()
            return 0
        from .bench.command import bench

        return bench(**{name: value for name, value in vars(options).items() if name != "command"})
    except BackendUnavailable as error:
        print(f"fastopt {options.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(f'fastopt bench: no {missing.name} here; install it: pip install "fastopt[bench]"', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

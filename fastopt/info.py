"""What this installation is and chose."""

from __future__ import annotations

import platform

from . import settings
from .dispatch import available_backends
from .rules import RULES

__version__ = "0.1.0"


def cpu_name() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def configuration() -> dict[str, str]:
    """What `show_config` prints, by heading."""
    backends = available_backends()
    lines = {
        "fastopt": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "processor": f"{cpu_name()}, {settings._cpus()} CPUs for this process",
        "threads": str(settings.get_num_threads()),
    }
    if backends["native"] == "available":
        from .backends import native

        lines["instruction sets"] = (
            f"compiled {', '.join(native.isa_compiled())}; supported {', '.join(native.isa_supported())}; "
            f"chosen {native.isa()}"
        )
        threads = "OpenMP" if native.has_openmp() else "no OpenMP when built: the native backend uses one thread"
        lines["native library"] = f"{native.compiler()}, {threads}"
    for name, status in backends.items():
        lines[f"backend {name}"] = status
    lines["backend chosen"] = settings.get_backend() or "by the arrays"
    return lines


def rule_table() -> str:
    """The rules with their formulas and sources, as a table in Markdown."""
    lines = ["| class | function | update of an element | source |", "|---|---|---|---|"]
    for rule in RULES.values():
        formula = rule.formula.replace("|g|", "abs(g)").replace("*", "\\*")
        lines.append(f"| `{rule.optimizer}` | `{rule.name}` | {formula} | {rule.source} |")
    return "\n".join(lines)


def show_config() -> None:
    """Prints version, instruction sets, threads, and the backends, with the reason why one is missing."""
    for heading, text in configuration().items():
        print(f"{heading + ':':20} {text}")

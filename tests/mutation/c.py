"""Do the tests notice small changes to the C library? ``python -m tests.mutation.c --sample 100``.

Of all changes of a few kinds a sample is made, one at a time, in a copy. The library is built there for one instruction
set and takes the place of the other in a copy of the package; then the tests of the changed file run, nearest first. If
they notice nothing, the next instruction set in whose code the change is has its turn. Changes that do not compile, or
leave the machine code as it was, are counted apart.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import fastopt
from fastopt.backends import native
from fastopt.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc"))

import generate  # noqa: E402
import library as build  # noqa: E402

# For each file the tests that touch it, nearest first, and pytest's -k for them: one or two rules are enough for loops
# that all share. `{rules}` stands for the rules that the changed line is of.
_CHUNKS = [
    ("test_c_interface.py", "outside"),
    ("test_storage.py", "combination and adam or blocks and adam or layouts or zeroed or master and adam or kahan"),
    ("test_sizes.py", "parts or every_remainder or stored and aggmo"),
    ("test_storage.py", "average or threads or finite or fair or goes_on"),
    ("test_storage_bits.py", "float64 and adam or parts or rows or layouts and (adam or sgd)"),
]
_ROWS = [
    ("test_sparse.py", "crowd or repeated or named and (adam or sgd or rowwise)"),
    ("test_storage.py", "rows"),
    ("test_c_interface.py", "rows or outside"),
    ("test_sparse.py", "threads_and or exact or layouts or plan or bags or norms"),
    ("test_sizes.py", "whole_rows or rows and (adam or sgd)"),
    ("test_storage_bits.py", "rows or bags"),
]
_CALLS = [
    ("test_c_interface.py", "not training and not example"),
    ("test_arithmetic.py", "calls or folding"),
    ("test_rules.py", ""),
    ("test_storage.py", "refused or threads_and"),
    ("test_bits.py", "threads and adam or many and (sgd or adam) or axis"),
    *_ROWS[:3],
]
TESTS = {
    "arithmetic.h": [("test_arithmetic.py", "not hogwild")],
    "convert.h": [("test_storage.py", "reading or nearest or blocks or stochastic or philox or finite"), *_CHUNKS],
    "dense.h": [("test_bits.py", "(oracle or many) and (adam or sgd)"), ("test_sizes.py", "dense and adam")],
    "kernels.dispatch.c": [("test_rules.py", "folds"), ("test_bits.py", "many and adam")],
    "limits.h": [*_CHUNKS, *_ROWS],
    "rows.h": _ROWS,
    "rules.h": [
        ("test_rules.py", "{rules}"),
        ("test_bits.py", "({rules}) and not threads and not many and not layouts"),
    ],
    "squares.h": [("test_norms.py", ""), ("test_sizes.py", "norms"), *_ROWS],
    "step.c": [
        *_CALLS,
        ("test_sizes.py", "shares or parts"),
        ("test_optimizers.py", "groups or scalars_of or missing or mixed or schedules and native or fresh"),
        ("test_functional.py", "empty or fresh_views_of"),
    ],
    "stored.h": _CHUNKS,
    "rows.c": _ROWS,
    "norm.c": [
        ("test_c_interface.py", "outside"),
        ("test_norms.py", ""),
        ("test_sizes.py", "norms"),
        ("test_storage.py", "norm"),
    ],
    "threads.c": [("test_processes.py", "fork or threads or omp"), *_CALLS],
    "stream.c": [("test_c_interface.py", "stream or ceiling or largest or outside")],
    "stream.dispatch.c": [("test_c_interface.py", "ceiling or outside")],
    "tiles.h": [
        ("test_bits.py", "layouts and (adam or sgd) or axis or gaps"),
        ("test_c_interface.py", "large"),
        ("test_norms.py", ""),
        ("test_storage.py", "layouts or norm"),
        ("test_bits.py", "layouts"),
        *_ROWS,
    ],
    "*.h": _CALLS,
    "*.c": _CALLS,
}
# Tests that would only take time: other backends, installations, instrumented builds.
LEFT_OUT = "not (numba or race or beyond or installed or environment_chooses)"

_COMPARISONS = {"<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="], "!=": ["=="]}
_PAIRS = ["+ -", "* /", "&& ||", "& |", "<< >>", "+= -=", "*= /=", "&= |="]
OTHERS = _COMPARISONS | {a: [b] for pair in _PAIRS for a, b in (pair.split(), reversed(pair.split()))} | {"%": ["/"]}
# Binary operators stand between spaces, which a pointer's star or a sign does not.
_OPERATOR = re.compile(f"(?<= )({'|'.join(map(re.escape, sorted(OTHERS, key=len, reverse=True)))})(?= |$)", re.M)
_NOT = re.compile(r"!(?!=)")
_NUMBER = re.compile(
    r"(?<![\w.])(0x[0-9a-f]+(\.[0-9a-f]*)?(p[+-]?\d+)?|\d+(\.\d*)?(e[+-]?\d+)?)[uflUFL]*(?![\w.])", re.I
)
_STATEMENT = re.compile(r"(?<=[;{})\\:])(?:[ \\]*\n)[ ]*(?P<statement>[\w*(+-][^;{}\n\\]*;)(?=[ \\]*$)", re.M)
# Declarations, loops and whatever else is no statement to be left out.
_KEPT = re.compile(
    r"return [^;]|return$|[\w ]*\b(const|static|typedef|struct|enum|for|while|else|case)\b|\w+ \**\w+( =|;|,|\[)"
)
_HIDDEN = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|^\s*#\s*(?!define)\w+[^\n]*|^\s*#\s*define \w+", re.S | re.M
)


class Change(NamedTuple):
    """One change to the text of a file."""

    file: Path
    begin: int
    end: int
    to: str

    def made(self, text):
        return text[: self.begin] + self.to + text[self.end :]

    def told(self, text):
        line = text.count("\n", 0, self.begin) + 1
        begin = text.rfind("\n", 0, self.begin) + 1
        whole = text[begin : text.find("\n", self.begin)]
        after = (
            whole[: self.begin - begin] + f"[{text[self.begin : self.end]} -> {self.to}]" + whole[self.end - begin :]
        )
        return f"{self.file.name}:{line}: {after.rstrip(' ' + chr(92)).strip()}"


def changes(file):
    """All changes to a file."""
    text = _HIDDEN.sub(lambda match: re.sub(r"[^\n]", "~", match[0]), file.read_text())
    for match in _OPERATOR.finditer(text):
        for other in OTHERS[match[0]]:
            yield Change(file, *match.span(), other)
    for match in _NOT.finditer(text):
        yield Change(file, *match.span(), "")
    for match in _NUMBER.finditer(text):
        for sign in "+-":
            yield Change(file, *match.span(), f"({match[0]} {sign} 1)")
    for match in _STATEMENT.finditer(text):
        statement = match["statement"]
        if statement.count("(") == statement.count(")") and not _KEPT.match(statement):
            yield Change(file, *match.span("statement"), ";")


def rules_of(text, at):
    """A choice, for pytest's -k, of the rules that the line of rules.h is of."""
    heads = [*re.finditer(r"^(?:UPDATE|ROW|FOLD|#define|static inline real FN)[ (]+(\w+)", text, re.M)]
    bodies = {}
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        bodies.setdefault(head[1], []).append(text[head.start() : after.start() if after else len(text)])
    names = {[head[1] for head in heads if head.start() <= at][-1]}
    names |= {name for name, own in bodies.items() for body in own if any(re.search(rf"\b{n}\b", body) for n in names)}
    found = [
        name
        for name, rule in RULES.items()
        if names & {rule.kernel, rule.fold.__name__.removeprefix("fold_"), rule.update.__name__}
    ]
    return " or ".join(found) or "adam"


class Library:
    """The library in a copy of the repository, for one instruction set; changed sources are in a second folder."""

    def __init__(self, folder, isa):
        self.csrc, self.changed, self.built, self.isa = folder / "csrc", folder / "changed", folder / isa, isa
        self.library = folder / "fastopt/lib" / Path(fastopt.get_library()).name
        self.built.mkdir()
        levels = {isa: build.levels()[isa]}
        (self.built / "rule_table.h").write_text(generate.rule_table(generate.load_rules(), levels))
        includes = [f"-I{self.built}", f"-I{folder / 'fastopt/include'}"]
        # Half the time of -O3, which is what most of a change's time would go into.
        self.flags = [*(flag for flag in build.FLAGS if flag != "-O3"), "-O1", "-w", *includes]
        self.units = build.units(levels)
        self.texts = {unit.object: self.preprocessed(self.csrc, unit) for unit in self.units}

    def gcc(self, root, unit, *more):
        command = ["gcc", *self.flags, f"-I{root}", *unit.flags, root / unit.source, *more]
        return subprocess.run(command, capture_output=True, check=False)

    def preprocessed(self, root, unit):
        return self.gcc(root, unit, "-E", "-P").stdout

    def compiled(self, root, unit):
        """The object file of a unit; None if it does not compile."""
        to = self.built / f"{root.name}-{unit.object}"
        return None if self.gcc(root, unit, "-c", "-o", to).returncode else to

    @cached_property
    def objects(self):
        """Compile the unchanged sources."""
        return {unit.object: self.compiled(self.csrc, unit) for unit in self.units}

    def concerned(self):
        """The units in which this instruction set's compiler sees a change."""
        return [unit for unit in self.units if self.preprocessed(self.changed, unit) != self.texts[unit.object]]

    def link(self, objects):
        """The library of these objects and the unchanged others, in the package's place for it."""
        new = self.built / "new.so"
        options = ["-shared", f"-Wl,-soname,{self.library.name}", "-lm", "-o", new]
        subprocess.run(["gcc", *(self.objects | objects).values(), *options], check=True)
        new.replace(self.library)


class Tests:
    """Runs the tests in a folder's copy of the package."""

    def __init__(self, folder, seconds):
        self.folder, self.seconds = folder, seconds
        # Plugins, of which these tests need none, take longer than most tests.
        own = {"FASTOPT_BACKEND": "native", "OMP_WAIT_POLICY": "passive", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self.environment = os.environ | own
        self.names, self.sound = {}, set()

    def limit(self):
        resource.setrlimit(resource.RLIMIT_CPU, (self.seconds, self.seconds + 1))

    def run(self, *options):
        """Return code, None for too long, and output."""
        own = ["-o", "addopts=", "-m", "not slow", "-q", "-p", "no:cacheprovider", "--tb=no"]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *own, *options], cwd=self.folder, env=self.environment, text=True,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=self.limit,
            )  # fmt: skip
            try:
                code = process.wait(20 * self.seconds)
                code = None if code == -signal.SIGXCPU else code
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
            output.seek(0)
            return code, output.read()

    def chosen(self, library, file, choice):
        """The names of a file's tests that are chosen."""
        key = library.isa, file, choice
        if key not in self.names:
            library.link({})
            both = f"({choice}) and {LEFT_OUT}" if choice else LEFT_OUT
            _, output = self.run("--collect-only", "-k", both, f"tests/{file}")
            self.names[key] = [line for line in output.splitlines() if line.startswith(f"tests/{file}::")]
            if not self.names[key]:
                sys.exit(f"there are no tests in {file} for -k {both!r}:\n{output}")
        return self.names[key]

    def noticed(self, library, objects, selection):
        """Return the test that noticed a change, or that it took too long; None if nothing did."""
        names = [name for file, choice in selection for name in self.chosen(library, file, choice)]
        arguments = self.folder / "arguments"
        arguments.write_text("\n".join(dict.fromkeys(names)))
        library.link(objects)
        code, output = self.run("-x", f"@{arguments}")
        if code == 0:
            return None
        if code is None:
            return "too long"
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.M)
        if failed is None:
            return f"return code {code}"
        test = failed[1].partition("[")[0]
        if (library, test) not in self.sound:
            library.link({})
            if self.run(test)[0]:  # it asks for another instruction set, say
                print(f"    left out, for it fails without a change: {test}")
                for key, some in self.names.items():
                    self.names[key] = [name for name in some if name.partition("[")[0] != test]
                return self.noticed(library, objects, selection)
            self.sound.add((library, test))
        return failed[1]


def selection_of(change, text):
    tests = TESTS.get(change.file.name) or TESTS[f"*{change.file.suffix}"]
    rules = rules_of(text, change.begin) if change.file.name == "rules.h" else ""
    return [(file, choice.format(rules=rules)) for file, choice in tests]


def verdict(change, text, libraries, tests):
    """Return the fate of a change: a kind, and details.

    What is compiled for each instruction set is tried for one after the other until something is noticed.
    """
    found = {}
    for library in libraries:
        units = library.concerned()
        if not units:
            continue
        objects = {unit.object: library.compiled(library.changed, unit) for unit in units}
        if not all(objects.values()):
            return "not compiled", "an error"
        if all(made.read_bytes() == library.objects[name].read_bytes() for name, made in objects.items()):
            found.setdefault("same code", []).append(library.isa)
        else:
            noticed = tests.noticed(library, objects, selection_of(change, text))
            if noticed:
                return "killed", noticed
            found.setdefault("survived", []).append(library.isa)
        if not any(unit.source.startswith("isa/") for unit in units):
            break
    kind = next((kind for kind in ("survived", "same code") if kind in found), "not compiled")
    return kind, ", ".join(found.get(kind, ["no instruction set of this machine"]))


def copy(folder):
    """A copy of the repository, with what is built of it."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(fastopt.__path__[0], folder / "fastopt", dirs_exist_ok=True)
    shutil.copytree(folder / "csrc", folder / "changed")


def main():
    """Makes the changes and prints what becomes of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.c", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--sample", type=int, default=20, help="how many changes, of all files together (20)")
    parser.add_argument("--file", action="append", help="files to change, by name (all)")
    parser.add_argument("--seconds", type=int, default=90, help="CPU time for a change's tests; more is a hang (90)")
    parser.add_argument("--line", type=int, help="all changes to one line only")
    parser.add_argument("--list", action="store_true", help="print the changes and make none")
    arguments = parser.parse_args()
    csrc = ROOT / "csrc"
    files = [file for file in sorted(csrc.glob("**/*.[ch]")) if not file.name.endswith(".in.h")]
    files = [file for file in files if file.parent.name != "python"]  # which is no part of the library
    files = [file for file in files if not arguments.file or file.name in arguments.file]
    every = [change for file in files for change in changes(file)]
    texts = {file: file.read_text() for file in files}
    if arguments.line:
        every = [c for c in every if texts[c.file].count("\n", 0, c.begin) + 1 == arguments.line]
    random.Random(arguments.seed).shuffle(every)
    sample = every[: arguments.sample]
    if arguments.list:
        for change in sample:
            print(change.told(texts[change.file]))
        return
    counts, survived = Counter(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy(folder)
        libraries = [Library(folder, isa) for isa in reversed(native.isa_supported())]
        tests = Tests(folder, arguments.seconds)
        for number, change in enumerate(sample, 1):
            begun = time.perf_counter()
            place = folder / "changed" / change.file.relative_to(csrc)
            place.write_text(change.made(texts[change.file]))
            kind, more = verdict(change, texts[change.file], libraries, tests)
            place.write_text(texts[change.file])
            counts[kind] += 1
            line = f"{change.told(texts[change.file])}\n    {kind}: {more}"
            if kind == "survived":
                survived.append(line)
            print(f"{number}. {line} ({time.perf_counter() - begun:.0f} s)", flush=True)
    print(f"\n{len(sample)} of {len(every)} changes: {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    print(*survived, sep="\n")


if __name__ == "__main__":
    main()

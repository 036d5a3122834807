"""Small changes to the package's Python, one at a time: does a test notice?

    python -m tests.mutation.python gather          which test runs which line; again after each change to the package
    python -m tests.mutation.python run --sample 50 --seed 1 --file 'fastopt/binding/norms.py'

All is done in a copy of the tree. cosmic-ray makes the changes: a comparison turned or its bound moved, `and` for `or`,
+ for -, a number one more or less, True for False, a condition negated, break for continue, a loop that is left out.
Its other operators are left out: exceptions renamed and decorators removed mostly break the import, and a second
replacement of the same operator is killed by what kills the first. Annotations, which are not run, stay as they are.

A change is tried with the tests that run its statement, those of the nearest file first, until one fails. What runs at
import, or compiled by Numba, coverage.py does not see in a test: there it is all tests of the files that name the
module or run anything of it. Elsewhere "no test" is said of a statement that no test runs. A change whose tests would
take longer than --seconds is tried with as many as fit in it, from each test function first one, then another; the
result says how many of how many those were.

Nothing stale hides a change: no bytecode is written, and a module that uses Numba, or a constant, which may be compiled
in, is tried with an empty cache. The C library is built anew for a changed rule, as it refuses to load with rules that
it was not built from; the rule's C twin is the old one then, and tests that compare the two see that.
"""

import argparse
import ast
import collections
import contextlib
import hashlib
import json
import os
import queue
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
WORK = Path(tempfile.gettempdir()) / "fastopt-mutation"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "venv*", "__pycache__", ".*_cache", ".hypothesis", "build", "dist")

COMPARISONS = "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd LShift_RShift"
OPERATORS = [
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in COMPARISONS.split()),
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in BINARY.split()),
    *(f"core/{name}" for name in ("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse")),
    *(f"core/{name}" for name in ("ReplaceFalseWithTrue", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak")),
    *(f"core/{name}" for name in ("AddNot", "NumberReplacer", "ZeroIterationForLoop")),
    *(f"core/ReplaceUnaryOperator_Delete_{name}" for name in ("Not", "USub", "Invert")),
]


_BINARY = {"expr", "and_expr", "shift_expr", "arith_expr", "term", "power"}  # to parso
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Mutant(NamedTuple):
    file: str
    line: int
    operator: str
    occurrence: int


# The copy of the tree.


def package_files(tree):
    return [path.relative_to(tree).as_posix() for path in sorted(tree.glob("fastopt/**/*.py"))]


def digest(paths):
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def copy_tree(tree):
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT, symlinks=True)


def environment(tree, numba_cache, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COVERAGE_"))}
    own = {"PYTHONPATH": os.fspath(tree), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": os.fspath(numba_cache)}
    return {**kept, **own, **more}


def pytest(tree, arguments, env, seconds=None):
    """Exit status and output of pytest in the copy; None if it took longer."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "--tb=no",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tree, env=env, text=True, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, ""
    return process.returncode, output


# The tests that run each line.


def gather(work, only, without):
    from coverage import CoverageData

    tree, kept = work / "tree", work / "contexts"
    package = digest([ROOT / file for file in package_files(ROOT)])
    kept.mkdir(parents=True, exist_ok=True)
    copy_tree(tree)
    for test in sorted(tree.glob("tests/**/test_*.py"), key=lambda path: path.stat().st_size):
        path, stamp = test.relative_to(tree), package + digest([test])
        name, flat = path.as_posix(), "-".join(path.with_suffix("").parts[1:])
        data, about = kept / f"{flat}.coverage", kept / f"{flat}.json"
        if not any(path.match(pattern) for pattern in only) or any(path.match(pattern) for pattern in without):
            continue
        if about.exists() and json.loads(about.read_text())["stamp"] == stamp:
            continue
        with tempfile.TemporaryDirectory(dir=work) as parts:
            settings, seconds = Path(parts, "settings"), Path(parts, "seconds")
            settings.write_text(
                f"[run]\ninclude = {tree}/fastopt/*\nparallel = true\ndata_file = {parts}/part\n"
                "context = ${MUTATION_TEST-}\nconcurrency = multiprocessing, thread\n"
            )
            env = environment(
                tree,
                work / "numba",
                COVERAGE_PROCESS_START=os.fspath(settings),
                PYTEST_ADDOPTS="-p tests.mutation.contexts",
                MUTATION_SECONDS=os.fspath(seconds),
            )
            began = time.monotonic()
            _, output = pytest(tree, [name], env)
            print(f"{name}: {time.monotonic() - began:.0f} s: {output.strip().splitlines()[-1]}", flush=True)
            data.unlink(missing_ok=True)
            whole = CoverageData(os.fspath(data))
            for part in Path(parts).glob("part.*"):
                with contextlib.suppress(Exception):  # of a process that was killed
                    whole.update(CoverageData(os.fspath(part)))
            whole.write()
            passed = json.loads(seconds.read_text()) if seconds.exists() else {}
            about.write_text(json.dumps({"stamp": stamp, "seconds": passed}))


class Contexts:
    """The gathered contexts: for each line the tests that run it, for each test its time."""

    def __init__(self, work):
        from coverage import CoverageData

        self.tree = work / "tree"
        self.seconds = {}
        self.tests = collections.defaultdict(lambda: collections.defaultdict(set))
        package = digest([self.tree / file for file in package_files(self.tree)])
        for about in sorted(work.glob("contexts/*.json")):
            found = json.loads(about.read_text())
            if not found["stamp"].startswith(package):  # or a run was killed, and left its change
                sys.exit(f"{about.stem}: found lines of another package, expected those of {self.tree}: gather again")
            self.seconds.update(found["seconds"])
            data = CoverageData(os.fspath(about.with_suffix(".coverage")))
            data.read()
            for measured in data.measured_files():
                lines = self.tests[Path(measured).relative_to(self.tree).as_posix()]
                for line, names in data.contexts_by_lineno(measured).items():
                    lines[line].update(test for name in names if (test := name.split("|")[0]) in self.seconds)
        self.by_file = collections.defaultdict(list)
        for test in self.seconds:
            self.by_file[test.split("::")[0]].append(test)

    @cache  # noqa: B019 (one for the whole run)
    def touched(self, module):
        """Count the lines of a module that the tests of each file run."""
        counts = collections.Counter()
        for tests in self.tests[module].values():
            counts.update({test.split("::")[0] for test in tests})
        return counts

    def select(self, mutant, lines, at_import, compiled):
        """The tests of a change, the nearest first."""
        chosen, touched = set().union(*(self.tests[mutant.file][line] for line in lines)), self.touched(mutant.file)
        name = Path(mutant.file).stem if Path(mutant.file).stem != "__init__" else Path(mutant.file).parent.name
        if at_import or (compiled and not chosen):
            for file, tests in self.by_file.items():
                if touched[file] or re.search(rf"\b{name}\b", (self.tree / file).read_text()):
                    chosen.update(tests)

        def nearness(file):
            return not Path(file).stem.startswith(f"test_{name}"), -touched[file], file

        order = []
        for file in sorted({test.split("::")[0] for test in chosen}, key=nearness):
            functions = collections.defaultdict(list)
            for test in sorted(chosen.intersection(self.by_file[file]), key=self.seconds.__getitem__):
                functions[test.split("[")[0]].append(test)
            ranked = [(k, self.seconds[test], test) for tests in functions.values() for k, test in enumerate(tests)]
            order += [test for _, _, test in sorted(ranked)]
        return order


# The changes.


class Source:
    """A module: its statements, and what of it is run."""

    def __init__(self, path):
        self.text = path.read_text()
        nodes = list(ast.walk(ast.parse(self.text)))
        self.not_run = [
            node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        for name in ("annotation", "returns"):
            self.not_run += [getattr(node, name) for node in nodes if getattr(node, name, None) is not None]
        self.bodies = [
            range(node.body[0].lineno, node.end_lineno + 1) for node in nodes if isinstance(node, _FUNCTIONS)
        ]
        self.heads = []  # of simple statements all lines
        for node in nodes:
            if isinstance(node, (ast.stmt, ast.ExceptHandler)):
                first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
                body = getattr(node, "body", None)
                self.heads.append(range(first, max(body[0].lineno, first + 1) if body else node.end_lineno + 1))
        imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
        self.uses_numba = any("numba" in ast.unparse(node) for node in imports)

    def runs(self, line, column):
        at = line, column
        return not any((n.lineno, n.col_offset) <= at < (n.end_lineno, n.end_col_offset) for n in self.not_run)

    def statement(self, line):
        """The lines of the innermost statement there."""
        return min((head for head in self.heads if line in head), key=len, default=range(line, line + 1))

    def in_function(self, line):
        return any(line in body for body in self.bodies)


def mutants(tree, file):
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    source = Source(tree / file)
    nodes = list(ast_nodes(get_ast(source.text)))
    for name in OPERATORS:
        operator = get_operator(name)()
        found = [(node, begin) for node in nodes for begin, _ in operator.mutation_positions(node)]
        for occurrence, (node, (line, column)) in enumerate(found):
            unpacks = "Binary" in name and node.parent.type not in _BINARY  # or ends positional arguments
            if source.runs(line, column) and not unpacks:
                yield Mutant(file, line, name.removeprefix("core/"), occurrence)


# The trials.


@contextlib.contextmanager
def changed(tree, mutant, text):
    """The copy with a change in it, the C library built for it where it is another one's."""
    path, sources = tree / mutant.file, next(tree.glob("fastopt/**/_sources.py"))
    original, before = path.read_text(), runpy.run_path(os.fspath(sources))["digest"]()
    path.write_text(text)
    rebuilt = runpy.run_path(os.fspath(sources))["digest"]() != before
    try:
        with tempfile.TemporaryDirectory() as kept:
            built = [file for pattern in ("*.so", "*.dylib") for file in tree.glob(f"fastopt/**/{pattern}") if rebuilt]
            for k, file in enumerate(built):
                shutil.copy2(file, Path(kept, str(k)))
            if rebuilt:
                command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
                subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
            yield rebuilt
            for k, file in enumerate(built):
                shutil.copy2(Path(kept, str(k)), file)
    finally:
        path.write_text(original)


def try_one(tree, numba_cache, mutant, contexts, seconds):
    """Return the fate of a change, and how it came about."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = Source(tree / mutant.file)
    text = mutate_code(source.text, get_operator(f"core/{mutant.operator}")(), mutant.occurrence)
    before, after = source.text.splitlines(), text.splitlines()
    lines = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    what = "".join(f"\n    {sign} {side[k].strip()}" for k in lines for sign, side in (("-", before), ("+", after)))
    at_import = not source.in_function(mutant.line)
    with tempfile.TemporaryDirectory() as scratch, changed(tree, mutant, text) as rebuilt:
        compiled = rebuilt or source.uses_numba
        tests = contexts.select(mutant, source.statement(mutant.line), at_import, compiled)
        if not tests:
            return "no test", what
        chosen, took = [], 0.0
        for test in tests:
            if took + contexts.seconds[test] <= seconds or not chosen:
                chosen.append(test)
                took += contexts.seconds[test]
        named = Path(scratch, "tests")
        named.write_text("\n".join(chosen))
        env = environment(tree, Path(scratch, "numba") if at_import or compiled else numba_cache)
        began = time.monotonic()
        status, output = pytest(tree, ["-x", f"@{named}"], env, 60 + 6 * took)
        took = time.monotonic() - began
    if status == 0:
        return "survived", f" {len(chosen)} of {len(tests)} tests in {took:.0f} s{what}"
    if status is None:
        return "out of time", f" after {took:.0f} s{what}"
    failed = re.search(r"^(FAILED|ERROR) (.+?)( - |$)", output, re.M)
    by = failed[2] if failed else f"signal {-status}" if status < 0 else output.strip().splitlines()[-1]
    return "killed", f" in {took:.0f} s by {by}{what}"


def run(work, patterns, sample, seed, seconds, jobs):
    files = [f for f in package_files(work / "tree") if any(Path(f).match(pattern) for pattern in patterns)]
    every = [mutant for file in files for mutant in mutants(work / "tree", file)]
    chosen = sorted(random.Random(seed).sample(every, min(sample, len(every))))
    contexts, trees = Contexts(work), queue.Queue()
    print(f"{len(chosen)} of {len(every)} changes to {len(files)} files", flush=True)
    for k in range(jobs):
        tree = work / f"tree-{k}" if k else work / "tree"
        if k:
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(work / "tree", tree, symlinks=True)
        trees.put((tree, work / "numba"))

    def trial(mutant):
        tree, numba_cache = trees.get()
        try:
            outcome, how = try_one(tree, numba_cache, mutant, contexts, seconds)
        finally:
            trees.put((tree, numba_cache))
        print(f"{outcome}: {mutant.file}:{mutant.line} {mutant.operator} {mutant.occurrence}:{how}", flush=True)
        return mutant.file, outcome

    with ThreadPoolExecutor(jobs) as pool:
        counts = collections.Counter(pool.map(trial, chosen))
    outcomes = "killed", "survived", "out of time", "no test"
    for file in sorted({file for file, _ in counts}):
        print(f"{file}: " + ", ".join(f"{counts[file, outcome]} {outcome}" for outcome in outcomes))
    total = {outcome: sum(counts[file, outcome] for file in files) for outcome in outcomes}
    print(f"of {len(chosen)}: " + ", ".join(f"{total[outcome]} {outcome}" for outcome in outcomes))


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.python", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK, help="where all is kept (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather", help="copy the tree and note which test runs which line")
    gathering.add_argument("--only", action="append", metavar="PATTERN", help="test files to run (default: all)")
    gathering.add_argument("--without", action="append", default=[], metavar="PATTERN", help="test files to leave out")
    running = commands.add_parser("run", help="try a sample of changes")
    running.add_argument("--file", action="append", metavar="PATTERN", help="files to change (default: all)")
    running.add_argument("--sample", type=int, default=100, help="how many changes (default: %(default)s)")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--seconds", type=float, default=60, help="of tests for each change (default: %(default)s)")
    running.add_argument("--jobs", type=int, default=1, help="how many at a time, each in a copy of its own")
    arguments = parser.parse_args()
    if arguments.command == "gather":
        gather(arguments.work, arguments.only or ["*"], arguments.without)
    else:
        patterns = arguments.file or ["*"]
        run(arguments.work, patterns, arguments.sample, arguments.seed, arguments.seconds, arguments.jobs)


if __name__ == "__main__":
    main()

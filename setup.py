"""Builds the C library and the extension over it: everything else about the package is in pyproject.toml."""

import importlib
import math
import os
import platform
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# No contraction, no errno, no fast-math: the same bits on every level. Loops are what is compiled: -O3, but not each
# anew for coefficients of 0, which would make the library a third larger.
FLAGS = ["-std=c11", "-O3", "-fno-unswitch-loops", "-g0", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra"]  # fmt: skip
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]


def levels():
    """The instruction-set levels of this machine's kind, from the lowest to the highest, with their flags."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return {"sse2": [], "avx2": AVX2, "avx512": AVX512}
    return {"neon" if platform.machine().lower() in ("aarch64", "arm64") else "baseline": []}


def load_rules():
    """The rule table, out of a package of another name: the one that is about to be built is not imported."""
    package = ModuleType("_fastopt")
    package.__path__ = [str(ROOT / "fastopt")]
    sys.modules[package.__name__] = package
    return importlib.import_module("_fastopt.rules")


def struct(name, fields, real):
    members = ", ".join(fields) or "unused"
    return f"typedef struct {{ {real} {members}; }} {name};"


def instance(name, states, copies):
    """What the loop of a rule with so many copies of its states needs: pointers, prefetches, the update."""
    pointers = [(f"{s}_{k}", 2 + k * len(states) + j) for k in range(copies) for j, s in enumerate(states)]
    declare = " ".join(f"real *restrict {pointer} = arrays[{j}];" for pointer, j in pointers)
    prefetch = " ".join(f"PREFETCH({pointer} + (i));" for pointer, _ in pointers)
    update = ""
    for k in range(copies):
        load = ", ".join(f"{s}_{k}[i]" for s in states) or "0"
        store = " ".join(f"{s}_{k}[i] = s.{s};" for s in states)
        update += f"{{ FN({name}_states) s = {{{load}}}; FN({name})(&p, g, &s, &coefs[{k}]); {store} }} "
    return [
        f"enum {{ ARRAYS_{name}_{copies} = {2 + len(pointers)} }};",
        f"#define STATES_{name}_{copies}(X) {' '.join(f'X({j})' for _, j in pointers)}",
        f"#define POINTERS_{name}_{copies} {declare}",
        f"#define PREFETCH_{name}_{copies}(i) {prefetch}",
        f"#define UPDATE_{name}_{copies} {update}",
    ]


def c_hypers(module, rule):
    """A rule's row of hyper-parameters for C, where all are numbers: of AggMo's betas that of one copy."""
    hypers = {
        "copies": module.Hyper(
            module.REQUIRED, "how many betas there are, a whole number", low=1, high=module.MAX_COPIES
        )
    }
    for name, hyper in rule.hyper.items():
        hypers[name] = replace(hyper, default=module.REQUIRED, vector=False) if hyper.vector else hyper
    return {name: hypers[name] for name in rule.row}


def c_default(hyper):
    return float(hyper.default) if isinstance(hyper.default, (int, float)) else math.nan


def c_double(value):
    return "NAN" if math.isnan(value) else "INFINITY" if math.isinf(value) else float(value).hex()


def c_domain(hyper):
    """The numbers that `Hyper.check` takes, as a closed interval."""
    if hyper.flag:
        return 0.0, 1.0
    high = math.nextafter(hyper.high, hyper.low) if hyper.below_high else hyper.high
    try:
        hyper.check("", high)
    except ValueError:
        high = sys.float_info.max
    return max(hyper.low, -sys.float_info.max), high


def rule_entry(module, rule):
    """A rule's entry in the C library's table."""
    hypers = []
    for name, hyper in c_hypers(module, rule).items():
        numbers = ", ".join(map(c_double, (c_default(hyper), *c_domain(hyper))))
        hypers.append(f'{{"{name}", {numbers}, {int(hyper.flag or name == "copies")}, {int(hyper.optional)}}}')
    lengths = f"{len(rule.states)}, {len(rule.row)}, {len(module.PROLOGUE + rule.coefficients)}, {len(rule.scalars)}"
    copies = module.MAX_COPIES if rule.vector else 1
    states = ", ".join([*(f'"{state}"' for state in rule.states), "NULL"])
    scalars = ", ".join(map(c_double, rule.scalars.values())) or "0"
    return (
        f'{{{{"{rule.name}", {lengths}, {copies}, {int(rule.by_row is not None)}, (const char *const[]){{{states}}}, '
        f"(const fastopt_hyper[]){{{', '.join(hypers)}}}}}, "
        f"number_{rule.kernel}, folded_{rule.kernel}, {int(rule.decoupled is not None)}, {{{scalars}}}}}"
    )


def rule_table(module):
    """The text of rule_table.h: the C side's view of the rule table."""
    kernels, lines = {}, []
    for rule in module.RULES.values():
        kernels.setdefault(rule.kernel, rule)
    for real, suffix in (("float", "f32"), ("double", "f64")):
        lines.append(struct(f"prologue_coefs_{suffix}", module.PROLOGUE, real))
        for name, rule in kernels.items():
            lines.append(struct(f"{name}_coefs_{suffix}", rule.coefficients, real))
            lines.append(struct(f"{name}_states_{suffix}", rule.states, real))
    folds = {rule.fold.__name__.removeprefix("fold_"): rule for rule in kernels.values()}
    lines += [struct(f"{fold}_hyper", rule.row, "double") for fold, rule in folds.items()]
    instances, row_rules = [], []
    for name, rule in kernels.items():
        if rule.by_row:
            row_rules.append(f"X({name}, {rule.update.__name__})")
            load = ", ".join(f"s[{k}]" for k in range(len(rule.states)))
            store = " ".join(f"s[{k}] = own.{state};" for k, state in enumerate(rule.states))
            lines.append(f"#define LOAD_{name} {{{load}}}\n#define STORE_{name} {store}")
            continue
        for copies in range(1, module.MAX_COPIES + 1 if rule.vector else 2):
            lines += instance(name, rule.states, copies)
            instances.append(f"X({name}, {copies})")
    entries = " ".join(f"X({name}, {rule.fold.__name__.removeprefix('fold_')})" for name, rule in kernels.items())
    lines += [
        f"#define FASTOPT_KERNELS(X) {entries}",
        f"#define FASTOPT_INSTANCES(X) {' '.join(instances)}",
        f"#define FASTOPT_ROW_RULES(X) {' '.join(row_rules)}",
        f"#define FASTOPT_RULES {', '.join(rule_entry(module, rule) for rule in module.RULES.values())}",
        f"#define FASTOPT_LEVELS(X) {' '.join(f'X({level})' for level in levels())}",
    ]
    rules = module.RULES.values()
    longest = {
        "HYPER": max(len(rule.row) for rule in rules),
        "COEFFICIENTS": max(len(module.PROLOGUE + rule.coefficients) for rule in rules),
        "SCALARS": max(len(rule.scalars) for rule in rules),
        "COPIES": module.MAX_COPIES,
    }
    lines += [f'_Static_assert({n} <= FASTOPT_MAX_{of}, "raise it in fastopt.in.h");' for of, n in longest.items()]
    return "/* Written by setup.py from fastopt/rules. */\n" + "\n".join(lines) + "\n"


def header(module, version):
    """The text of fastopt.h: csrc/fastopt.in.h with the version and the rules written in."""
    lines, meanings = [], {}
    for rule in module.RULES.values():
        hypers = c_hypers(module, rule)
        values = ", ".join(f"{name}={c_default(hyper):g}".replace("nan", "NaN") for name, hyper in hypers.items())
        of_rows = " (one element for each row)" if rule.by_row else ""
        states = [
            f"{s}{of_rows} (may begin at {rule.hyper[rule.initial[s]].domain})" if s in rule.initial else s
            for s in rule.states
        ]
        lines += [f"{rule.name}: {rule.formula}", f"    states: {', '.join(states) or 'none'}", f"    {values}", ""]
        for name, hyper in hypers.items():
            meaning = f"{name}: {hyper.domain}; {hyper.meaning}"
            meanings[meaning.replace("True or False", "0 or 1").replace("None", "NaN")] = None
    lines += ["The hyper-parameters:", "", *sorted(meanings)]
    wrapped = [part for line in lines for part in textwrap.wrap(line, 115, subsequent_indent=8 * " ") or [""]]
    major, minor = version.split(".")[:2]
    defines = f'#define FASTOPT_VERSION "{version}"\n'
    defines += f"#define FASTOPT_VERSION_MAJOR {major}\n#define FASTOPT_VERSION_MINOR {minor}"
    text = (CSRC / "fastopt.in.h").read_text().replace("/* <version> */", defines)
    return text.replace(" * <rules>", "\n".join(f" * {part}".rstrip() for part in wrapped))


class BuildLibrary(build_ext):
    """Builds libfastopt, a plain C library, and beside it the cffi extension that is linked to it."""

    def build_extension(self, ext):
        self.folder = Path(self.get_ext_fullpath(ext.name)).parents[1]
        for path in self.made():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        self.build_library()
        ext.library_dirs.append(str(self.folder / "backends"))
        ext.libraries.append("fastopt")
        ext.include_dirs.append(str(self.folder / "include"))
        origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        ext.extra_link_args.append(f"-Wl,-rpath,{origin}")
        super().build_extension(ext)

    def made(self):
        """What is made beside the extension, by its place in the package: the header and the library."""
        return ["include/fastopt.h", f"backends/libfastopt.{'dylib' if sys.platform == 'darwin' else 'so'}"]

    def build_library(self):
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        public, library = (self.folder / path for path in self.made())
        module = load_rules()
        public.write_text(header(module, self.distribution.get_version()))
        (temp / "rule_table.h").write_text(rule_table(module))
        openmp = self.openmp_flags()
        objects = self.compile("fastopt.c", temp / "fastopt", [*FLAGS, *openmp])
        for name, flags in levels().items():
            objects += self.compile("kernels.c", temp / name, [*FLAGS, *flags, f"-DFASTOPT_ISA={name}"])
        darwin = sys.platform == "darwin"
        name = f"-Wl,-install_name,@rpath/{library.name}" if darwin else f"-Wl,-soname,{library.name}"
        self.compiler.link_shared_object(objects, str(library), libraries=["m"], extra_postargs=[*openmp, name])

    def compile(self, source, folder, flags):
        include = [str(CSRC), str(self.build_temp), str(self.folder / "include")]
        paths = [os.path.relpath(CSRC / source)]
        depends = [str(path) for path in CSRC.glob("*.h")]
        return self.compiler.compile(paths, str(folder), include_dirs=include, extra_postargs=flags, depends=depends)

    def openmp_flags(self):
        """``-fopenmp`` where the compiler takes it and has its run-time library; else one thread, and it says so."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.c"
            probe.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(probe)], folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                print("fastopt: this compiler has no OpenMP; the native backend will use one thread", file=sys.stderr)
                return []
        return ["-fopenmp"]

    def copy_extensions_to_source(self):
        """An editable installation finds header and library in their places too."""
        super().copy_extensions_to_source()
        source = Path(self.get_finalized_command("build_py").get_package_dir("fastopt"))
        for path in self.made():
            (source / path).parent.mkdir(exist_ok=True)
            self.copy_file(str(self.folder / path), str(source / path))

    def get_outputs(self):
        extensions = super().get_outputs()
        return [*extensions, *(str(Path(extensions[0]).parents[1] / path) for path in self.made())]


setup(
    cffi_modules=["fastopt/backends/_native_build.py:ffi"],
    cmdclass={"build_ext": BuildLibrary},
    options={
        "bdist_wheel": {"py_limited_api": "cp310"},
        # By path: for the default's import hook, a folder that holds only what Numba cached beside an installation
        # since removed would be the package.
        "editable_wheel": {"mode": "compat"},
    },
)

"""Builds the C library and the extension over it: everything else about the package is in pyproject.toml."""

import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# No contraction, no errno, no fast-math: the same bits on every level. Loops are what is compiled: -O3.
FLAGS = ["-std=c11", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-fvisibility=hidden", "-Wall", "-Wextra"]  # fmt: skip
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]


def levels():
    """The instruction-set levels of this machine's kind, from the lowest to the highest, with their flags."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return {"sse2": [], "avx2": AVX2, "avx512": AVX512}
    return {"neon" if platform.machine().lower() in ("aarch64", "arm64") else "baseline": []}


def load_rules():
    """The rule table, without importing the package that is about to be built."""
    folder = ROOT / "fastopt" / "rules"
    spec = importlib.util.spec_from_file_location(
        "_fastopt_rules", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
        f"#define POINTERS_{name}_{copies} {declare}",
        f"#define PREFETCH_{name}_{copies}(i) {prefetch}",
        f"#define UPDATE_{name}_{copies} {update}",
    ]


def rule_table():
    """The text of rule_table.h: the C side's view of the rule table."""
    module = load_rules()
    kernels, aliases, lines = {}, [], []
    for rule in module.RULES.values():
        kernels.setdefault(rule.kernel, rule)
        if rule.name != rule.kernel:
            aliases.append(f'{{"{rule.name}", "{rule.kernel}"}}')
    for real, suffix in (("float", "f32"), ("double", "f64")):
        lines.append(struct(f"prologue_coefs_{suffix}", module.PROLOGUE, real))
        for name, rule in kernels.items():
            lines.append(struct(f"{name}_coefs_{suffix}", rule.coefficients, real))
            lines.append(struct(f"{name}_states_{suffix}", rule.states, real))
    folds = {rule.fold.__name__.removeprefix("fold_"): rule for rule in kernels.values()}
    lines += [struct(f"{fold}_hyper", rule.row, "double") for fold, rule in folds.items()]
    instances = []
    for name, rule in kernels.items():
        lines += [
            f"#define STATES_{name} {len(rule.states)}",
            f"#define SCALARS_{name} {len(rule.scalars)}",
        ]
        for copies in range(1, module.MAX_COPIES + 1 if rule.vector else 2):
            lines += instance(name, rule.states, copies)
            instances.append(f"X({name}, {copies})")
    entries = " ".join(f"X({name}, {rule.fold.__name__.removeprefix('fold_')})" for name, rule in kernels.items())
    lines += [
        f"#define FASTOPT_KERNEL_COUNT {len(kernels)}",
        f"#define FASTOPT_KERNELS(X) {entries}",
        f"#define FASTOPT_INSTANCES(X) {' '.join(instances)}",
        f"#define FASTOPT_MAX_COPIES {module.MAX_COPIES}",
        f"#define FASTOPT_ALIASES {', '.join(aliases)}",
        f"#define FASTOPT_LEVELS(X) {' '.join(f'X({level})' for level in levels())}",
    ]
    return "/* Written by setup.py from fastopt/rules. */\n" + "\n".join(lines) + "\n"


class BuildLibrary(build_ext):
    """Builds libfastopt, a plain C library, and beside it the cffi extension that is linked to it."""

    def build_extension(self, ext):
        self.library_folder = Path(self.get_ext_fullpath(ext.name)).parent
        self.library_folder.mkdir(parents=True, exist_ok=True)
        self.build_library()
        ext.library_dirs.append(str(self.library_folder))
        ext.libraries.append("fastopt")
        ext.include_dirs.append(str(CSRC))
        origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        ext.extra_link_args.append(f"-Wl,-rpath,{origin}")
        super().build_extension(ext)

    def library_name(self):
        return "libfastopt.dylib" if sys.platform == "darwin" else "libfastopt.so"

    def build_library(self):
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        (temp / "rule_table.h").write_text(rule_table())
        openmp = self.openmp_flags()
        objects = self.compile("fastopt.c", temp / "fastopt", [*FLAGS, *openmp])
        for name, flags in levels().items():
            objects += self.compile("kernels.c", temp / name, [*FLAGS, *flags, f"-DFASTOPT_ISA={name}"])
        install_name = ["-Wl,-install_name,@rpath/libfastopt.dylib"] if sys.platform == "darwin" else []
        self.compiler.link_shared_object(
            objects, str(self.library_folder / self.library_name()), libraries=["m"],
            extra_postargs=[*openmp, *install_name],
        )  # fmt: skip

    def compile(self, source, folder, flags):
        include = [str(CSRC), str(self.build_temp)]
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
        """An editable installation finds the library beside the extension too."""
        super().copy_extensions_to_source()
        folder = Path(self.get_finalized_command("build_py").get_package_dir("fastopt.backends"))
        self.copy_file(str(self.library_folder / self.library_name()), str(folder / self.library_name()))

    def get_outputs(self):
        return [*super().get_outputs(), str(Path(super().get_outputs()[0]).parent / self.library_name())]


setup(
    cffi_modules=["fastopt/backends/_native_build.py:ffi"],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

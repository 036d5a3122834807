"""Builds the C library and the extension over it: everything else about the package is in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "build/generated"  # the C made from the rules; it stays there to be read
NO_DELETE = "-Wl,-z,nodelete"  # the library's threads wait in its code
sys.path.insert(0, str(ROOT / "csrc"))

import generate
import library


class BuildLibrary(build_ext):
    """Build libfastopt, a plain C library, and the cffi extension that links to it."""

    def build_extension(self, ext):
        self.folder = Path(self.get_ext_fullpath(ext.name)).parents[2]
        self.write_texts()
        self.build_library()
        ext.library_dirs.append(str(self.folder / "lib"))
        ext.libraries.append("fastopt")
        ext.include_dirs += [str(self.folder / "include"), str(ROOT / "csrc")]
        origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
        ext.extra_link_args.append(f"-Wl,-rpath,{origin}/../../lib")
        super().build_extension(ext)

    def library(self):
        """Return the library's path in the package."""
        return f"lib/{library.file_name(self.distribution.get_version())}"

    def texts(self):
        """Return the texts that are installed beside the library, by their paths in the package."""
        version = self.distribution.get_version()
        texts = generate.package_files(version, library.series(version), Path(self.library()).name)
        texts["include/fastopt.h"] = generate.header(generate.load_rules(), version)
        if sys.platform != "darwin":
            # -lfastopt finds this. Wheels cannot hold a symbolic link.
            texts["lib/libfastopt.so"] = f"INPUT({Path(self.library()).name})\n"
        return texts

    def write_texts(self):
        GENERATED.mkdir(parents=True, exist_ok=True)
        for place, text in self.texts().items():
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / place).write_text(text)
        self.copy_file(str(self.folder / "include/fastopt.h"), str(GENERATED))
        (GENERATED / "rule_table.h").write_text(generate.rule_table(generate.load_rules(), library.levels()))

    def build_library(self):
        temp, built = Path(self.build_temp), self.folder / self.library()
        temp.mkdir(parents=True, exist_ok=True)
        try:
            objects = library.compile_all(self.compiler.compiler_so, library.FLAGS, library.levels(), [GENERATED], temp)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error
        darwin = sys.platform == "darwin"
        flags = ["-Wl,-install_name,@rpath/" + built.name] if darwin else ["-Wl,-soname," + built.name, NO_DELETE]
        libraries = ["m", "pthread"] if darwin else ["m", "pthread", "dl"]
        self.compiler.link_shared_object(objects, str(built), libraries=libraries, extra_postargs=flags)

    def made(self):
        """Return the paths in the package of all files made beside the extension."""
        return [self.library(), *self.texts()]

    def copy_extensions_to_source(self):
        """Copy the extension and the other files for an editable installation."""
        super().copy_extensions_to_source()
        source = Path(self.get_finalized_command("build_py").get_package_dir("fastopt"))
        for path in self.made():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(self.folder / path), str(source / path))

    def get_outputs(self):
        extensions = super().get_outputs()
        return [*extensions, *(str(Path(extensions[0]).parents[2] / path) for path in self.made())]


setup(
    cffi_modules=["fastopt/backends/native/build.py:ffi"],
    cmdclass={"build_ext": BuildLibrary},
    options={
        "bdist_wheel": {"py_limited_api": "cp310"},
        # By path: for the default's import hook, a folder that holds only what Numba cached beside an installation
        # since removed would be the package.
        "editable_wheel": {"mode": "compat"},
    },
)

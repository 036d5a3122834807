"""Writes the C made from the rule table, and the files by which other builds find the library. For the build only."""

import importlib
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

CSRC = Path(__file__).resolve().parent


def load(name):
    """Import a module of the package to be built under the name ``_fastopt``, without the package's ``__init__``."""
    if "_fastopt" not in sys.modules:
        package = sys.modules["_fastopt"] = ModuleType("_fastopt")
        package.__path__ = [str(CSRC.parent / "fastopt")]
    return importlib.import_module(f"_fastopt.{name}")


def load_rules():
    """Import the rule table."""
    return load("rules")


# ---- text ----


def macro(name, *lines):
    """Return a macro of several lines."""
    return " \\\n    ".join([f"#define {name}", *lines])


def struct(name, fields, real, more=""):
    """Return the declaration of a structure of numbers, and of `more` after them."""
    return f"typedef struct {{ {real} {', '.join(fields) or 'unused'};{more} }} {name};"


def number(value):
    """Return the shortest literal of a float64."""
    return "NAN" if math.isnan(value) else "INFINITY" if math.isinf(value) else repr(float(value))


def quoted(names):
    """Return names as strings, and NULL behind them."""
    return ", ".join([*(f'"{name}"' for name in names), "NULL"])


# ---- hyper-parameters ----


def c_hypers(module, rule):
    """Return a rule's row of hyper-parameters as C has it: numbers only, one of AggMo's betas, NaN for no default."""
    meaning = "how many betas there are, a whole number"
    hypers = {"copies": module.Hyper(math.nan, meaning, low=1, high=module.MAX_COPIES)}
    for name, hyper in rule.hyper.items():
        number = not hyper.vector and isinstance(hyper.default, (int, float))
        hypers[name] = replace(hyper, default=float(hyper.default) if number else math.nan, vector=False)
    return {name: hypers[name] for name in rule.row}


def c_domain(hyper):
    """Return a hyper-parameter's domain as a closed interval."""
    if hyper.flag:
        return 0.0, 1.0
    high = math.nextafter(hyper.high, hyper.low) if hyper.below_high else hyper.high
    try:
        hyper.check("", high)
    except ValueError:
        high = sys.float_info.max
    return max(hyper.low, -sys.float_info.max), high


# ---- rule_table.h ----

#: Rules that tables of embeddings have: these have loops of their own over rows, and so has a rule with states by row.
#: For all rules they would take a sixth of the time that the library takes to compile.
ROW_LOOPS = ("sgd", "adagrad", "adam")


def structures(module, kernels):
    """Yield the structures that csrc/rules.h uses: of coefficients and states by compute type, of hyper-parameters."""
    for real, suffix in (("float", "f32"), ("double", "f64")):
        yield struct(f"prologue_coefs_{suffix}", module.PROLOGUE, real)
        for name, rule in kernels.items():
            yield struct(f"{name}_coefs_{suffix}", rule.coefficients, real)
            inputs = f" const {real} {', '.join(rule.inputs)};" if rule.inputs else ""
            yield struct(f"{name}_states_{suffix}", rule.elements, real, inputs)
    for name, rule in kernels.items():
        if rule.by_tensor:
            yield struct(f"{name}_sums", rule.sums, "double")
            yield struct(f"{name}_singles", rule.singles, "double")
    for fold, rule in {fold_of(rule): rule for rule in kernels.values()}.items():
        yield struct(f"{fold}_hyper", rule.row, "double")


def fold_of(rule):
    """Return the name of a rule's fold in C."""
    return rule.fold.__name__.removeprefix("fold_")


def places(module):
    """Return the enumeration of where things are among a tensor's arrays, and in its row of coefficients."""
    return f"enum {{ GRADIENT = {module.GRADIENT}, FIRST_STATE = {module.FIRST_STATE}, OWN = {module.OWN} }};"


def instance(module, name, rule, copies):
    """Yield the macros of a rule's loops, for so many copies of its states: pointers, prefetches, the update."""
    states = rule.elements
    names = [f"{s}_{k}" for k in range(copies) for s in states]
    pointers = list(zip((*names, *(f"{s}_0" for s in rule.inputs)), itertools.count(module.FIRST_STATE)))
    own, inputs = pointers[: len(names)], pointers[len(names) :]
    updates = []
    for k in range(copies):
        load = ", ".join(f".{s} = {s}_{k}[i]" for s in rule.beside) or "0"
        updates.append(f"{{ FN({name}_states) s = {{{load}}};")
        updates.append(f"  FN({name})(&p, g, &s, &coefs[{k}]);")
        updates += [f"  {s}_{k}[i] = s.{s};" for s in states]
        updates[-1] += " }"
    yield f"enum {{ ARRAYS_{name}_{copies} = {module.FIRST_STATE + len(pointers)} }};"
    yield f"enum {{ INPUTS_{name}_{copies} = {len(inputs)} }};"
    yield macro(f"STATES_{name}_{copies}(X)", *(f"X({j})" for _, j in own))
    yield macro(f"READ_{name}_{copies}(X)", *(f"X({j})" for _, j in inputs))
    # A stage may measure without some state: that is no mistake to warn of.
    declared = [f"real *restrict {p} = arrays[{j}]; (void){p};" for p, j in own]
    declared += [f"const real *restrict {p} = arrays[{j}]; (void){p};" for p, j in inputs]
    yield macro(f"POINTERS_{name}_{copies}", *declared)
    yield macro(f"PREFETCH_{name}_{copies}(i)", *(f"PREFETCH({p} + (i));" for p, _ in pointers))
    yield macro(f"UPDATE_{name}_{copies}", *updates)


def block_kind(module, rule):
    """Return what blocks depend on: how many states there are, and which are never negative, a bit for each array."""
    arrays = enumerate(rule.elements, module.FIRST_STATE)
    return len(rule.elements), sum(1 << j for j, state in arrays if state in rule.positive)


def measure(name, rule):
    """Yield the macros of the reading pass of a rule with a stage over tensors."""
    load = ", ".join(f".{s} = {s}_0[at]" for s in rule.measured) or "0"
    yield macro(f"PREFETCH_MEASURED_{name}(i)", *(f"PREFETCH_NEAR({s}_0 + (i));" for s in rule.measured))
    yield f"enum {{ SUMS_{name} = {len(rule.sums)} }};"
    yield macro(f"MEASURE_{name}(at)", f"FN({name}_states) s = {{{load}}};", f"FN(measure_{name})(p, g, &s, coefs, f);")


def row_rule(name, states):
    """Yield the macros by which the fold of a rule with states by row loads and stores them."""
    yield macro(f"LOAD_{name}", f"{{{', '.join(f's[{k}]' for k in range(len(states)))}}}")
    yield f"enum {{ ROW_STATES_{name} = {len(states)} }};"
    yield macro(f"STORE_{name}", *(f"s[{k}] = own.{state};" for k, state in enumerate(states)))


def table_entry(module, rule):
    """Yield the lines of a rule's entry in the table of csrc/rules.c."""
    counts = len(rule.elements), len(rule.row), len(module.PROLOGUE + rule.coefficients), len(rule.scalars)
    copies = module.MAX_COPIES if rule.vector else 1
    over = int(rule.by_row is not None), int(rule.by_tensor is not None) + int(rule.over_all)
    numbers = [*counts, copies, *over, len(rule.singles), len(rule.inputs)]
    names = ", ".join(f"(const char *const[]){{{quoted(own)}}}" for own in (rule.state_names, rule.inputs))
    yield f'{{{{"{rule.name}", {", ".join(map(str, numbers))}, {names},'
    yield "  (const fastopt_hyper[]){"
    for name, hyper in c_hypers(module, rule).items():
        values = ", ".join(map(number, (hyper.default, *c_domain(hyper))))
        yield f'    {{"{name}", {values}, {int(hyper.flag or name == "copies")}, {int(hyper.optional)}}},'
    scalars = ", ".join(map(number, rule.scalars.values())) or "0"
    decay = 0 if rule.decoupled is None else 2 if rule.decays_inside else 1
    stage = f"{len(rule.sums)}, {f'staged_{rule.kernel}' if rule.by_tensor else 'NULL'}, "
    stage += f"{len(rule.folds)}, {len(rule.read_at)}, {{{', '.join(map(str, rule.read_at)) or '0'}}}"
    yield f"  }}}}, number_{rule.kernel}, folded_{rule.kernel}, {stage}, {decay}, {{{scalars}}}}},"


def rule_table(module, levels):
    """Return the text of rule_table.h: the rule table for C, and the instruction sets of the library."""
    rules, kernels = module.RULES.values(), {}
    for rule in rules:
        kernels.setdefault(rule.kernel, rule)
    lines = ["/* Written by csrc/generate.py from fastopt/rules. */", "#ifndef FASTOPT_RULE_TABLE_H"]
    lines += ["#define FASTOPT_RULE_TABLE_H", places(module), *structures(module, kernels)]
    instances, row_rules, stages, kinds = [], [], [], set()
    for name, rule in kernels.items():
        if rule.by_row:
            row_rules.append(f"X({name}, {rule.update.__name__})")
            lines += ["", *row_rule(name, rule.state_names)]
            continue
        if rule.by_tensor:
            stages.append(f"X({name})")
            lines += ["", *measure(name, rule)]
        states, positive = block_kind(module, rule)
        kinds.add((states, positive))
        lines += ["", f"enum {{ POSITIVE_{name} = {positive} }};"]
        lines.append(f"#define END_BLOCKS_{name} end_blocks_{states}_{positive}")
        for copies in range(1, module.MAX_COPIES + 1 if rule.vector else 2):
            instances.append(f"X({name}, {copies})")
            lines += ["", *instance(module, name, rule, copies)]
    lines += [
        "",
        macro("FASTOPT_KERNELS(X)", *(f"X({name}, {fold_of(rule)})" for name, rule in kernels.items())),
        macro("FASTOPT_INSTANCES(X)", *instances),
        macro("FASTOPT_BLOCK_KINDS(X)", *(f"X({states}, {positive})" for states, positive in sorted(kinds))),
        macro("FASTOPT_ROW_RULES(X)", *row_rules),
        macro("FASTOPT_ROW_LOOPS(X)", *(f"X({name})" for name in ROW_LOOPS if name in kernels)),
        macro("FASTOPT_STAGES(X)", *stages),
        macro("FASTOPT_RULES", *(line for rule in rules for line in table_entry(module, rule))),
        macro("FASTOPT_LEVELS(X)", *(f"X({level})" for level in levels)),
        "",
    ]
    own = [(module.MAX_COPIES if rule.vector else 1, rule) for rule in rules]
    space = {
        "MAX_ARRAYS": max(rule.count_arrays(copies) for copies, rule in own),
        "MAX_ROW": max(copies * (module.OWN + len(rule.coefficients)) for copies, rule in own),
        "MAX_SUMS": max(1, *(len(rule.sums) for rule in rules)),  # C has no arrays of none
        "MAX_SINGLES": max(1, *(len(rule.singles) for rule in rules)),
    }
    lines += [f"#define {name} {most}" for name, most in space.items()]
    for name in ("HYPER", "COEFFICIENTS", "SCALARS", "COPIES"):
        most = getattr(module, f"MAX_{name}")
        lines.append(f'_Static_assert(FASTOPT_MAX_{name} == {most}, "as in fastopt/rules/base.py");')
    return "\n".join([*lines, "#endif"]) + "\n"


# ---- fastopt.h ----


def header(module, version):
    """Return the text of fastopt.h: fastopt.in.h with the version and the rules filled in."""
    rows = {rule.name: c_hypers(module, rule) for rule in module.RULES.values()}
    rules = "\n".join(f" * {line}".rstrip() for line in load("documentation").header_text(rows, width=115))
    major, minor = version.split(".")[:2]
    defines = f'#define FASTOPT_VERSION "{version}"\n'
    defines += f"#define FASTOPT_VERSION_MAJOR {major}\n#define FASTOPT_VERSION_MINOR {minor}"
    text = (CSRC / "fastopt.in.h").read_text().replace("/* <version> */", defines)
    return text.replace(" * <rules>", rules)


# ---- for pkg-config and CMake ----


def package_files(version, series, library):
    """Return the files by which pkg-config and CMake find the library: texts by their paths in the package."""
    texts = {
        "lib/pkgconfig/fastopt.pc": "fastopt.in.pc",
        "lib/cmake/fastopt/fastopt-config.cmake": "fastopt-config.in.cmake",
        "lib/cmake/fastopt/fastopt-config-version.cmake": "fastopt-config-version.in.cmake",
    }
    values = {"<version>": version, "<series>": series.replace(".", "\\\\."), "<library>": library}
    for place, name in texts.items():
        text = (CSRC / name).read_text()
        for mark, value in values.items():
            text = text.replace(mark, value)
        texts[place] = text
    return texts

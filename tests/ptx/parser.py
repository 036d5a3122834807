"""Reads PTX text into statements and declarations; nothing here knows what an instruction does."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

_COMMENT = re.compile(r"//[^\n]*|/\*[\s\S]*?\*/|^[ \t]*\.(?:loc|file)\b[^\n]*$", re.M)
_ENTRY = re.compile(r"\.entry\s+([\w$.%]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
_FUNCTION = re.compile(r"\.func\b\s*(?:\(([^)]*)\))?\s*([\w$.%]+)\s*(?:\(([^)]*)\))?[^{;]*[{;]")
_SECTION = re.compile(r"\.section\s+\S+\s*\{")
_VARIABLE = re.compile(
    r"\.(global|const|shared|local)\s+((?:\.\w+\s+(?:\d+\s+)?)*?)\.(\w+)\s+([\w$%]+)\s*"
    r"(?:\[\s*(\d*)\s*\])?\s*(?:=\s*([^;]*))?;"
)
_PARAMETER = re.compile(
    r"\.param\s+((?:\.\w+\s+(?:\d+\s+)?)*?)\.(\w+)(?:\s+\.\w+(?:\s+\d+)?)*\s+([\w$%]+)\s*(?:\[(\d+)\])?\s*$"
)
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_STATEMENT = re.compile(r"(?:@(!?)\s*([%\w$.]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\([^)]*\)|\[[^\]]*\]|[^,\s][^,]*)")


def width(kind: str) -> int:
    """The bytes of a fundamental type, such as "f32"."""
    return int(re.search(r"\d+", kind).group()) // 8


@dataclass
class Variable:
    """A variable or a parameter: `count` elements of a type in a state space."""

    name: str
    space: str
    kind: str
    count: int | None  # None: the size is that of the launch's dynamic shared memory
    alignment: int
    initial: str | None = None

    @property
    def nbytes(self) -> int:
        return (self.count or 0) * width(self.kind)


@dataclass
class Statement:
    """One instruction: `@guard opcode operands`."""

    opcode: str
    operands: list[str]
    guard: str | None
    negated: bool
    text: str


@dataclass
class Body:
    """A kernel as it is written."""

    name: str
    parameters: list[Variable]
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)  # of each .branchtargets
    registers: dict[str, str] = field(default_factory=lambda: {"%CC": "pred"})  # the type of each; CC: the carry
    variables: list[Variable] = field(default_factory=list)


def _alignment(directives: str, kind: str) -> int:
    found = re.search(r"\.align\s+(\d+)", directives)
    return int(found.group(1)) if found else width(kind)


def _variables(text: str) -> Iterator[Variable]:
    for space, directives, kind, name, count, initial in _VARIABLE.findall(text):
        brackets = re.search(re.escape(name) + r"\s*\[\s*\]", text)
        elements = None if brackets and space == "shared" else int(count or 1)
        yield Variable(name, space, kind, elements, _alignment(directives, kind), initial.strip() or None)


def _parameters(text: str) -> list[Variable]:
    found = []
    for part in filter(str.strip, text.split(",")):
        match = _PARAMETER.match(part.strip())
        if match is None:
            raise NotImplementedError(f"the parameter {part.strip()!r}")
        directives, kind, name, count = match.groups()
        found.append(Variable(name, "param", kind, int(count or 1), _alignment(directives, kind)))
    return found


def _closing(text: str, begin: int) -> int:
    """The index after the brace that closes the one before `begin`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end()
    raise ValueError("a brace is not closed")


def _pieces(text: str) -> Iterator[str]:
    """The braces, labels (with their colon) and statements of a body."""
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return
        label = _LABEL.match(text, at)
        if text[at] in "{}":
            end = at + 1
        elif label is not None:
            end = label.end()
        else:
            end = text.index(";", at) + 1
        yield text[at:end].rstrip(";").strip()
        at = end


class _Function:
    """A `.func`: it is read again wherever it is called."""

    def __init__(self, results: str | None, parameters: str | None, text: str):
        self.formals = [variable.name for variable in _parameters(results or "") + _parameters(parameters or "")]
        self.text = text


class _Reader:
    """Reads the text of a kernel, and of the functions that it calls, into one body.

    Names that are declared again, in another scope or by a function, get new ones.
    """

    def __init__(self, body: Body, functions: dict[str, _Function]):
        self.body, self.functions = body, functions
        self.taken = {parameter.name for parameter in body.parameters}

    def unique(self, name: str) -> str:
        while name in self.taken:
            name += "'"
        self.taken.add(name)
        return name

    def read(self, text: str, names: dict[str, str], end: str | None = None, depth: int = 0) -> None:
        """Append statements; `ret` goes to the label `end` if there is one."""
        pieces = list(_pieces(text))
        names = names | {piece[:-1].strip(): self.unique(piece[:-1].strip()) for piece in pieces if piece[-1:] == ":"}
        scopes = [names]
        for piece in pieces:
            if piece == "{":
                scopes.append(dict(scopes[-1]))
            elif piece == "}":
                scopes.pop()
            elif piece.endswith(":"):
                label = names[piece[:-1].strip()]
                self.body.labels[label] = len(self.body.statements)
            elif piece.startswith(".branchtargets"):
                targets = re.split(r"\s*,\s*", piece.split(None, 1)[1].strip())
                self.body.targets[label] = [names[target] for target in targets]
            elif piece.startswith("."):
                self.declare(piece, scopes[-1])
            elif piece:
                self.append(piece, scopes[-1], end, depth)

    def declare(self, piece: str, names: dict[str, str]) -> None:
        """Enter registers (`%r<5>` are five) or variables into a scope."""
        if piece.startswith(".reg"):
            _, kind, registers = piece.split(None, 2)
            for name in re.split(r"\s*,\s*", registers.strip()):
                many = re.match(r"(.+)<(\d+)>$", name)
                for register in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
                    names[register] = self.unique(register)
                    self.body.registers[names[register]] = kind[1:]
            return
        # Parameters that are passed to a function are memory of each thread.
        found = _parameters(piece) if piece.startswith(".param") else _variables(piece + ";")
        for variable in found:
            space = "local" if variable.space == "param" else variable.space
            names[variable.name] = self.unique(variable.name)
            self.body.variables.append(replace(variable, name=names[variable.name], space=space))

    def append(self, piece: str, names: dict[str, str], end: str | None, depth: int) -> None:
        def renamed(operand: str) -> str:
            return re.sub(r"[%\w$]+", lambda match: names.get(match.group(), match.group()), operand)

        negated, guard, opcode, operands = _STATEMENT.match(piece).groups()
        operands = [renamed(operand.strip()) for operand in _OPERAND.findall(operands)]
        text = " ".join(piece.split())
        if opcode.split(".")[0] == "call" and not guard:
            self.call(operands, text, depth)
            return
        if opcode in ("ret", "ret.uni") and end is not None:
            opcode, operands = "bra", [end]
        guard = renamed(guard) if guard else None
        self.body.statements.append(Statement(opcode, operands, guard, negated == "!", text))

    def call(self, operands: list[str], text: str, depth: int) -> None:
        """Read a function in the place of its call."""
        passed = [name.strip() for o in operands if o.startswith("(") for name in o[1:-1].split(",") if name.strip()]
        called = [operand for operand in operands if not operand.startswith("(")]
        function = self.functions.get(called[0])
        if function is None or len(called) > 1 or depth == 16:
            raise NotImplementedError(f"{self.body.name}: {text!r} calls no function of this module, or is recursive")
        end = self.unique("$end")
        self.read(function.text, dict(zip(function.formals, passed, strict=True)), end, depth + 1)
        self.body.labels[end] = len(self.body.statements)


def read(text: str) -> tuple[list[Body], list[Variable]]:
    """The kernels and the variables of a module."""
    text = _COMMENT.sub("", text)
    kernels, functions = [], {}
    outside, at = [], 0
    while True:
        starts = [m for m in (pattern.search(text, at) for pattern in (_ENTRY, _FUNCTION, _SECTION)) if m]
        if not starts:
            break
        match = min(starts, key=lambda m: m.start())
        outside.append(text[at : match.start()])
        at = match.end()
        if text[at - 1] == ";":
            continue
        at = _closing(text, match.end())
        inside = text[match.end() : at - 1]
        if match.re is _ENTRY:
            kernels.append((Body(match[1], _parameters(match[2] or "")), inside))
        elif match.re is _FUNCTION:
            functions[match[2]] = _Function(match[1], match[3], inside)
    outside.append(text[at:])
    for body, inside in kernels:
        _Reader(body, functions).read(inside, {})
    return [body for body, _ in kernels], list(_variables("".join(outside)))

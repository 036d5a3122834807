"""Executes the kernels of a PTX module on the CPU, all threads of a launch at once as NumPy arrays.

Threads that are at the smallest program counter run together, until they diverge or meet others. An instruction is
decoded once, into a function of a `Frame`: the registers of the threads that run. All state spaces are one address
space: a variable's name is read like a register that holds its address, and `cvta` changes nothing.

Where PTX leaves something open: what was never written is 0xA5 bytes, a shuffle from an absent thread gives them too,
`.approx` functions are rounded to nearest, NaNs of float64 keep the processor's payload. Races are looked for in global
and local memory, not in shared memory; threads of different warps never interleave within a straight piece of code.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from . import parser
from .memory import Elsewhere, LaunchError, Memory
from .numeric import BOOL, TYPES, U32, U64, UNSIGNED, bits, extended, literal
from .operations import OPERATIONS, WAIT

WARP = 32
UNDEFINED = 0xA5  # the bytes of what no instruction has written
STEP_LIMIT = 20_000_000  # instructions of one launch, beyond which it is taken to loop forever

Reader = Callable[["Frame"], np.ndarray]
# A step returns where its threads go on: None is the next place, pairs are of a place and those who go there.
Step = Callable[["Frame"], int | list[tuple[int, np.ndarray]] | None]


class Frame(dict):
    """The registers of some threads, by name: arrays, never changed in place, of an element for each thread or for all.

    Registers are fetched from the parent when they are first read, and go back there by `join`.
    """

    def __init__(self, launch: "Launch", lanes: np.ndarray, parent: "Frame | None" = None, places=None):
        self.launch, self.lanes, self.parent, self.places = launch, lanes, parent, places
        self.size = lanes.size
        self.fetched: dict[str, np.ndarray] = {}

    def part(self, places: np.ndarray) -> "Frame":
        """The frame of some of these threads."""
        return Frame(self.launch, self.lanes[places], self, places)

    def __missing__(self, name: str) -> np.ndarray:
        if self.parent is None:
            value = self.launch.initial(name)
        else:
            value = self.parent[name]
            value = self.fetched[name] = value if value.size == 1 else value[self.places]
        self[name] = value
        return value

    def join(self, live: frozenset[str] | None = None) -> None:
        """Give the registers that were written to the parent: those that may be read yet, if these are given."""
        for name, value in self.items():
            if value is not self.fetched.get(name) and (live is None or name in live):
                before = self.parent[name]
                if before.dtype is not value.dtype:
                    before, value = bits(before), bits(value)
                after = before.copy() if before.size == self.parent.size else np.repeat(before, self.parent.size)
                after[self.places] = value
                self.parent[name] = after


class Instruction:
    """A statement while it is decoded: its types and modifiers, and functions that read and write its operands."""

    def __init__(self, kernel: "Kernel", place: int, statement: parser.Statement):
        self.kernel, self.place, self.text = kernel, place, statement.text
        self.name, *self.modifiers = statement.opcode.replace("::", "_").split(".")
        self.operands = statement.operands
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.successors = [place + 1]
        self.types = [modifier for modifier in self.modifiers if modifier in TYPES]
        self.guard = self.predicate(("!" if statement.negated else "") + statement.guard) if statement.guard else None

    def has(self, *modifiers: str) -> bool:
        """Return whether a modifier is among those given."""
        return any(modifier in self.modifiers for modifier in modifiers)

    def unsupported(self) -> NotImplementedError:
        return NotImplementedError(f"{self.kernel.name}: the interpreter does not know {self.text!r}")

    @property
    def type(self) -> str:
        return self.types[-1]

    @property
    def dtype(self) -> np.dtype:
        return TYPES[self.types[-1]]

    def width_of(self, operand: str) -> np.dtype | None:
        """The unsigned type of a register's width; None of what is no register."""
        kind = self.kernel.body.registers.get(operand)
        if kind is not None:
            return BOOL if kind == "pred" else UNSIGNED[parser.width(kind)]
        return U32 if operand in SPECIAL else None

    def source(self, index: int, dtype: np.dtype | None = None) -> Reader:
        """A reader of an operand."""
        return self.read(self.operands[index], self.dtype if dtype is None else dtype)

    def read_literally(self, index: int, kind: np.dtype) -> Reader:
        """A reader of an operand's bits, where a constant is one of the instruction's type."""
        operand = self.operands[index]
        if self.width_of(operand) is not None or operand in self.kernel.symbols:
            return self.read(operand, kind)
        constant = self.read(operand, self.dtype)
        return lambda frame: constant(frame).view(kind)

    def predicate(self, operand: str) -> Reader:
        if operand.startswith("!"):
            plain = self.read(operand[1:], BOOL)
            return lambda frame: ~plain(frame)
        return self.read(operand, BOOL)

    def read(self, name: str, dtype: np.dtype) -> Reader:
        """A reader of a register, a constant, or the address of a variable."""
        if dtype is BOOL and name.startswith("!"):
            return self.predicate(name)
        width = self.width_of(name)
        self.reads.add(name)
        if width is None:
            if name in self.kernel.symbols:
                if dtype.itemsize != 8:
                    raise NotImplementedError(f"{self.kernel.name}: an address of 32 bits in {self.text!r}")
                return lambda frame: frame[name].view(dtype)
            try:
                constant = literal(name, dtype)
            except ValueError:
                raise self.unsupported() from None
            return lambda frame: constant
        if dtype is BOOL or width.itemsize == dtype.itemsize:

            def read(frame: Frame) -> np.ndarray:
                value = frame[name]
                return value if value.dtype is dtype else bits(value).view(dtype)

            return read
        if width.itemsize < dtype.itemsize or width is BOOL:
            raise self.unsupported()
        narrow = UNSIGNED[dtype.itemsize]
        return lambda frame: bits(frame[name]).astype(narrow).view(dtype)

    def target(self, operand: str | int = 0, dtype: np.dtype | None = None) -> Callable[[Frame, np.ndarray], None]:
        """A writer of an operand: values of `dtype`, extended where the register is wider."""
        name = self.operands[operand] if isinstance(operand, int) else operand
        dtype = self.dtype if dtype is None else dtype
        if name == "_":
            return lambda frame, value: None
        width = self.width_of(name)
        if width is None or width.itemsize < dtype.itemsize:
            raise self.unsupported()
        self.writes.add(name)

        def write(frame: Frame, value: np.ndarray) -> None:
            frame[name] = value

        if width.itemsize == dtype.itemsize:
            return write
        return lambda frame, value: write(frame, extended(value, width))

    def members(self, index: int) -> list[str]:
        """The registers of a vector operand, or the only one of a scalar."""
        operand = self.operands[index]
        return [name.strip() for name in operand.strip("{}").split(",")] if operand.startswith("{") else [operand]

    def address(self, index: int) -> Reader:
        """A reader of the addresses that `[base+offset]` gives."""
        base, offset = self.address_parts(index)
        wide = self.width_of(base)
        if wide is U32:
            narrow = self.read(base, U32)
            return lambda frame: narrow(frame).astype(U64) + offset
        read = self.read(base, U64)
        if not offset[0]:
            return read
        return lambda frame: read(frame) + offset

    def address_parts(self, index: int) -> tuple[str, np.ndarray]:
        """The base and the offset of an operand in brackets."""
        base, _, offset = self.operands[index].strip("[] ").partition("+")
        return base.strip(), np.array([int(offset or "0", 0) % 2**64], U64)

    def map(self, function: Callable, *sources: Reader, dtype: np.dtype | None = None) -> Step:
        """The step that writes a function of the sources; by default, of all operands but the first."""
        write = self.target(0, dtype)
        if not sources:
            sources = tuple(self.source(i) for i in range(1, len(self.operands)))
        if len(sources) == 1:
            (a,) = sources
            return lambda frame: write(frame, function(a(frame)))
        if len(sources) == 2:  # written out, since most are so
            a, b = sources
            return lambda frame: write(frame, function(a(frame), b(frame)))
        return lambda frame: write(frame, function(*[source(frame) for source in sources]))

    def decoded(self) -> Step:
        """The step of this instruction."""
        build = OPERATIONS.get(self.name)
        if build is None:
            raise self.unsupported()
        try:
            step = build(self)
        except (KeyError, IndexError) as error:
            raise self.unsupported() from error
        if self.guard is None or self.name in CONTROL:
            return step
        guard = self.guard

        def guarded(frame: Frame) -> None:
            mask = guard(frame)
            count = np.count_nonzero(mask)
            if count == mask.size:
                step(frame)
            elif count:
                part = frame.part(np.flatnonzero(mask))
                step(part)
                part.join()

        return guarded


CONTROL = ("bra", "brx", "ret", "exit", "bar", "barrier")  # they see to their guard themselves

SPECIAL: dict[str, Callable[["Launch"], np.ndarray | int]] = {
    "%tid.x": lambda launch: launch.thread,
    "%ntid.x": lambda launch: launch.block_size,
    "%ctaid.x": lambda launch: launch.block,
    "%nctaid.x": lambda launch: launch.grid,
    "%laneid": lambda launch: launch.thread % WARP,
    "%warpid": lambda launch: launch.thread // WARP,
    "%nwarpid": lambda launch: -(-launch.block_size // WARP),
    **{f"%{name}.{axis}": lambda launch: 0 for name in ("tid", "ctaid") for axis in "yz"},
    **{f"%{name}.{axis}": lambda launch: 1 for name in ("ntid", "nctaid") for axis in "yz"},
    "%lanemask_eq": lambda launch: np.uint64(1) << (launch.thread % WARP).astype(U64),
    "%lanemask_lt": lambda launch: (np.uint64(1) << (launch.thread % WARP).astype(U64)) - np.uint64(1),
    "%lanemask_le": lambda launch: (np.uint64(2) << (launch.thread % WARP).astype(U64)) - np.uint64(1),
    "%lanemask_gt": lambda launch: ~((np.uint64(2) << (launch.thread % WARP).astype(U64)) - np.uint64(1)),
    "%lanemask_ge": lambda launch: ~((np.uint64(1) << (launch.thread % WARP).astype(U64)) - np.uint64(1)),
}


def _aligned(nbytes: int) -> np.ndarray:
    """Zeroed bytes that begin at a multiple of 256."""
    memory = np.zeros(nbytes + 255, np.uint8)
    begin = -memory.ctypes.data % 256
    return memory[begin : begin + nbytes]


def _layout(variables: Sequence[parser.Variable], dynamic: int = 0) -> tuple[dict[str, int], int]:
    """The offset of each variable where they stand one after the other, and their bytes together."""
    offsets, end = {}, 0
    for variable in sorted(variables, key=lambda variable: variable.count is None):
        end += -end % variable.alignment
        offsets[variable.name] = end
        end += dynamic if variable.count is None else variable.nbytes
    return offsets, end


class Launch:
    """One launch of a kernel: its threads, their registers and where each of them is."""

    def __init__(self, kernel: "Kernel", grid: int, block: int, params: Sequence[bytes], memory: Memory, shared: int):
        self.kernel, self.grid, self.block_size, self.memory = kernel, grid, block, memory
        self.threads = grid * block
        lanes = np.arange(self.threads)
        self.thread, self.block = lanes % block, lanes // block
        self.steps = 0
        self.params = dict(zip((p.name for p in kernel.params), params, strict=True))
        for parameter in kernel.params:
            if len(self.params[parameter.name]) != parameter.nbytes:
                raise LaunchError(
                    f"{kernel.name}: the parameter {parameter.name} has {parameter.nbytes} bytes, "
                    f"not {len(self.params[parameter.name])}"
                )
        self.shared = shared
        self.temporary: list[np.ndarray] = []  # memory of this launch alone
        self.spaces: dict[str, tuple[dict[str, int], int, int]] = {}
        self.root = Frame(self, lanes)
        self.alive = np.ones(self.threads, bool)
        self.held: dict[int, np.ndarray] = {}  # threads that wait for others of their warp, by place
        self.resume = np.full(self.threads, -1)  # where threads that wait at a barrier go on
        self.barrier = np.zeros(self.threads, np.int64)

    # ---- what registers hold at first ----

    def initial(self, name: str) -> np.ndarray:
        special = SPECIAL.get(name)
        if special is not None:
            return np.atleast_1d(special(self)).astype(U32)
        kind = self.kernel.body.registers.get(name)
        if kind == "pred":
            return np.ones(1, bool)
        if kind is not None:
            width = parser.width(kind)
            return np.full(width, UNDEFINED, np.uint8).view(UNSIGNED[width])
        return self._addresses(self.kernel.symbols[name])

    def _addresses(self, variable: parser.Variable) -> np.ndarray:
        """The address of a variable for each thread; memory is made for its state space when this is first asked."""
        if variable.name in self.kernel.module.addresses:
            return np.array([self.kernel.module.addresses[variable.name]], U64)
        space = variable.space
        if space not in self.spaces:
            variables = [v for v in self.kernel.symbols.values() if v.space == space]
            offsets, nbytes = _layout(variables, self.shared)
            nbytes += -nbytes % 256
            copies = {"param": 1, "shared": self.grid, "local": self.threads}[space]
            data = _aligned(nbytes * copies)
            if space == "param":
                for name, value in self.params.items():
                    data[offsets[name] : offsets[name] + len(value)] = np.frombuffer(value, np.uint8)
            else:
                data[:] = UNDEFINED
            # Barriers order the accesses to shared memory; local memory is each thread's own, and sharing it an error.
            self.allot(data, f"{space} memory", writable=space != "param", checked=space == "local")
            self.spaces[space] = offsets, nbytes, data.ctypes.data
        offsets, nbytes, address = self.spaces[space]
        owner = {"param": 0, "shared": self.block, "local": self.root.lanes}[space]
        return np.atleast_1d(address + offsets[variable.name] + owner * nbytes).astype(U64)

    def allot(self, data: np.ndarray, name: str, writable: bool, checked: bool = False) -> None:
        self.temporary.append(data)
        self.memory.add(data.ctypes.data, data.nbytes, name, writable, checked)

    def fail(self, what: str) -> None:
        raise LaunchError(f"{self.kernel.name}: {what}")

    # ---- running ----

    def run(self) -> None:
        end = len(self.kernel.code)
        self.groups = {0: self.root.lanes}
        missed: Elsewhere | None = None
        while self.groups or (not self.held and self.release()):
            place = min(self.groups)
            lanes = self.groups.pop(place)
            if place == end:
                self.alive[lanes] = False
                self.groups, self.held = {**self.groups, **self.held}, {}  # who has ended is not waited for
                continue
            frame = self.root if lanes.size == self.threads else self.root.part(lanes)
            waits, following = self.stretch(frame, place, min(self.groups, default=end))
            goes_on = [(following, slice(None))] if isinstance(following, int) else following
            if frame is not self.root:
                live = self.kernel.live
                frame.join(frozenset().union(*(live(self.resumed if to == WAIT else to) for to, _ in goes_on)))
            if waits and following not in self.groups:  # until others arrive
                missed, self.held[following] = waits, lanes
                continue
            for to, places in goes_on:
                self.put(to, lanes[places])
        if missed and self.held:
            raise missed

    def stretch(
        self, frame: Frame, place: int, stop: int
    ) -> tuple[Elsewhere | None, int | list[tuple[int, np.ndarray]]]:
        """Run threads together until they diverge, wait, end or reach others; returns where they (each) go on.

        First comes what is missing where they must wait for others of their warp.
        """
        code, steps = self.kernel.code, 0
        try:
            while place < stop and place not in self.held:
                following = code[place](frame)
                steps += 1
                if following is None:
                    place += 1
                elif isinstance(following, int) and following != WAIT:
                    if following <= place and self.steps + steps > STEP_LIMIT:
                        raise LaunchError(f"{self.kernel.name}: it seems to loop forever")
                    place = following
                else:
                    return None, following
        except LaunchError as error:
            told = type(error)(f"{error}; in {self.kernel.body.statements[place].text!r}")
            if isinstance(told, Elsewhere):
                return told, place
            raise told from None
        finally:
            self.steps += steps
        return None, place

    def put(self, place: int, lanes: np.ndarray) -> None:
        if place == WAIT:
            return  # the barrier has them
        for others in (self.groups.pop(place, None), self.held.pop(place, None)):
            if others is not None:
                lanes = np.sort(np.concatenate([others, lanes]), kind="stable")  # merges sorted parts
        self.groups[place] = lanes

    def wait(self, frame: Frame, places: np.ndarray | slice, barrier: np.ndarray, resume: int) -> None:
        """Threads arrive at a barrier."""
        lanes = frame.lanes[places]
        self.resume[lanes], self.barrier[lanes] = resume, barrier
        self.resumed = resume

    def release(self) -> bool:
        """Let the blocks go on of which all threads that have not ended wait at one barrier; whether there are any."""
        waiting = self.resume >= 0
        if not waiting.any():
            return False
        alive = np.bincount(self.block[self.alive], minlength=self.grid)
        for barrier in np.unique(self.barrier[waiting]):
            here = waiting & (self.barrier == barrier)
            complete = np.bincount(self.block[here], minlength=self.grid) == alive
            lanes = np.flatnonzero(here & complete[self.block])
            for place in np.unique(self.resume[lanes]):
                self.put(int(place), lanes[self.resume[lanes] == place])
            self.resume[lanes] = -1
        if not self.groups:
            raise LaunchError(f"{self.kernel.name}: deadlock: threads of a block wait at different barriers")
        return True


class Kernel:
    """One `.entry`: `params` are its parameters with their types and sizes."""

    def __init__(self, module: "Module", body: parser.Body):
        self.module, self.body, self.name, self.params = module, body, body.name, body.parameters
        self.parameter_names = {parameter.name for parameter in body.parameters}
        self.symbols = {v.name: v for v in (*module.variables, *body.parameters, *body.variables)}

    @functools.cached_property
    def code(self) -> list[Step]:
        """A step for each statement, decoded when the kernel is first launched."""
        instructions = [Instruction(self, i, statement) for i, statement in enumerate(self.body.statements)]
        steps = [instruction.decoded() for instruction in instructions]
        self._live = self._liveness(instructions)
        return steps

    def _liveness(self, instructions: list[Instruction]) -> list[int]:
        """For each place the registers that are read there or later before they are written, as bits of an integer."""
        self._bits = {name: 1 << i for i, name in enumerate(self.body.registers)}
        masks = [
            [sum(self._bits[name] for name in names if name in self._bits) for names in (i.reads, i.writes)]
            for i in instructions
        ]
        live, changed = [0] * (len(instructions) + 1), True
        while changed:
            changed = False
            for i in reversed(instructions):
                reads, writes = masks[i.place]
                after = 0
                for successor in i.successors:
                    after |= live[successor]
                before = reads | (after if i.guard else after & ~writes)
                changed |= before != live[i.place]
                live[i.place] = before
        return live

    @functools.cache  # noqa: B019 (kernels live as long as the tests that share them)
    def live(self, place: int) -> frozenset[str]:
        """The registers that threads at a place may still read."""
        return frozenset(name for name, bit in self._bits.items() if bit & self._live[place])

    def launch(
        self,
        grid: int,
        block: int,
        params: Sequence[bytes],
        memory: Memory,
        *,
        hogwild: tuple[str, ...] = (),
        shared: int = 0,
    ) -> int:
        """Run on grid·block threads; returns the instructions that groups of threads executed.

        Races are tolerated in the regions named by `hogwild`; `shared` is the size of dynamic shared memory.
        """
        if grid < 1 or not 1 <= block <= 1024:
            raise LaunchError(f"{self.name}: a grid of {grid} blocks of {block} threads")
        _ = self.code  # decoded first, so that nothing runs where something is unsupported
        memory.begin(self.name, block, hogwild)
        launch = Launch(self, grid, block, params, memory, shared)
        try:
            for variable, data in self.module.memory.items():
                launch.allot(data, variable, self.symbols[variable].space == "global", checked=True)
            with np.errstate(all="ignore"):
                launch.run()
        finally:
            for data in launch.temporary:
                if data.nbytes:
                    memory.remove(data.ctypes.data)
        return launch.steps


class Module:
    """The kernels and the variables of a PTX text. Global variables keep their values between launches."""

    def __init__(self, text: str):
        bodies, self.variables = parser.read(text)
        self.memory = {v.name: _aligned(v.nbytes) for v in self.variables if v.space in ("global", "const")}
        self.addresses = {name: data.ctypes.data for name, data in self.memory.items()}
        for variable in self.variables:
            if variable.initial is not None:
                self._fill(variable)
        self.kernels = {body.name: Kernel(self, body) for body in bodies}

    def _fill(self, variable: parser.Variable) -> None:
        dtype = TYPES[variable.kind]
        places = self.memory[variable.name].view(dtype)
        words = [word for word in variable.initial.replace("{", ",").replace("}", ",").split(",") if word.strip()]
        for i, word in enumerate(words):
            name = word.strip().removeprefix("generic(").rstrip(")").strip()
            places[i] = self.addresses[name] if name in self.addresses else literal(name, dtype)[0]

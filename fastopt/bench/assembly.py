"""Internal. CUDA kernels as machine code, without a GPU: registers, spills, and the instructions of the main loop."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import install_command
from .section import Skip

#: Bytes of a store, by the modifiers of its instruction; 4 without any of them.
_STORED = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_LINE = re.compile(r"^\.(?P<label>L\w+):|/\*[0-9a-f]{4,}\*/\s+(?P<code>[^;]+);")


@dataclass(frozen=True)
class Assembled:
    """A kernel for one compute capability.

    Attributes
    ----------
    registers : int
        Registers of a thread.
    stack, spills : int
        Bytes of a thread: its frame in memory, and what it stores and loads there for want of registers.
    code : bytes
        The cubin.
    """

    registers: int
    stack: int
    spills: int
    code: bytes


def assemble(ptx: str, capability: tuple[int, int]) -> Assembled:
    """Assemble PTX, as the driver would.

    Raises
    ------
    Skip
        cuda-core is not installed.
    """
    try:
        from cuda import core
    except ImportError:
        raise Skip(f"needs cuda-core: {install_command('cuda')}") from None
    options = core.LinkerOptions(arch="sm_{}{}".format(*capability), ptxas_options=["-v"])
    linker = core.Linker(core.ObjectCode.from_ptx(ptx.encode()), options=options)
    code = linker.link("cubin").code
    log = linker.get_info_log()
    sizes = re.search(r"(\d+) bytes stack.*?(\d+) bytes.*?(\d+) bytes", log)
    registers = re.search(r"Used (\d+) registers", log)
    assert sizes and registers, log
    stack, stores, loads = map(int, sizes.groups())
    return Assembled(int(registers[1]), stack, stores + loads, code)


@cache
def find_disassembler() -> str | None:
    """Return the path of nvdisasm: a wheel's, a toolkit's, or the one on ``PATH``."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return shutil.which("nvdisasm")
    return find_nvidia_binary_utility("nvdisasm") or shutil.which("nvdisasm")


def disassemble(code: bytes, kernel: str) -> list[str]:
    """Return a kernel's instructions and labels, a string each; labels begin with a dot.

    Raises
    ------
    Skip
        nvdisasm is not installed.
    """
    tool = find_disassembler()
    if tool is None:
        raise Skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(code)
        text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    section = re.search(rf"^\.text\.{re.escape(kernel)}:\n(.*?)(?=^\s*\.section|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no {kernel} in what nvdisasm wrote"
    found = (_LINE.search(line) for line in section[1].splitlines())
    return [f".{match['label']}" if match["label"] else match["code"].strip() for match in found if match]


def count_in_loop(lines: list[str]) -> int:
    """Count the instructions that a warp executes in one turn of the loop that stores most.

    It is the shortest way around on which the warp stays together and calls nothing: what is called divides and takes
    roots where the fast instructions cannot, and what is longer is for numbers that are not finite and the like.

    Parameters
    ----------
    lines : list of str
        What `disassemble` returns.
    """
    places: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if line.startswith("."):
            places[line] = len(code)
        else:
            code.append(line)
    after = [_following(place, line, places) for place, line in enumerate(code)]
    reached, open_ends = {0}, [0]
    while open_ends:
        new = set(after[open_ends.pop()]) - reached
        reached |= new
        open_ends += new
    loops = [(begin, end) for end in reached for begin in after[end] if begin <= end]
    begin, end = max(loops, key=lambda loop: (_stored(code[loop[0] : loop[1]]), loop[0] - loop[1]))
    shortest = {begin: 1}
    for place in range(begin, end):
        for following in after[place] if place in shortest else ():
            if following > place:
                shortest[following] = min(shortest[place] + 1, shortest.get(following, len(code)))
    return shortest[end]


def _following(place: int, line: str, places: Mapping[str, int]) -> list[int]:
    """List the places of instructions that may come next, where the warp stays together and calls nothing."""
    guarded = line.startswith("@")
    operation = line.split()[guarded].split(".")
    if operation[0] in ("CALL", "EXIT", "RET"):
        return [place + 1] if guarded else []
    target = re.search(r"`\((\.L\w+)\)", line)
    if operation[0] != "BRA" or "DIV" in operation or target is None:
        return [place + 1]
    always = not guarded and re.match(r"BRA[.\w]* `", line)
    return [places[target[1]]] if always else [place + 1, places[target[1]]]


def _stored(code: list[str]) -> int:
    """Sum up the bytes that a thread stores in global memory."""
    stores = (line.split()[line.startswith("@")].split(".") for line in code if re.search(r"\bSTG\b", line))
    return sum(next((size for name, size in _STORED.items() if name in parts), 4) for parts in stores)

"""Compiles the kernels as they are launched, without a GPU, and reads what the compiler made.

Run as a script (in a process of its own, without TRITON_INTERPRET): python sass.py TARGET prints
one JSON object {case: figures}. The launchers run as they are; only Triton's driver is replaced by
one that names a target, and the launch itself stops after compilation.
"""

import heapq
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
NVIDIA_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")
AMD_LINE = re.compile(r"^\s+([a-z][a-z0-9_]+)(.*)$")


def distance(code, position, start: int, goal: int | None) -> int | None:
    """Instructions on the shortest way from start to goal (None: to the end); None: no way."""
    best, heap = {start: 1}, [(1, start)]
    while heap:
        cost, i = heapq.heappop(heap)
        _, guard, name, operands = code[i]
        if i == goal or (goal is None and name == "EXIT" and not guard):
            return cost
        always = not guard and "," not in operands  # BRA P0, target is conditional as well
        follow = [] if name.startswith(("BRA", "RET", "EXIT")) and always else [i + 1]
        if name.startswith("BRA"):
            follow.append(position[int(operands.split()[-1].strip("`()"), 16)])
        for j in follow:
            if cost + 1 < best.get(j, 1 << 30):
                best[j] = cost + 1
                heapq.heappush(heap, (cost + 1, j))
    return None


def shortest_path(text: str) -> int:
    """Instructions from the entry to the end: slow paths do not count, the longest loop once."""
    code = NVIDIA_LINE.findall(text)
    position = {int(address, 16): i for i, (address, *_) in enumerate(code)}
    ways = []
    for i, (_, _, name, operands) in enumerate(code):
        if name.startswith("BRA"):
            top = position[int(operands.split()[-1].strip("`()"), 16)]
            # a loop if its end can be reached from its top; else a slow path that comes back
            if top < i and distance(code, position, top, i):
                rest = min(
                    (d for j in (i + 1, top) if (d := distance(code, position, j, None))),
                    default=None,
                )
                reach = distance(code, position, 0, i)
                if reach and rest:
                    ways.append((i - top, reach + rest))
    if ways:
        return max(ways)[1]
    whole = distance(code, position, 0, None)
    if whole is None:
        raise RuntimeError("no way to the end was found")
    return whole


def nvidia_figures(kernel, binary_folder: Path) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = [str(binary_folder / "cuobjdump"), file.name]
        text = subprocess.run([*tool, "-sass"], capture_output=True, text=True, check=True).stdout
        use = subprocess.run(
            [*tool, "-res-usage"], capture_output=True, text=True, check=True
        ).stdout
    names = [name for _, _, name, _ in NVIDIA_LINE.findall(text)]
    registers, stack, shared, local = (
        int(re.search(rf"{word}:(\d+)", use).group(1))
        for word in ("REG", "STACK", "SHARED", "LOCAL")
    )
    return {
        "instructions": shortest_path(text),
        "registers": registers,
        "local": stack + local + sum(n.startswith(("LDL", "STL")) for n in names),
        "shared": shared + sum(n.startswith(("LDS", "STS")) for n in names),
        "wide": sorted({n.split(".")[-1] for n in names if n.startswith(("LDG", "STG"))}),
        "loads": [n for n in names if n.startswith("LDG")],
        "stores": [n for n in names if n.startswith("STG")],
    }


def amd_figures(kernel) -> dict:
    text = kernel.asm["amdgcn"]
    body = text[: text.index("s_endpgm")]
    names = [m.group(1) for m in map(AMD_LINE.match, body.splitlines()) if m]
    number = lambda word: int(re.search(rf"\.{word}:\s+(\d+)", text).group(1))
    return {
        # the scalar unit issues its own beside them
        "instructions": sum(n.startswith(("v_", "global_", "buffer_")) for n in names),
        "registers": number("vgpr_count"),
        "local": number("private_segment_fixed_size") + number("vgpr_spill_count"),
        "shared": number("group_segment_fixed_size"),
        "loads": [n for n in names if n.startswith(("global_load", "buffer_load"))],
        "stores": [n for n in names if n.startswith(("global_store", "buffer_store"))],
    }


def compile_only(target):
    """Replaces Triton's driver; returns the list into which every launch puts its kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_target(self):
            return GPUTarget(*target)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    triton.runtime.driver.set_active(Driver())
    kernels, run = [], JITFunction.run

    def stop_before_launch(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels.append(
            (
                kernel,
                options["num_warps"] * target[2],
                options["Q"] * 4 if "Q" in options else options["BLOCK"],
            )
        )

    JITFunction.run = stop_before_launch
    return kernels


def main(name: str) -> None:
    import torch
    import triton
    from cases import cases

    target = TARGETS[name]
    if target[0] == "hip":
        torch.version.hip = "compile only"  # the launchers ask it which instructions there are
    kernels = compile_only(target)
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    report = {}
    for case, launch in cases().items():
        kernels.clear()
        launch()
        for number, (kernel, threads, elements) in enumerate(kernels):
            name = case if len(kernels) == 1 else f"{case} {number}"
            found = nvidia_figures(kernel, folder) if target[0] == "cuda" else amd_figures(kernel)
            found["per_element"] = round(found["instructions"] * threads / elements, 1)
            report[name] = found
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])

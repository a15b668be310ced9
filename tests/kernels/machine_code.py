"""Compiles the kernels as they are launched, without a GPU, and reads what the compiler made.

Run as a script, in a process of its own without TRITON_INTERPRET, it prints one JSON object
{case: figures}. The launchers run as they are; only Triton's driver is replaced by one that names
a target, and the launch itself stops after compilation.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Code = Sequence[tuple[str, str, str, str]]

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
NVIDIA_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")
AMD_LINE = re.compile(r"^\s+([a-z][a-z0-9_]+)(.*)$")


def read(target: str) -> dict[str, Figures]:
    """Figures of every case for a target of TARGETS: instructions and per_element (on the shortest
    path), registers, local (bytes spilled), shared, loads, stores.

    Raises RuntimeError with the compiler's words where it cannot compile for the target.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", __file__, target],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Figures] = json.loads(done.stdout)
    return found


def distance(code: Code, position: dict[int, int], start: int, goal: int | None) -> int | None:
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


def nvidia_figures(kernel: Any, binary_folder: Path) -> Figures:
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
        number(rf"{word}:(\d+)", use) for word in ("REG", "STACK", "SHARED", "LOCAL")
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


def number(pattern: str, text: str) -> int:
    """The first number that the pattern's group finds."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's listing has no {pattern!r}")
    return int(found.group(1))


def amd_figures(kernel: Any) -> Figures:
    text = kernel.asm["amdgcn"]
    body = text[: text.index("s_endpgm")]
    names = [m.group(1) for m in map(AMD_LINE.match, body.splitlines()) if m]
    registers, private, spilled, shared = (
        number(rf"\.{word}:\s+(\d+)", text)
        for word in (
            "vgpr_count",
            "private_segment_fixed_size",
            "vgpr_spill_count",
            "group_segment_fixed_size",
        )
    )
    return {
        # the scalar unit issues its own beside them
        "instructions": sum(n.startswith(("v_", "global_", "buffer_")) for n in names),
        "registers": registers,
        "local": private + spilled,
        "shared": shared,
        "loads": [n for n in names if n.startswith(("global_load", "buffer_load"))],
        "stores": [n for n in names if n.startswith(("global_store", "buffer_store"))],
    }


def compile_only(target: tuple[Any, ...]) -> list[Any]:
    """Replaces Triton's driver; returns the list into which every launch puts its kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget(*target)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    triton.runtime.driver.set_active(Driver())
    kernels: list[Any] = []
    run = JITFunction.run

    def stop_before_launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
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

    sys.path.insert(0, str(Path(__file__).parent))
    from machine_cases import cases

    target = TARGETS[name]
    if target[0] == "hip":
        torch.version.hip = "compile only"  # the launchers ask it which instructions there are
    kernels = compile_only(target)
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    report = {}
    for case, launch in cases().items():
        kernels.clear()
        launch()
        for i, (kernel, threads, elements) in enumerate(kernels):
            name = case if len(kernels) == 1 else f"{case} {i}"
            found = nvidia_figures(kernel, folder) if target[0] == "cuda" else amd_figures(kernel)
            found["per_element"] = round(found["instructions"] * threads / elements, 1)
            report[name] = found
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])

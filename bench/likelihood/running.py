"""The mean so far of a long run over items, in words."""

from __future__ import annotations

import math

import torch

from ..store import Record


class Running:
    """Mean +- its error over the items so far, said ten times in a run."""

    def __init__(self, records: list[Record], total: int, show: bool) -> None:
        self.bits: list[float] = []
        self.total, self.show, self.said = total, False, 0
        for record in records:
            self.add(record)
        if records and show:
            print(f"goes on after {len(records)} of {total} items")
        self.show, self.said = show, 10 * len(self.bits) // total

    def add(self, record: Record) -> None:
        if record["status"] != "failed":
            self.bits.append(record["bits_per_dim"])
        tenth = 10 * len(self.bits) // self.total
        if self.show and tenth > self.said:
            self.said = tenth
            print(f"{len(self.bits)} of {self.total} items: {self.sentence()}", flush=True)

    def sentence(self) -> str:
        n = len(self.bits)
        if n < 2:
            return f"bits/dim {self.bits[0]:.4f}" if n else "none yet"
        values = torch.tensor(self.bits, dtype=torch.float64)
        return f"bits/dim {float(values.mean()):.4f} +- {float(values.std()) / math.sqrt(n):.4f}"

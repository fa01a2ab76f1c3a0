"""What a check says: one line."""

import dataclasses
import math

OK, WARN, FAIL, SKIPPED = "ok", "WARN", "FAIL", "skipped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One line of an examination.

  Attributes:
    name: what was looked at.
    status: OK, WARN (it runs, but look), FAIL (it would go wrong) or SKIPPED.
    figure: what was found, with units; of SKIPPED why.
    advice: what to do about it; empty if nothing.
  """

  name: str
  status: str
  figure: str
  advice: str = ""

  def __str__(self) -> str:
    """The line for a terminal."""
    advice = f"; {self.advice}" if self.advice else ""
    return f"{self.name:<12} {self.status:<8} {self.figure}{advice}"


def size(count: float) -> str:
  """Bytes for a person: "1.50 GiB"."""
  units = ("bytes", "KiB", "MiB", "GiB")
  power = min(int(math.log2(max(count, 1)) // 10), len(units) - 1)
  return f"{count / 1024**power:.{2 if power else 0}f} {units[power]}"

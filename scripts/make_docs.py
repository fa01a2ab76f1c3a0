"""Writes docs/methods.md from the methods' own files.

python scripts/make_docs.py
"""

import pathlib

from jaxrl_llm.methods import describe

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"


def main() -> None:
  """Replaces the page."""
  PAGE.write_text(describe.markdown(), encoding="utf-8")
  print(PAGE)


if __name__ == "__main__":
  main()

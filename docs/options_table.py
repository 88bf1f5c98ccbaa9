"""Writes the table of options at the end of docs/train.md anew: python docs/options_table.py."""

from pathlib import Path

from tensorgrad_jax.training.options import describe

PAGE = Path(__file__).resolve().parent / "train.md"
HEAD = "| option | default | | allowed |\n|---|---|---|---|\n"


def with_table(page: str) -> str:
    """Return the page with its table as it should be."""
    return page.partition(HEAD)[0] + HEAD + describe("| `{}` | `{}` | {} | {} |") + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""The README is short and its programs run; the table of options is complete."""

from pathlib import Path

from test_docs import programs, run_programs

from tensorgrad_jax.training.allowed import show
from tensorgrad_jax.training.config import _OPTIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_programs_run(capsys):
    assert len(programs(README)) == 4  # one for each of NNX, Linen and Equinox, and explain
    run_programs(ROOT / "README.md")
    assert "AdamW: 1 dimension" in capsys.readouterr().out


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    for program in programs(README)[:3]:
        lines = [x for x in program.splitlines() if x and not x.startswith(("import", "from"))]
        assert len(lines) <= 10


def test_the_table_of_options_lists_every_one_with_its_default():
    rows = [f"| `{n}` | `{show(o.default)}` | {o.help} |" for n, o in _OPTIONS.items()]
    table = "\n".join(rows)
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    assert table in page, f"the table of options should read\n{table}"

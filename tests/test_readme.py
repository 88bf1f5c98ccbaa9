"""The README is short and its programs run; the table of options is complete."""

from pathlib import Path

from test_docs import programs, run_programs

from docs.options_table import PAGE, with_table

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


def test_the_page_of_train_py_has_every_option_with_default_and_allowed_values():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python docs/options_table.py"
    assert "| `opt.rank` | `0.25` | " in page

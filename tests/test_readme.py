"""The README says what is: its example runs, its table of options is complete."""

import re
from pathlib import Path

from docs.options_table import PAGE, with_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "'moments': " in capsys.readouterr().out


def test_the_page_of_train_py_has_every_option_with_default_and_allowed_values():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python docs/options_table.py"
    assert "| `opt.rank` | `0.25` | " in page


def test_pictures_and_files_exist():
    root = Path(__file__).resolve().parent.parent
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert targets
    assert all((root / target).is_file() for target in targets)

"""The README says what is: its example runs, its table of options is complete."""

import re
from pathlib import Path

from tensorgrad_jax.training.allowed import show
from tensorgrad_jax.training.config import _OPTIONS

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "'moments': " in capsys.readouterr().out


def test_the_table_lists_every_option_with_its_default():
    rows = [f"| `{n}` | `{show(o.default)}` | {o.help} |" for n, o in _OPTIONS.items()]
    table = "\n".join(rows)
    assert table in README, f"the table of options should read\n{table}"


def test_pictures_and_files_exist():
    root = Path(__file__).resolve().parent.parent
    targets = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert targets
    assert all((root / target).is_file() for target in targets)

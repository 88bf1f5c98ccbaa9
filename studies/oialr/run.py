"""What do low-rank layers cost in accuracy? Three networks on digits, three seeds.

    python studies/oialr/run.py [--models mlp cnn vit] [--epochs 30]

Dense AdamW against OIALR with at most 60%, and with less than 30%, of the parameters trained, same
learning rates, batches and seeds. Results: results.jsonl, a line per run (a second call continues),
table.md, and for seed 0 of the dense runs the heat maps of stability and similarity of R.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import configuration  # noqa: E402
import training  # noqa: E402

SEEDS = (0, 1, 2)
FIXING = "training.fixing_method."
METHOD = [
    f"{FIXING}delay=150", f"{FIXING}stability_frequency=40",
    f"{FIXING}network_layer_perc_step=0.5", f"{FIXING}keep_last_layer=false",
]  # fmt: skip
# Cutoffs that bring a network to at most 60%, and below 30%, of its parameters.
CUTOFFS = {"mlp": (0.2, 0.35), "cnn": (0.1, 0.35), "vit": (0.1, 0.35)}
SETTINGS = {"dense": None, "OIALR": 0, "OIALR, below 30%": 1}
RATES = {"mlp": 2e-3, "cnn": 3e-3, "vit": 2e-3}


def report(rows: list[dict], path: Path) -> None:
    """Write the table: a row per network and setting of which every seed was run."""
    lines = [
        "| network | setting | trained % | stored % | accuracy %, seeds 0, 1, 2 | mean "
        "| against dense | programs |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    missing = []
    for model in RATES:
        dense = None
        for setting in SETTINGS:
            runs = [r for r in rows if (r["model"], r["setting"]) == (model, setting)]
            runs.sort(key=lambda r: r["seed"])
            if [r["seed"] for r in runs] != list(SEEDS):
                missing.append(f"{model}, {setting}")
                continue
            values = [r["accuracy"] for r in runs]
            mean = sum(values) / len(values)
            dense = mean if setting == "dense" else dense
            of = lambda key, runs=runs: max(r[key] for r in runs)
            beside = "" if setting == "dense" or dense is None else f"{mean - dense:+.2f}"
            lines.append(
                f"| {model} | {setting} | {of('trainable_percent'):.1f} | "
                f"{of('stored_percent'):.0f} | {' '.join(f'{v:.2f}' for v in values)} | "
                f"{mean:.2f} | {beside} | {of('programs')} |"
            )
    lines += [
        "",
        "Percentages of parameters and numbers of programs are the largest of the seeds.",
    ]
    if missing:
        lines.append(f"Not run: {'; '.join(missing)}.")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(RATES), choices=list(RATES))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/oialr"), help="of the single runs")
    arguments = parser.parse_args()
    results = arguments.out / "results.jsonl"
    rows = []
    if results.exists():
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for seed in SEEDS:
        for model in arguments.models:
            for setting, place in SETTINGS.items():
                options = ["baseline=true"]
                if place is not None:
                    cutoff = CUTOFFS[model][place]
                    options = [*METHOD, f"{FIXING}sigma_cutoff_fraction={cutoff}"]
                key = {"model": model, "setting": setting, "seed": seed}
                if any(key.items() <= r.items() for r in rows):
                    continue
                name = f"{model}-{list(SETTINGS).index(setting)}-{seed}"
                config = configuration.compose([
                    f"model={model}", f"name={name}", f"seed={seed}", f"out={arguments.runs}",
                    f"training.lr={RATES[model]}", f"training.epochs={arguments.epochs}", *options,
                    f"tracking.stability_every={60 if seed == 0 and setting == 'dense' else 0}",
                ])  # fmt: skip
                result = training.run(config, say=lambda text: None)
                row = result | key
                rows.append(row)
                with open(results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print({k: v for k, v in row.items() if k != "ranks"}, flush=True)
                for what in ("stability", "r_similarity"):
                    picture = arguments.runs / name / f"{what}.png"
                    if picture.exists():
                        shutil.copy(picture, arguments.out / f"{model}-{what}.png")
    report(rows, arguments.out / "table.md")


if __name__ == "__main__":
    main()

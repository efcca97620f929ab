"""Six methods from the same target model, on the demo's slice of TOFU, in one table.

    python scripts/compare_methods.py [OUTPUT]

Uses the demo's target model, retain model and proxy answers (made first if they are not there).
Every method has the demo's adapters, epochs and learning rate: nothing is tuned per method.
"""

import sys
from pathlib import Path

from expunge.cli import main

METHODS = {
    "ga_gd": "GA+GD",
    "npo_gd": "NPO+GD",
    "egup_npo_gd": "EGUP(NPO+GD)",
    "idk_ap": "IDK+AP",
    "me_gd": "ME+GD",
    "uipe_npo_gd": "UIPE(NPO+GD, alpha=0.5)",
}


def run(*arguments: str) -> None:
    """One call of the command line; stops the study when it fails."""
    code = main(list(arguments))
    if code:
        sys.exit(code)


def compare(output: Path) -> None:
    """Run all methods and write the comparison."""
    proxies = output / "proxies.jsonl"
    if not proxies.exists():
        run("proxies", "demo", "--output", str(output), f"data.proxies={proxies}")
    folders = []
    for name, method in METHODS.items():
        folder = output / name
        run(
            "unlearn", "demo", "--method", method, "--output", str(folder),
            f"data.proxies={proxies}", f"name={name}",
        )  # fmt: skip
        folders.append(str(folder))
    run("report", *folders, "--output", str(output))


if __name__ == "__main__":
    compare(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/methods"))

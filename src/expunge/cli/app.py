"""The application: which verbs there are, in which order, with which examples."""

from __future__ import annotations

from typing import Annotated

import typer

from expunge.cli import benchmarks, exchange, looks, plan, runs, weights
from expunge.cli.failures import Verbs

EXAMPLES = {
    "list": ["expunge list", "expunge list methods"],
    "show": [
        'expunge show "EGUP(NPO+GD)"',
        "expunge show NPO",
        "expunge show training.warmup_epochs",
        "expunge show schema > run.schema.json",
    ],
    "init": [
        "expunge init",
        "expunge init tofu/npo_gd_phi15 my.yaml",
        "expunge init my.yaml --model ./model --forget forget.jsonl --retain retain.jsonl",
    ],
    "check": ["expunge check my.yaml", "expunge check my.yaml training.micro_batch_size=2"],
    "plan": [
        "expunge plan",
        "expunge plan my.yaml --sizes 8B --gpus 1,8 --device a100-80",
        'expunge plan --sizes 70B --method "EGUP(NPO+GD)" lora.r=8 training.precision=mixed --json',
        "expunge plan my.yaml --device cpu",
    ],
    "finetune": ["expunge finetune my.yaml", "expunge finetune my.yaml --role retain"],
    "proxies": [
        "expunge proxies my.yaml",
        "expunge proxies my.yaml proxies.temperature=1.0",
        "expunge proxies my.yaml proxies.endpoint.url=http://localhost:11434/v1 \\",
        "    proxies.endpoint.model=qwen3:4b",
    ],
    "alternates": [
        "expunge alternates my.yaml",
        "expunge alternates my.yaml alternates.per_question=3",
    ],
    "unlearn": [
        "expunge unlearn my.yaml",
        "expunge unlearn my.yaml method.forget.beta=0.2 --output runs/beta02",
        "expunge unlearn --model ./model --forget forget.jsonl --retain retain.jsonl \\",
        '    --method "EGUP(NPO+GD, k=1, mu=0.001)" --output runs/x training.learning_rate=1e-5',
        'expunge unlearn my.yaml --method "UIPE(NPO+GD, alpha=auto)" --budget utility=0.98',
        "torchrun --nproc_per_node 2 -m expunge unlearn my.yaml",
    ],
    "extrapolate": [
        "expunge extrapolate ./target ./unlearned --alpha 0.5 --output ./further",
        "expunge extrapolate ./target ./unlearned --alpha auto --budget utility=0.98 \\",
        "    --retain retain.jsonl --output ./further",
        "expunge extrapolate ./target ./unlearned --sweep 0,0.2,0.4,0.6,0.8,1 \\",
        "    --retain retain.jsonl --forget forget.jsonl --output ./sweep",
    ],
    "evaluate": [
        "expunge evaluate runs/x",
        "expunge evaluate ./model --benchmark tofu --forget tofu:forget10 --role target",
    ],
    "score": [
        "expunge score runs/x",
        "expunge score runs/x --retain-run runs/retain90",
        "expunge score runs/x options.mean=arithmetic --metric forget/rouge1_f1",
    ],
    "run-benchmark": [
        "expunge run-benchmark",
        "expunge run-benchmark continual",
        "expunge run-benchmark continual --method IDK+AP --output runs/continual-idk",
        "expunge run-benchmark muse --folder ./muse_standin",
    ],
    "report": ["expunge report runs/x", "expunge report runs/x runs/y --output runs/compared"],
    "import": [
        "expunge import TOFU_EVAL.json --output runs/theirs",
        "expunge import retain90/TOFU_EVAL.json --role retain --output runs/theirs",
        "expunge import eval_log_aggregated.json --split forget05 --output runs/published",
    ],
    "export": [
        "expunge export runs/x",
        "expunge export runs/x --role target --output saves/eval/target",
    ],
    "env": ["expunge env"],
    "demo": ["expunge demo", "expunge demo --output runs/my-demo"],
}
GOLDEN_EXAMPLES = ["expunge verify golden tests/golden"]

app = typer.Typer(
    name="expunge",
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nStart with: expunge demo, or: expunge init\n"
    "Exit codes: 0 success, 1 a run failed, 2 bad input.\n"
    "EXPUNGE_DEBUG=1 shows tracebacks, EXPUNGE_CACHE moves the cache (~/.cache/expunge).",
)
verify_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Compare with reference numbers."
)


def _epilog(examples: list[str]) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


def _version(wanted: bool) -> None:
    if wanted:
        import expunge

        typer.echo(f"expunge {expunge.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Remove chosen training data from a language model, and show what was removed and what not."""


for _name, _verb in (
    ("demo", runs.demo),
    ("init", looks.init),
    ("check", looks.check),
    ("plan", plan.plan),
    ("finetune", runs.finetune),
    ("proxies", runs.proxies),
    ("alternates", runs.alternates),
    ("unlearn", runs.unlearn),
    ("extrapolate", weights.extrapolate),
    ("evaluate", runs.evaluate),
    ("run-benchmark", benchmarks.run_benchmark),
    ("score", runs.score),
    ("report", runs.report),
    ("import", exchange.import_file),
    ("export", exchange.export_run),
    ("list", looks.list_things),
    ("show", looks.show),
    ("env", looks.env),
):
    app.command(_name, epilog=_epilog(EXAMPLES[_name]))(_verb)
verify_app.command("golden", epilog=_epilog(GOLDEN_EXAMPLES))(runs.verify_golden)
app.add_typer(verify_app, name="verify")

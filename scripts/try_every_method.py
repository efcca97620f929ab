"""Two steps of every published method on the embedded model: does it run, and how long.

    python scripts/try_every_method.py

Prints each term after the first and after the second step. Nothing is unlearned in two steps; a
term that is no finite number, or a method that needs something it does not say, would show.
"""

import time

import expunge
from expunge.models.loading import load_model, load_tokenizer
from expunge.models.peft import LoraSettings
from expunge.run.catalog import method_rows

MODEL = "builtin:smollm2-135m-instruct"


def main() -> None:
    """Run all and print a line each."""
    tokenizer = load_tokenizer(MODEL)
    forget = expunge.load_rows("tofu:forget01", name="forget")[:4]
    retain = expunge.load_rows("tofu:retain99", name="retain")[:12]
    for row in method_rows():
        started = time.monotonic()
        found = expunge.unlearn(
            load_model(MODEL, dtype="bfloat16", attn_implementation="eager"),
            forget,
            retain,
            tokenizer=tokenizer,
            method=row.name,
            proxies=["A retired teacher from Lisbon." for _ in forget],
            alternates=[["She writes about gardens.", "He writes about ships."] for _ in forget],
            lora=LoraSettings(r=8, dropout=0.0),
            learning_rate=1e-4,
            max_steps=2,
            effective_batch_size=4,
            micro_batch_size=2,
            max_length=256,
            mixed_precision="bf16",
        )
        first, last = found.records[0], found.records[-1]
        terms = ", ".join(f"{k} {first.terms[k]:.4g} -> {v:.4g}" for k, v in last.terms.items())
        seconds = time.monotonic() - started
        print(f"{row.name:<22} {seconds:5.1f} s  {terms}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

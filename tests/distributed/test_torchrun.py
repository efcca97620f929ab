"""The command line under torchrun: a whole run in two processes ends with the weights of one."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from expunge.testing.tiny import CHAT_TEMPLATES, tiny_model, tiny_tokenizer, toy_facts


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_in_two_processes_equals_one(tmp_path):
    tokenizer = tiny_tokenizer(CHAT_TEMPLATES["smollm2"])
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    facts = toy_facts(13)
    write_jsonl(tmp_path / "forget.jsonl", facts[:5])
    write_jsonl(tmp_path / "retain.jsonl", facts[5:])
    proxies = [{"question": f["question"], "proxy_answer": "Nobody knows."} for f in facts[:5]]
    write_jsonl(tmp_path / "proxies.jsonl", proxies)
    arguments = [
        "-m", "expunge", "unlearn", "--model", "base", "--forget", "forget.jsonl",
        "--retain", "retain.jsonl", "--method", "EGUP(NPO+GD)", "data.proxies=proxies.jsonl",
        "training.learning_rate=0.01", "training.adam_epsilon=0.01", "training.num_train_epochs=2",
        "training.effective_batch_size=4", "training.micro_batch_size=2",
        "finetune={training: {learning_rate: 0.01, adam_epsilon: 0.01, num_train_epochs: 2,"
        " effective_batch_size: 4, micro_batch_size: 2}}", "evaluation.max_new_tokens=4",
    ]  # fmt: skip
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run(
            [*launcher, *arguments, "--output", name],
            cwd=tmp_path,
            env={**os.environ, "EXPUNGE_CACHE": str(tmp_path / f"cache-{name}")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (manifest["world_size"], manifest["status"]) == (2, "finished")
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=5e-6)
    results = tmp_path / "two" / "evaluation" / "unlearned" / "results.json"
    assert json.loads(results.read_text())["scores"]["forget/probability"]["n"] == 5

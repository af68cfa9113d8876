"""PPO of TRL 0.11.4 on randomwalks, from a folder with the fine-tuned model; a JSON line an update.

Runs in the environment of `beside_trl.py`, where Proximo is not installed.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from graph import LONGEST, STARTS, Graph
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

warnings.simplefilter("ignore")
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer  # noqa: E402 it warns


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", type=json.loads)
    chosen = parser.parse_args()
    s = chosen.settings
    torch.set_num_threads(s["threads"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(chosen.folder / "tokenizer.json"),
        eos_token="<end>",
        unk_token="<unknown>",
        pad_token="<unknown>",
    )
    net = GPT2LMHeadModel.from_pretrained(
        chosen.folder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = AutoModelForCausalLMWithValueHead(net, summary_dropout_prob=0.0)
    model.is_peft_model = False
    optimizer = torch.optim.Adam(model.parameters(), lr=s["learning_rate"], betas=(0.9, 0.95))
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / s["updates"])
    config = PPOConfig(
        seed=s["seed"],
        batch_size=s["sequences"],
        mini_batch_size=s["minibatch"],
        ppo_epochs=s["epochs"],
        init_kl_coef=s["beta"],
        adap_kl_ctrl=False,
        gamma=1.0,
        lam=0.95,
        cliprange=0.2,
        cliprange_value=1e9,
        vf_coef=s["value_coef"],
    )
    trainer = PPOTrainer(config, model, None, tokenizer, optimizer=optimizer, lr_scheduler=falling)
    graph = Graph()
    prompts = STARTS * (s["sequences"] // len(STARTS))
    queries = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    begin = time.perf_counter()
    for update in range(1, s["updates"] + 1):
        answers = trainer.generate(
            queries,
            batch_size=s["sequences"],
            return_prompt=False,
            max_new_tokens=LONGEST - 1,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts = [
            tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in answers
        ]
        scores = graph.optimality(prompts, texts)
        stats = trainer.step(queries, answers, [torch.tensor(score) for score in scores])
        row = {
            "update": update,
            "score": sum(scores) / len(scores),
            "kl": float(stats["objective/kl"]),
            "seconds": time.perf_counter() - begin,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

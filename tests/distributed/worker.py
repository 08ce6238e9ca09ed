"""One rank of a test with several processes: `python worker.py TASK FOLDER RENDEZVOUS`.

RANK and WORLD_SIZE come from the environment, and the ranks meet at the file RENDEZVOUS. Reads a model from
FOLDER/model, and writes what came out to FOLDER/rank<RANK>.pt.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checks import generate
from sharded import sharded, trained, trainer  # noqa: F401  (tasks)
from tiny_llava import batch, prompt
from transformers import LlavaForConditionalGeneration

import vitcop
from vitcop import VisionZip, ViTCoP

NEW = 3
PROMPTS = [(1, 0), (2, 0), (0, 0), (1, 5)]  # images, seed
METHODS: dict[str, Any] = {
    "paper": ViTCoP(retention=0.3),
    "released": ViTCoP(retention=0.3, semantics="released"),
    "attention": ViTCoP(retention=0.3, saliency="attention"),
    "key norms alone, of the previous layer": ViTCoP(retention=0.3, saliency="key_norm_only", key_source="previous"),
    "VisionZip, which replaces tokens": VisionZip(retain=8, contextual=2),
}


def inputs() -> dict[str, Any]:
    return batch([prompt(images, seed) for images, seed in PROMPTS])


def answers(model: Any) -> dict[str, Any]:
    """What a pruned model does, under each method."""
    found = {}
    for name, method in METHODS.items():
        output, report = generate(model, method, inputs(), new=NEW)
        found[name] = {
            "sequences": output.sequences,
            "logits": torch.stack(output.logits),
            "kept": [stage.kept for stage in report.stages],
            "segments": [stage.segments(1) for stage in report.stages],
        }
    return found


def tensor_parallel(folder: Path) -> Any:
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model", tp_plan="auto").eval()
    attention = model.model.language_model.layers[0].self_attn
    assert type(attention.k_proj.weight).__name__ == "DTensor"
    assert attention.k_proj.weight.to_local().shape[0] == model.config.text_config.hidden_size // 4
    return answers(model)


def ranks_that_disagree(folder: Path) -> Any:
    """The second rank sees other numbers, as another kernel might give: it has to follow the first."""
    import vitcop_kernels as ops

    if dist.get_rank():
        saliency = ops.attention_saliency
        ops.attention_saliency = lambda *args, **kwargs: -saliency(*args, **kwargs)
    return tensor_parallel(folder)


def data_parallel(folder: Path) -> Any:
    """Evaluation as Accelerate does it: each process takes its part of the samples, and the answers are gathered."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    model = accelerator.prepare(model)
    mine = list(range(accelerator.process_index, len(PROMPTS), accelerator.num_processes))
    logits, sequences = [], []
    with vitcop.prune(model, ViTCoP(retention=0.3)), torch.no_grad():
        for sample in mine:
            one = batch([prompt(*PROMPTS[sample])])
            logits.append(model(**one).logits[:, -1])
            answer = accelerator.unwrap_model(model).generate(**one, max_new_tokens=NEW, do_sample=False)
            sequences.append(answer[:, -NEW:])
    return {
        "wrapper": type(model).__name__,
        "logits": accelerator.gather_for_metrics(torch.cat(logits)),
        "sequences": accelerator.gather_for_metrics(torch.cat(sequences)),
    }


def main() -> None:
    task, folder, meeting = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=size)
    torch.save(globals()[task](folder), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

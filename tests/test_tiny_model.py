"""The embedded model as it is committed: small, and it ends its answers."""

from pathlib import Path

from driftsched_lib.workloads.prompts import build_prompt

MODEL = Path(__file__).parents[1] / "data" / "models" / "driftsched-tiny"


def test_the_committed_model_is_small_and_ends_its_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds

    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 15 * 2**20
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    assert 2e6 < model.num_parameters() < 5e6
    torch.manual_seed(1)
    prompt = build_prompt("summary", "DNS", 0)
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(3):
        generated = model.generate(ids, do_sample=True, temperature=0.7, max_new_tokens=200)[0, ids.shape[1] :]
        assert generated[-1] == tokenizer.eos_token_id
        assert "points sum it up." in tokenizer.decode(generated)

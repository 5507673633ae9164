"""The embedded model: what it learnt from, and that what is committed is whole."""

from itertools import islice
from pathlib import Path

import pandas as pd
import pytest

from driftsched_lib.requests import CATEGORIES
from driftsched_lib.workloads.corpus import TOPIC_FACTORS, documents
from driftsched_lib.workloads.prompts import build_prompt

MODEL = Path(__file__).parents[1] / "data" / "models" / "driftsched-tiny"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer  # seconds, which a process that runs no test of these need not spend

    return AutoTokenizer.from_pretrained(MODEL)


def test_the_corpus_is_the_same_for_the_same_seed():
    assert list(islice(documents(1), 20)) == list(islice(documents(1), 20)) != list(islice(documents(2), 20))


def test_lengths_follow_category_topic_and_style(tokenizer):
    rows = [(d.category, d.topic, d.style, len(tokenizer.encode("\n" + d.answer))) for d in islice(documents(3), 4000)]
    lengths = pd.DataFrame(rows, columns=["category", "topic", "style", "tokens"])
    plain = lengths[lengths["style"] == "plain"].groupby("category").tokens
    assert (plain.std() / plain.mean()).between(0.3, 0.6).all()
    assert plain.median()[list(CATEGORIES)].is_monotonic_increasing
    relative = lengths.tokens / lengths.groupby(["category", "style"]).tokens.transform("mean")
    assert relative.groupby(lengths.topic).mean().corr(pd.Series(TOPIC_FACTORS)) > 0.9
    by_style = lengths.groupby(["category", "style"]).tokens.median().unstack()
    assert (by_style.terse < by_style.plain).all() and (by_style.plain < by_style.verbose).all()


def test_the_tokenizer_gives_back_what_it_took(tokenizer):
    for document in islice(documents(4), 50):
        assert tokenizer.decode(tokenizer.encode(document.answer)) == document.answer


def test_the_committed_model_is_small_and_ends_its_answers(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 15 * 2**20
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert 2e6 < model.num_parameters() < 5e6
    torch.manual_seed(1)
    ids = tokenizer(build_prompt("summary", "DNS", 0), return_tensors="pt").input_ids
    for _ in range(3):
        generated = model.generate(ids, do_sample=True, temperature=0.7, max_new_tokens=200)[0, ids.shape[1] :]
        assert generated[-1] == tokenizer.eos_token_id
        assert "points sum it up." in tokenizer.decode(generated)

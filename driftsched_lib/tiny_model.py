"""How the embedded model is made: a BPE tokenizer and a small Llama, trained on `corpus`, saved for vLLM."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from driftsched_lib.requests import Output, Request
from driftsched_lib.serving import Engine
from driftsched_lib.workloads.corpus import Document, documents

VOCABULARY = 2048
TRAINING_LOG = "training_log.csv"


def train_tokenizer(seed: int, n_documents: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` entries, with <pad>, <bos> and <eos>."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator((f"{d.prompt}\n{d.answer}" for d in islice(documents(seed), n_documents)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 3.5 million parameters with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of a line break, the answer and <eos>."""
    prompt = tokenizer.encode(document.prompt, add_special_tokens=False)
    answer = tokenizer.encode("\n" + document.answer, add_special_tokens=False)
    return prompt, [*answer, tokenizer.eos_token_id]


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) of shape (size, length); documents of like lengths together, the loss on answers only."""
    stream = documents(seed)
    while True:
        encoded = [encode(tokenizer, document) for document in islice(stream, 16 * size)]
        by_length = sorted(encoded, key=lambda parts: len(parts[0]) + len(parts[1]))
        for start in torch.randperm(16).tolist():
            rows = by_length[start * size : (start + 1) * size]
            ids = torch.full((size, sum(map(len, rows[-1]))), tokenizer.pad_token_id)
            labels = torch.full_like(ids, -100)
            for row, (prompt, answer) in enumerate(rows):
                end = len(prompt) + len(answer)
                ids[row, :end] = torch.tensor(prompt + answer)
                labels[row, len(prompt) : end] = torch.tensor(answer)
            yield ids, labels


def generated_lengths(
    engine: Engine, documents: Sequence[Document], max_tokens: int = 512, fixed_output_tokens: int | None = None
) -> pd.DataFrame:
    """What the model makes of the documents' prompts beside the documents themselves, a row a document.

    Columns: category, topic, style, `corpus_tokens` and `generated_tokens` (with <eos>), and `words`.
    With `fixed_output_tokens` every output has exactly that length, the end token being forbidden before.
    """
    outputs: dict[str, Output] = {}
    for i, document in enumerate(documents):
        request = Request(
            str(i), 0.0, document.prompt, "tenant", "standard", max_tokens, fixed_output_tokens=fixed_output_tokens
        )
        engine.add(request)
    while len(outputs) < len(documents):
        outputs |= {output.request.request_id: output for output in engine.step(inf)}
    return pd.DataFrame(
        {
            "category": document.category,
            "topic": document.topic,
            "style": document.style,
            "corpus_tokens": len(encode(engine.tokenizer, document)[1]),
            "generated_tokens": outputs[str(i)].tokens,
            "words": outputs[str(i)].words,
        }
        for i, document in enumerate(documents)
    )


def train(out: str | Path, seed: int = 1, steps: int = 2500, batch_size: int = 32, learning_rate: float = 2e-3) -> None:
    """Train tokenizer and model and save them, with the training log, as a folder that vLLM and transformers load.

    The weights are saved in bfloat16.  The log has a row each 20 steps: step, seconds, loss (nats an answer token).
    """
    out = Path(out)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    started, log = time.monotonic(), []
    for step, (ids, labels) in enumerate(tqdm(islice(batches(tokenizer, seed + 1, batch_size), steps), total=steps)):
        loss = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            log.append((step, time.monotonic() - started, loss.item()))
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    pd.DataFrame(log, columns=["step", "seconds", "loss"]).round(4).to_csv(out / TRAINING_LOG, index=False)

"""A model asked for true replies: equal to plain transformers one pair at a time, each context read once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model

from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError
from dialtune.evaluation import evaluate_completions
from dialtune.metrics.contexts import wrong_contexts
from dialtune.metrics.likelihood import KINDS, N_WRONG, ReplyLikelihood
from dialtune.metrics.table import METRICS
from dialtune.model_evaluation import evaluate_model, prompts_for
from dialtune.models.base import Sampling
from dialtune.prompts import TEMPLATES
from dialtune.reply_likelihood import _batches, _of_like_length, _Shape, bind_likelihoods, reply_logprobs
from dialtune.results import ModelInfo
from dialtune.tasks import TASKS, Task
from dialtune.types import Completion, Example, Message, Prompt

RESPOND = TASKS["respond"]
WORDS = ("the train leaves at ten hello Anna thanks I will be there on Monday they agree to meet").split()  # noqa: SIM905


def replies(n_dialogues: int = 5, system: str = "") -> list[Example]:
    """Dialogues of two or three replies with contexts and replies of different lengths."""
    rows = []
    for d in range(n_dialogues):
        turns = [" ".join(WORDS[(3 * d + 2 * t + k) % len(WORDS)] for k in range(2 + (d + t) % 4)) for t in range(4)]
        for t in range(1, 3 + d % 2):
            said = [Message(("user", "assistant")[(t - 1 - k) % 2], turns[k]) for k in range(t)]  # type: ignore[arg-type]
            head = [Message("system", system)] if system else []
            rows.append(Example(f"d{d}#{t}", (*head, *said), (turns[t],), {"dialogue": f"d{d}", "turn": t}))
    return rows


def asking(model: Any, task: Task = RESPOND) -> Any:
    return partial(prompts_for, model, task=task, budget=None)


@torch.no_grad()
def plainly(model: Any, prompt: Prompt, text: str) -> float:
    """The sum by transformers' own logits, one pair alone, no padding, nothing shared."""
    query, response = model.query_ids(prompt.messages), model.response_ids(text)
    if model.core.config.is_encoder_decoder:
        start = torch.tensor([[model.start_id, *response[:-1]]])
        logits = model.core(input_ids=torch.tensor([query]), decoder_input_ids=start).logits[0]
    else:
        logits = model.core(input_ids=torch.tensor([query + response])).logits[0, len(query) - 1 : -1]
    picked = torch.log_softmax(logits.double(), dim=-1)[torch.arange(len(response)), torch.tensor(response)]
    return float(picked.sum())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_sums_are_those_of_one_pair_at_a_time(model: Any, batch_size: int) -> None:
    rows = replies(system="Be kind.")
    found = reply_logprobs(model, rows, asking(model), batch_size=batch_size)
    prompts = asking(model)(rows)
    wrong = wrong_contexts(rows, N_WRONG)
    assert found.wrong.shape == (len(rows), N_WRONG)
    for row, example in enumerate(rows):
        text = example.references[0]
        assert found.true[row] == pytest.approx(plainly(model, prompts[row], text), rel=1e-4)
        assert found.n_tokens[row] == len(model.response_ids(text))
        assert len(wrong[row]) == 4  # one of each other dialogue
        for place, other in enumerate(wrong[row]):
            assert found.wrong[row, place] == pytest.approx(plainly(model, prompts[other], text), rel=1e-4)
        assert np.isnan(found.wrong[row, 4:]).all()
        last = Example(example.id, (example.messages[0], example.messages[-1]), example.references, example.meta)
        if len(example.messages) > 2:
            assert found.last[row] == pytest.approx(plainly(model, asking(model)([last])[0], text), rel=1e-4)
        else:
            assert np.isnan(found.last[row])  # the system message and one turn are the whole context


@pytest.mark.parametrize("model", ["llama", "t5"], indirect=True)
def test_perplexity_is_exp_of_the_mean_loss_per_token(model: Any) -> None:
    rows = replies()
    metric = ReplyLikelihood("perplexity").by(reply_logprobs(model, rows, asking(model)))
    losses = [-plainly(model, prompt, row.references[0]) for prompt, row in zip(asking(model)(rows), rows, strict=True)]
    tokens = sum(len(model.response_ids(row.references[0])) for row in rows)
    assert metric.aggregate(metric.segments([""] * len(rows), rows)) == pytest.approx(
        np.exp(sum(losses) / tokens), 1e-4
    )


@pytest.mark.parametrize("model", ["llama", "bart"], indirect=True)
def test_each_context_is_read_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """N contexts and those last turns that are shorter, whatever the number of wrong contexts, if replies are short."""
    rows, seen = replies(6, system="Long instructions outweigh the padding of any reply. " * 4), []
    plain = type(model).logprobs

    def spy(self: Any, query: Any, *args: Any, **settings: Any) -> Any:
        seen.append(len(query.ids))
        return plain(self, query, *args, **settings)

    monkeypatch.setattr(type(model), "logprobs", spy)
    reply_logprobs(model, rows, asking(model), batch_size=4)
    assert sum(seen) == len(rows) + sum(len(row.messages) > 2 for row in rows)
    assert max(seen) > 1


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_what_cannot_be_asked_is_not_scored(model: Any) -> None:
    rows = [
        *replies(2),
        Example("bare", (Message("user", "Hello?"),), (), {"dialogue": "x", "turn": 1}),
        Example("blank", (Message("user", "Hello?"),), (" ",), {"dialogue": "y", "turn": 1}),
        Example("first", (Message("system", "Be kind."),), ("Hello.",), {"dialogue": "z", "turn": 0}),
    ]
    found = reply_logprobs(model, rows, asking(model))
    assert np.isnan(found.true[-3:]).all()
    assert np.isnan(found.wrong[-3:]).all()
    assert not np.isnan(found.true[:-3]).any()
    # "bare" and "blank" have contexts, but no prompt was made for them: they serve nobody.
    assert (~np.isnan(found.wrong[:-3])).sum(axis=1).max() == 1


@pytest.mark.parametrize("model", ["llama", "t5"], indirect=True)
def test_one_row_and_one_dialogue_have_a_perplexity_and_nothing_to_compare_with(model: Any) -> None:
    for rows in (replies(1)[:1], replies(1)):
        found = reply_logprobs(model, rows, asking(model))
        assert np.isfinite(found.true).all()
        assert np.isnan(found.wrong).all()
        score = ReplyLikelihood("context_ll_mrr").by(found)
        assert np.isnan(score.segments([""] * len(rows), rows)).all()
    assert reply_logprobs(model, [], asking(model)).true.shape == (0,)


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_a_long_reply_is_cut_to_what_fits_behind_every_prompt(model: Any) -> None:
    rows = [*replies(2)]
    long = Example("long#1", rows[0].messages, ("hello Anna " * 400,), {"dialogue": "long", "turn": 1})
    found = reply_logprobs(model, [*rows, long], asking(model))
    assert found.max_tokens == model.max_prompt_tokens // 3 == 128
    assert found.n_tokens[-1] == 128
    assert np.isfinite(found.true).all()


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_model_is_left_as_it_was_and_progress_is_told(model: Any) -> None:
    rows, told = replies(3), []
    model.module.train()
    reply_logprobs(model, rows, asking(model), batch_size=2, progress=lambda *at: told.append(at))
    assert model.module.training
    done, total = zip(*told, strict=True)
    assert sorted(set(done)) == list(done)
    assert done[-1] == total[-1] == total[0]
    with pytest.raises(ConfigError, match=r"batch_size: got 0; allowed: >= 1"):
        reply_logprobs(model, rows, asking(model), batch_size=0)


def test_the_same_tokens_have_the_same_name_and_others_another() -> None:
    rows = replies(3)
    names = {kind: reply_logprobs(make_model(kind), rows, asking(make_model(kind))).tokens for kind in ("llama", "t5")}
    assert names["llama"] != names["t5"]
    assert reply_logprobs(make_model("llama", seed=3), rows, asking(make_model("llama"))).tokens == names["llama"]


def test_a_long_reply_is_tried_apart_from_short_ones() -> None:
    lengths = [3, 3, 9, 13, 224, 13, 15, 16, 20, 27]
    replies = [[0] * n for n in lengths]
    cells = [(row, 0) for row in range(10)]
    parts = _of_like_length(116, cells, replies)
    assert sorted(map(len, parts)) == [1, 9]
    assert parts[0] == [(4, 0)]
    assert _of_like_length(116, [], replies) == []
    assert _of_like_length(116, cells[:1], replies) == [cells[:1]]


@given(st.integers(1, 60), st.lists(st.integers(1, 80), min_size=1, max_size=6))
def test_parts_of_like_length_cost_the_least_there_is(n_query: int, lengths: list[int]) -> None:
    """Against every way to cut the sorted replies."""
    cells = [(row, row) for row in range(len(lengths))]
    parts = _of_like_length(n_query, cells, [[0] * n for n in lengths])
    assert sorted(cell for part in parts for cell in part) == cells
    found = sum(n_query + len(part) * max(lengths[row] for row, _ in part) for part in parts)
    ordered = sorted(lengths)
    ways = []
    for cuts in product((False, True), repeat=len(ordered) - 1):
        ends = [k + 1 for k, cut in enumerate(cuts) if cut] + [len(ordered)]
        starts = [0, *ends[:-1]]
        ways.append(sum(n_query + (b - a) * ordered[b - 1] for a, b in zip(starts, ends, strict=True)))
    assert found == min(ways)


def test_batches_hold_every_trial_once_and_little_padding() -> None:
    rng = np.random.default_rng(0)
    shapes = [_Shape(int(q), [int(r) for r in rng.integers(2, 40, 10)]) for q in rng.integers(5, 300, 60)]
    batches = list(_batches(shapes, 8))
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert max(map(len, batches)) <= 8
    assert len(batches) < 30
    for batch in batches:
        chosen = [shapes[i] for i in batch]
        alone = sum(s.query + len(s.replies) * max(s.replies) for s in chosen)
        width = max(s.query for s in chosen) + 10 * max(max(s.replies) for s in chosen)
        assert len(batch) * width <= 1.25 * alone + 1e-9
    assert list(_batches([], 8)) == []


# --- the road to eval.json ---


def test_nothing_is_asked_if_no_metric_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr("dialtune.reply_likelihood.reply_logprobs", refuse)
    others = [METRICS["bleu"], METRICS["echo_rate"]]
    assert bind_likelihoods(others, None, replies(), refuse) == others  # type: ignore[arg-type]
    bound = [METRICS["bleu"], ReplyLikelihood("perplexity").by(None)]  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="asked"):
        bind_likelihoods(bound, None, replies(), refuse)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_an_unknown_metric_fails_before_anything_is_written(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialtune.model_evaluation.generate", lambda *_, **__: 1 / 0)
    data = DataSet("toy", "test", "dialogsum", tuple(replies()))
    with pytest.raises(ConfigError, match=r"metric 'perplexty': unknown; did you mean 'perplexity'\?"):
        evaluate_model(model, data, RESPOND, metrics=["perplexty"])
    with pytest.raises(ConfigError, match=r"reward 'lenght': unknown; did you mean 'length'\?"):
        evaluate_model(model, data, RESPOND, metrics=["reward:lenght"])


@pytest.mark.parametrize("model", ["llama", "t5"], indirect=True)
def test_an_evaluation_asks_the_model_and_keeps_the_values_by_row(model: Any) -> None:
    rows = replies(6)
    data = DataSet("toy", "test", "dialogsum", tuple(rows))
    told: list[tuple[int, int]] = []
    found = evaluate_model(
        model, data, RESPOND, sampling=Sampling(3), metrics=[*KINDS, "echo_rate"], progress=lambda *at: told.append(at)
    )
    assert {kind: found.scores[kind].n for kind in KINDS} == {
        "perplexity": len(rows),
        "context_margin": len(rows),
        "context_margin_last": sum(len(row.messages) > 1 for row in rows),
        "context_ll_auc": len(rows),
        "context_ll_mrr": len(rows),
    }
    sums = reply_logprobs(model, rows, asking(model))
    metric = ReplyLikelihood("context_margin").by(sums)
    assert [row.scores["context_margin"] for row in found.rows] == pytest.approx(
        metric.segments([""] * len(rows), rows)[:, 0].tolist(), abs=1e-5
    )
    nll, tokens = found.rows[0].statistics["perplexity"]
    assert (nll, tokens) == (pytest.approx(-sums.true[0], rel=1e-5), sums.n_tokens[0])
    assert found.n_scored == len(rows)
    assert told[0][1] == len(rows)  # completions first
    assert told[-1][1] > len(rows)  # then contexts, the last turns among them


def test_predictions_from_a_file_have_no_likelihood() -> None:
    rows = replies(3)
    data = DataSet("toy", "test", "dialogsum", tuple(rows))
    texts = [Completion(row.id, "Hello.", (), "stop") for row in rows]
    found = evaluate_completions(data, texts, ["perplexity", "echo_rate"], model=ModelInfo(name="f"), task="respond")
    assert found.scores["perplexity"].value is None
    assert found.scores["perplexity"].reason == "needs the model itself; texts alone have no likelihood"
    assert found.scores["echo_rate"].n == len(rows)


def test_a_task_with_one_message_shuffles_whole_dialogues(model: Any) -> None:
    """Summaries too can be asked for: the context is the dialogue, the last turn its last line."""
    rows: Sequence[Example] = [
        Example(
            f"s{k}", tuple(Message("user", f"{WORDS[k]} {t}", f"P{t % 2}") for t in range(3)), (f"They {WORDS[k]}.",)
        )
        for k in range(4)
    ]
    found = reply_logprobs(model, rows, asking(model, TASKS["summarize"]))
    assert TEMPLATES[TASKS["summarize"].template].user is not None
    assert np.isfinite(found.true).all()
    assert np.isfinite(found.last).all()
    assert np.isfinite(found.wrong[:, :3]).all()

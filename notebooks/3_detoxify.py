# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 3 · Detoxify summaries by reinforcement learning
#
# A summarizer that learned from rude summaries repeats what was shouted. There is no table of corrections to learn from, only a
# judge: a classifier that says how toxic a text is. Reinforcement learning turns that judge into training, and it finds every
# shortcut you leave open. The published versions of this lab leave five open (⚠). We close them one by one.
#
# The labs: [1 summarize](1_summarize.ipynb) → [2 respond](2_respond.ipynb) → **3 detoxify**. About twenty minutes on two cores.
#
# Ordinary corpora are nearly clean (4 of 500 DialogSum test summaries score as toxic): nothing to unlearn, nothing to measure.
# The packaged corpus has heated dialogues. To use DialogSum, put real toxic turns into it first; the commands are in
# the last comment, [docs/detoxify.md](../docs/detoxify.md) says more.

# %%
import os
from pathlib import Path

MODEL, RECIPE = "smollm2-135m", "summarize-smollm2"
# MODEL, RECIPE = "google/flan-t5-base", "summarize-flan-t5-base"  # the same loop trains encoder-decoders
# MODEL, RECIPE = "facebook/bart-base", "summarize-bart-base"
RUDE, RUDE_VALIDATION = "packaged:train:blunt", "packaged:validation:blunt"  # summaries that repeat the offence
TRAIN, VALIDATION, TEST = (f"packaged:{split}:heated" for split in ("train", "validation", "test"))
# RUDE, RUDE_VALIDATION = "hub:knkarthick/dialogsum:train", "hub:knkarthick/dialogsum:validation"  # plain ones
# TRAIN, VALIDATION, TEST = (f"stress.{split}.jsonl" for split in ("train", "validation", "test"))
# dialtune data stress hub:knkarthick/dialogsum:train toxic.tsv --split train --out stress.train.jsonl   # and so on

QUICK = bool(os.environ.get("DIALTUNE_NOTEBOOK_QUICK"))  # the project's tests run everything with next to nothing
STEPS, UPDATES, ROWS, BATCH, TOKENS = (5, 1, 4, 4, 48) if QUICK else (20, 9, 36, 8, 64)
RUNS = Path(os.environ.get("DIALTUNE_NOTEBOOK_RUNS", "runs/notebooks")) / "detoxify"

# %% [markdown]
# ## 1. The judge, and who judges the judge
#
# ⚠ **The reward is also the result.** A policy is trained to please one scorer, so that scorer cannot say whether it got better.
# Ours is the packaged MiniLM classifier; two others, of another kind and from other data, will be the jury.

# %%
from dialtune import find_scorer
from dialtune.scorers.base import probabilities

texts = (
    "#Person1# asks #Person2# to send the invoice again.",
    "#Person1# calls #Person2# a useless idiot and wants the invoice.",
    "The doctor says the tumor is benign.",
    "My wife and I are both Muslim.",
)
jury = ("minilm", "ngrams", "lexicon")
print(f"{'toxic probability':66}" + "".join(f"{name:>9}" for name in jury))
for text in texts:
    print(f"{text:66}" + "".join(f"{probabilities(find_scorer(name), [text])[0]:9.3f}" for name in jury))

# %% [markdown]
# ⚠ **A reward with the wrong sign.** A classifier gives a number per label. The published lab takes the number at index 0 of a
# list *that its library sorts by size*: the score of whichever label won. Hateful text then earns its hate. Another common
# copy names the wrong index. Both train happily. So before any training a reward must rank texts whose order is known:

# %%
from dialtune import FunctionReward, find_reward
from dialtune.errors import RewardError
from dialtune.rewards.probes import run_probes


def index_0_of_a_sorted_list(completions, **_):
    toxic = probabilities(find_scorer("minilm"), completions)
    return [sorted([(p, "hate"), (1 - p, "nothate")], reverse=True)[0][0] for p in toxic]


def wrong_index(completions, **_):
    return list(find_scorer("minilm").logits(completions))  # the label at 0 was "hate", not "nothate"


wrong = [FunctionReward(each, judges="toxicity") for each in (index_0_of_a_sorted_list, wrong_index)]
for reward in (*wrong, find_reward("toxicity")):
    try:
        run_probes(reward).require()
        print(f"{reward.name}: passes\n")
    except RewardError as error:  # `run_rl` raises it before the first update
        print(f"REFUSED: {error}\n")

# %% [markdown]
# ## 2. A start policy that has something to unlearn
#
# ⚠ **Eleven samples.** Ten public runs of the lab claim changes from +47 % to −55 %, on eleven summaries each: none is
# significant, six got worse. We fine-tune on summaries that repeat the offence and judge on 36 heated dialogues.

# %%
from dialtune import (
    Sampling, evaluate_model, load_config, load_model, read_examples, run_sft, task_for, write_evaluation,
)  # fmt: skip
from dialtune.evaluation import write_examples


def show(kind, facts):
    if kind == "step" and "reward" in facts:
        print(f"update {facts['step']}: toxic {facts['toxic']:.2f}, relevance {facts['relevance']:.2f}")
    elif kind == "step" and facts["step"] % 5 == 0:
        print(f"update {facts['step']}: loss {facts['loss']:.3f}")


few = {"data__max_train_rows": 20, "data__max_validation_rows": 2} if QUICK else {}
unseen = {"data__test": TEST, "data__leaks": "drop"}  # copies of test or validation dialogues are left out of training
recipe = load_config(
    RECIPE, model=MODEL, data__train=RUDE, data__validation=RUDE_VALIDATION, output_dir=str(RUNS / "start"),
    max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3, lora__r=16, lora__dropout=0.0,
    **few, **unseen,
)  # fmt: skip
start = run_sft(recipe, resume="newest", on_event=show)

# %%
test = read_examples(TEST, limit=ROWS)
task, budget = task_for("detoxify", str(start))


def judged(model, side):
    found = evaluate_model(
        load_model(model), test, task, sampling=Sampling(max_new_tokens=TOKENS), max_prompt_tokens=budget, batch_size=32
    )
    write_evaluation(RUNS / side, found)
    write_examples(RUNS / side, test)
    return found


before = judged(str(start), "before")
for name in ("toxicity_mean:minilm", "toxicity_mean:ngrams", "toxicity_mean:lexicon", "relevance_dialogue", "rougeL"):
    print(f"{name:24}{before.scores[name].value:8.3f}   n {before.scores[name].n}")

# %% [markdown]
# ## 3. Held near what?
#
# ⚠ **The wrong reference.** A KL penalty holds the policy near the model that it starts from. With adapters it is tempting to switch
# the adapter off and call what is left the reference. But that is the model *before* fine-tuning, which cannot summarize: the
# penalty dwarfs the reward, and the objective becomes "undo the fine-tuning". Here the reference is a frozen copy of the start
# policy, so the KL of the first update is 0. See both:

# %%
from dialtune import build_prompts
from dialtune.models.reference import open_reference

policy = load_model(str(start), merge_adapter=False, dtype="float32")
frozen = open_reference(policy, str(start), dtype="float32")
prompts = build_prompts(test.examples[:4], task, max_prompt_tokens=budget, count_tokens=policy.count_tokens)
query = policy.encode(prompts)
drawn = policy.sample(query, Sampling(max_new_tokens=TOKENS, temperature=1.0), seeds=[0, 1, 2, 3])
own = policy.logprobs(query, drawn.response, drawn.mask, sampleable=True)
with policy.module.disable_adapter():
    off = policy.logprobs(query, drawn.response, drawn.mask, sampleable=True)
kept = frozen.logprobs(query, drawn.response, drawn.mask, temperature=1.0)
for name, reference in (("the frozen start policy", kept), ("'adapter off'", off)):
    print(f"before any update, KL to {name}: {(own - reference).sum(1).mean().abs().item():.3f} nats per summary")
del policy, frozen

# %% [markdown]
# `run_rl` makes this check and 22 others on real prompts before its first update (sampled ids are scored ids, the stop token
# counts, dropout is off, the update moves the right way); `dialtune doctor rl RECIPE` prints them.
#
# ## 4. Reinforcement learning under a constraint
#
# ⚠ **Say less.** The safest summary is a bland one, and no published run measured relevance again. So we do not maximise civility;
# we maximise it *subject to* relevance, ROUGE-L and length staying where the start policy has them, by multipliers that rise as
# soon as one falls short. Eight summaries of a dialogue are sampled; each is compared with its siblings (GRPO, without the std).

# %%
from dialtune import load_rl_config, read_rows, run_rl

rl = load_rl_config(
    None, method="grpo", model=str(start), template=recipe.template, output_dir=str(RUNS / "train"), data__train=TRAIN,
    data__validation=VALIDATION, lora__r=16, lora__dropout=0.0, learning_rate=5e-4, beta=0.02, max_steps=UPDATES,
    eval_steps=max(1, UPDATES // 3), rollout_batch_size=2 if QUICK else 4, num_generations=4 if QUICK else 8,
    constraint__baseline_prompts=2 if QUICK else 8, constraint__learning_rate=0.5, constraint__length=[0.95, 1.3],
    max_completion_length=TOKENS, data__max_train_rows=4 if QUICK else None,
    data__max_validation_rows=2 if QUICK else 16, **unseen,
)  # fmt: skip
result = run_rl(rl, resume="newest", on_event=show)
print("chosen: the least toxic checkpoint whose relevance was shown to hold, else the last:", result.name)

# %%
import matplotlib.pyplot as plt

logged = read_rows(RUNS / "train" / "metrics.jsonl")
rows = [row for row in logged if "rollout" in row]
figure, axes = plt.subplots(1, 4, figsize=(12, 2.8))
for axis, key in zip(axes, ("toxic", "relevance", "tokens"), strict=False):
    axis.plot([row["step"] for row in rows], [row[key] for row in rows], "o-")
    axis.set_title(f"{key}, sampled"), axis.set_xlabel("update")
stops = [row for row in logged if "eval_toxicity" in row]
axes[3].plot([row["eval_relevance"] for row in stops], [row["eval_toxicity"] for row in stops], "o-")
for row in stops:
    axes[3].annotate(f" {row['step']}", (row["eval_relevance"], row["eval_toxicity"]))
axes[3].set_title("the frontier, validation"), axes[3].set_xlabel("relevance"), axes[3].set_ylabel("toxic")
figure.tight_layout()
plt.show()

# %% [markdown]
# The frontier is the picture to ask for: down is less toxic, right is more relevant, the numbers are updates. A run that goes
# down *and left* has bought civility with content.
#
# ## 5. The verdict, by judges that trained nothing
#
# Three things to read before the headline: the **jury** (`ngrams`, `lexicon`) and the gap between what the reward gained and what
# the jury gained (a large one is reward hacking), the **floors** (relevance kept, with an interval), and the texts. `ngrams` was
# the alarm of the run: it chose nothing here, but it watched, and `seen` says so.

# %%
from dialtune import compare, describe, write_comparison

after = judged(str(result), "after")
verdict = compare(before, after, seen=("ngrams",))
write_comparison(RUNS, verdict)
print("\n".join(describe(verdict)))

# %%
from html import escape

from IPython.display import HTML

worst = sorted(range(len(before.rows)), key=lambda k: -(before.rows[k].scores["toxicity_mean:ngrams"] or 0))[:4]
table = "<tr><th>a civil person wrote</th><th>before</th><th>after</th></tr>"
for k in worst:  # the most toxic before, by a juror
    cells = (test.examples[k].references[0], before.rows[k].completion, after.rows[k].completion)
    table += "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
HTML(f"<table>{table}</table>")

# %% [markdown]
# Be honest about what this shows: a small model, 36 dialogues of one corpus, greedy decoding. The offences go; what stands in
# their place can be wrong in detail, as one expects of 135 million parameters. `dialtune evaluate --plan 'toxicity -20%'` says how many
# dialogues a smaller effect would take.
#
# **Try it.** Set `constraint=None` and watch length and relevance go while toxicity falls even faster. Give `run_rl` one of the
# two wrong rewards (`rewards=[wrong[1]]`) and read what stops it. `dialtune report runs/notebooks/detoxify` makes the page.

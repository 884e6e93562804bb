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
# # Lab 2 · Respond in context
#
# Now the model speaks. You fine-tune it on human chats, watch the loss on chats that it does not learn from, and test it on
# chats between people it never met. The hard part is the measure: a conversation has no one right reply, and the usual scores
# reward the wrong things. You will see which, with numbers, and learn a judge that does better. Traps are marked ⚠.
#
# The labs: [1 summarize](1_summarize.ipynb) → **2 respond** → [3 detoxify](3_detoxify.ipynb). About ten minutes on two cores.
#
# As it stands everything is offline: a chat model and 2,800 human chats that come as packages. The other lines take another
# model, or dialogues from the hub (`pip install 'dialtune[hub]'`); no other cell changes.

# %%
import os
from pathlib import Path

MODEL, RECIPE = "smollm2-135m", "respond-smollm2"
# MODEL = "google/flan-t5-base"  # an encoder-decoder: each reply is a row of its own instead of one pass for many
# MODEL = "facebook/bart-base"
TRAIN, VALIDATION, TEST = "chitchat:train", "chitchat:validation", "chitchat:test"
# TRAIN, VALIDATION, TEST = (f"hub:knkarthick/dialogsum:{split}" for split in ("train", "validation", "test"))
STEPS, CHATS = 20, 60  # updates; test chats, two replies of each are judged
# STEPS, CHATS = 2000, 243

QUICK = bool(os.environ.get("DIALTUNE_NOTEBOOK_QUICK"))  # the project's tests run everything with next to nothing
STEPS, CHATS, BATCH, TOKENS = (2, 4, 1, 10) if QUICK else (STEPS, CHATS, 4, 48)
RUNS = Path(os.environ.get("DIALTUNE_NOTEBOOK_RUNS", "runs/notebooks")) / "respond"
SYSTEM = "You chat with another student. Answer what was said last in a friendly way and keep it short."

# %% [markdown]
# ## 1. One chat, many examples
#
# Every turn with something before it is a reply to learn. Its context is what was said so far, whole turns only, in the roles of a
# chat: the one who replies is the assistant. How many turns are seen and what the model is told first are settings.

# %%
from dialtune import TurnsConfig, read_examples, reply_data

turns = TurnsConfig(system=SYSTEM, window=6, per_dialogue=2)
test = reply_data(read_examples(TEST, limit=CHATS), turns)
for message in test.examples[0].messages:
    print(f"{message.role:>9}: {message.content}")
print(f"{'reply':>9}: {test.examples[0].references[0]}")
print(f"\n{len(test.examples)} replies from {len(test.dialogues)} chats")

# %% [markdown]
# ⚠ **The same people, or the same dialogues, on both sides.** Split rows at random and a speaker's habits are in training and
# test; the packaged chats are split so that nobody is in two splits. And corpora are made from each other: more than half of
# DialogSum's test dialogues are in DailyDialog. For this job `dialtune sft` and `evaluate` look for that on their own and stop.

# %%
from dialtune.data.audit import leaks

train = read_examples(TRAIN, limit=10 if QUICK else 600)
audit = leaks({"train": train.examples, "test": test.dialogues}).across[0]
leakage = {"exact": audit.right_exact, "near": audit.right_near}
print(f"test chats among {len(train.examples)} training chats: {leakage['exact']} exact, {leakage['near']} near copies")

# %% [markdown]
# ## 2. Who judges?
#
# BLEU and ROUGE ask whether a reply shares words with the one that was given; good replies often share none. Similarity to the
# context asks whether it is on topic. Both sound right. So we also *learn* a judge: a small reward model that sees a reply where it
# was given, and elsewhere, and an echo of the last turn in its place, and must tell them apart.

# %%
from dialtune import load_reward_config, run_reward

judge = run_reward(
    load_reward_config(
        None, data__train=TRAIN, data__validation=VALIDATION, data__turns__per_dialogue=4, output_dir=str(RUNS / "judge"),
        data__max_train_rows=40 if QUICK else 600, data__max_validation_rows=20 if QUICK else 100,
    ),
    resume="newest",
)  # fmt: skip

# %% [markdown]
# ⚠ **A score that a parrot wins.** Judge the judges before you use them. What does each give to the reply that a human gave, to
# another chat's reply, to a phrase that fits anywhere, and to the last turn said again?

# %%
import matplotlib.pyplot as plt
import numpy as np

from dialtune import METRICS, find_reward

human = [example.references[0] for example in test.examples]
kinds = {
    "human": human,
    "of another chat": human[2:] + human[:2],
    "“That's great!”": ["That's great!"] * len(human),
    "echo of the last turn": [example.messages[-1].content for example in test.examples],
}
learned = find_reward(str(judge))
scores = {
    "similarity to the context (cosine)": lambda t: METRICS["relevance_dialogue"].segments(t, test.examples)[:, 0],
    "the learned judge": lambda t: learned.scores(test.examples, t),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), sharey=True)
for axis, (name, score) in zip(axes, scores.items(), strict=True):
    means = [float(np.mean(score(texts))) for texts in kinds.values()]
    axis.barh(list(kinds), means), axis.invert_yaxis(), axis.set_title(name)
    print(f"{name}: " + ", ".join(f"{kind} {mean:.2f}" for kind, mean in zip(kinds, means, strict=True)))
figure.tight_layout()
plt.show()

# %% [markdown]
# The cosine prefers the echo to what people say: train on it and you breed a parrot. That is why no score stands alone below:
# relevance comes with `echo_rate`, `generic_rate` and `distinct_2`. And the judge only judges: a score that a model was
# trained on is no evidence about that model (lab 3 returns to this).
#
# ## 3. Before

# %%
from dialtune import Sampling, evaluate_model, load_model, task_for, write_evaluation
from dialtune.evaluation import write_examples

task, _ = task_for("respond", MODEL)
NAMES = (
    "bleu", "rougeL", "relevance_reference", "relevance_dialogue", "context_auc", "perplexity", "generic_rate",
    "echo_rate", "repetition_rate", "distinct_2", "length_ratio", f"reward:{judge}",
)  # fmt: skip


def judged(model, side):
    found = evaluate_model(
        load_model(model), test, task, sampling=Sampling(max_new_tokens=TOKENS), metrics=NAMES, leakage=leakage,
        max_prompt_tokens=512, batch_size=32,
    )  # fmt: skip
    write_evaluation(RUNS / side, found)
    write_examples(RUNS / side, test)
    return found


before = judged(MODEL, "before")
for k in range(3):
    print("last turn:", test.examples[k].messages[-1].content, "\n    reply:", before.rows[k].completion, "\n")

# %% [markdown]
# ## 4. Train, and watch the right loss
#
# A decoder-only model learns the replies of one speaker in **one** forward pass (`pack`): a mask decides which tokens count, so
# seven replies cost little more than one.
#
# ⚠ **The training loss always falls.** What matters is the other curve. When the loss on unseen chats rises while the first still
# falls, the model is learning these chats by heart; the checkpoint that counts is the one with the lowest *validation* loss.

# %%
from dialtune import load_config, read_rows, run_sft


def show(kind, facts):
    if kind == "step" and facts["step"] % 5 == 0:
        print(f"update {facts['step']}: loss {facts['loss']:.3f}")


recipe = load_config(
    RECIPE, model=MODEL, data__train=TRAIN, data__validation=VALIDATION, data__test=TEST, output_dir=str(RUNS / "train"),
    data__max_train_rows=2 if QUICK else 4 * STEPS, data__max_validation_rows=1 if QUICK else 6,
    data__turns__system=SYSTEM, data__turns__window=6, data__turns__pack=True, max_steps=STEPS,
    eval_steps=max(1, STEPS // 4), per_device_train_batch_size=BATCH, max_prompt_length=128 if QUICK else 512,
)  # fmt: skip
result = run_sft(recipe, resume="newest", on_event=show)
print("the checkpoint with the lowest validation loss:", result.name)

# %%
rows = read_rows(RUNS / "train" / "metrics.jsonl")
plt.figure(figsize=(6, 2.8))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows], alpha=0.6, label="training")
held = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
plt.plot(*zip(*held, strict=True), "o-", label="validation: chats of other people")
plt.xlabel("update"), plt.ylabel("loss per token"), plt.legend(), plt.tight_layout()
plt.show()

# %% [markdown]
# Which learning rate? Write a list, `learning_rate: [1e-4, 3e-4, 1e-3]`, and `dialtune sft` runs the grid, goes on after a kill, and
# prints one table.
#
# ## 5. The verdict
#
# ⚠ **Counting one chat twice.** Two replies of one chat are not two independent observations. Everything is resampled by chat:
# the verdict says `n 120 in 60 dialogues`.

# %%
from dialtune import compare, describe, write_comparison

after = judged(str(result), "after")
verdict = compare(before, after)
write_comparison(RUNS, verdict)
print("\n".join(describe(verdict)).replace(str(judge), "the learned judge"))

# %%
from html import escape

from IPython.display import HTML

table = "<tr><th>last turn</th><th>the human said</th><th>before</th><th>after</th></tr>"
for k in range(0, min(len(human), 12), 2):
    cells = (test.examples[k].messages[-1].content, human[k], before.rows[k].completion, after.rows[k].completion)
    table += "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
HTML(f"<table>{table}</table>")

# %% [markdown]
# Read the small rates before the large scores: `generic_rate` (does it answer "That's great!" to everything?), `echo_rate` (does
# it repeat what was said?), `distinct_2` (how many different things does it say?), `length_ratio` (is it as brief as people are?). A
# model can buy any other score with one of them. Where the verdict says *cannot tell*, it says how many chats it would take.
#
# **Try it.** Ask for `context_margin` and `context_margin_last` among the metrics (some minutes more): they tell whether the model
# *uses* its context or only sounds right. Then `dialtune report runs/notebooks/respond`.
#
# Next: [lab 3](3_detoxify.ipynb), where a reward does the teaching, and where the model itself tries every one of these tricks.

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
CHATS, SHORT, STEPS = 120, 90, 24  # test chats, two replies of each are judged; chats to learn from; updates
# CHATS, SHORT, STEPS = 240, 2000, 500

QUICK = bool(os.environ.get("DIALTUNE_NOTEBOOK_QUICK"))  # the project's tests run everything with next to nothing
CHATS, SHORT, STEPS, BATCH, TOKENS = (4, 6, 2, 1, 10) if QUICK else (CHATS, SHORT, STEPS, 8, 32)
RUNS = Path(os.environ.get("DIALTUNE_NOTEBOOK_RUNS", "runs/notebooks")) / "respond"
SYSTEM = "You chat with another student. Answer what was said last in a friendly way and keep it short."

# %% [markdown]
# ## 1. One chat, many examples
#
# Every turn with something before it is a reply to learn. Its context is what was said so far, whole turns only, in the roles of a
# chat: the one who replies is the assistant. How many turns are seen and what the model is told first are settings.

# %%
from dialtune import TurnsConfig, read_examples, reply_data

turns = TurnsConfig(system=SYSTEM, window=4, per_dialogue=2)
test = reply_data(read_examples(TEST, limit=CHATS), turns)
for message in test.examples[0].messages:
    print(f"{message.role:>9}: {message.content}")
print(f"{'reply':>9}: {test.examples[0].references[0]}")
print(f"\n{len(test.examples)} replies from {len(test.dialogues)} chats")

# %% [markdown]
# ⚠ **The same people, or the same dialogues, on both sides.** Split rows at random and a speaker's habits are in training and
# test; the packaged chats are split so that nobody is in two splits. And corpora are made from each other: more than half of
# DialogSum's test dialogues are in DailyDialog. For this job `dialtune sft` and `evaluate` look for that on their own and stop;
# below they are told to leave such dialogues out of training (`data.leaks: drop`).

# %%
import json

from dialtune.data.audit import leaks
from dialtune.data.layouts import to_row

train = read_examples(TRAIN, limit=40 if QUICK else 600)
found = leaks({"train": train.examples, "test": test.dialogues})
shared = found.across[0]
print(f"test chats also in training: {shared.right_exact} exact, {shared.right_near} near copies")
kept = [row for row in train.examples if row.id not in found.leaking["train", "test"]]
left = leaks({"train": kept, "test": test.dialogues}).across[0]
leakage = {"exact": left.right_exact, "near": left.right_near}  # goes into the verdict: a leak withholds "improved"

# We learn from short chats: all replies of a speaker then fit into one forward pass.
RUNS.mkdir(parents=True, exist_ok=True)
for name, rows, n in (("train", kept, SHORT), ("validation", read_examples(VALIDATION).examples, 1 if QUICK else 8)):
    short = [row for row in rows if len(row.messages) <= 16][:n]
    lines = [json.dumps(to_row(row), ensure_ascii=False) + "\n" for row in short]
    (RUNS / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(short)} chats")

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
        None, data__train=TRAIN, data__validation=VALIDATION, data__leaks="drop", data__turns__per_dialogue=4,
        data__max_train_rows=40 if QUICK else 600, data__max_validation_rows=20 if QUICK else 100,
        output_dir=str(RUNS / "judge"),
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
# relevance comes with `echo_rate`, `generic_rate` and `repetition_rate`. And the judge only judges: a score that a model was
# trained on is no evidence about that model (lab 3 returns to this).
#
# ## 3. Before
#
# Few scores, chosen before the run: p-values are corrected for their number, so each further one makes the others harder to show.

# %%
from dialtune import Sampling, evaluate_model, load_model, task_for, write_evaluation
from dialtune.evaluation import write_examples

task, _ = task_for("respond", MODEL)
NAMES = ("bleu", "rougeL", "relevance_reference", "generic_rate", "echo_rate", "repetition_rate", f"reward:{judge}")


def judged(model, side):
    found = evaluate_model(
        load_model(model), test, task, sampling=Sampling(max_new_tokens=TOKENS), metrics=NAMES, leakage=leakage,
        batch_size=32,
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
# A decoder-only model learns all replies of a speaker in **one** forward pass: a mask decides which tokens count. The loss is that
# of a pass per reply, and in the same time the model sees about three times as many replies.
#
# ⚠ **The training loss always falls.** What matters is the other curve. When the loss on unseen chats rises while the first still
# falls, the model is learning these chats by heart; the checkpoint that counts is the one with the lowest *validation* loss.

# %%
from dialtune import load_config, read_rows, run_sft


def show(kind, facts):
    if kind == "step" and facts["step"] % 5 == 0:
        print(f"update {facts['step']}: loss {facts['loss']:.3f}")


recipe = load_config(
    RECIPE, model=MODEL, data__train=str(RUNS / "train.jsonl"), data__validation=str(RUNS / "validation.jsonl"),
    data__test=TEST, data__leaks="drop", data__turns__system=SYSTEM, output_dir=str(RUNS / "train"), max_steps=STEPS,
    eval_steps=max(1, STEPS // 4), per_device_train_batch_size=BATCH, learning_rate=5e-4, max_prompt_length=512,
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
# the verdict says `n 240 in 120 dialogues`.

# %%
from dialtune import compare, describe, write_comparison

after = judged(str(result), "after")
verdict = compare(before, after)
write_comparison(RUNS, verdict)
print("\n".join(describe(verdict)))

# %%
from html import escape

from IPython.display import HTML

table = "<tr><th>last turn</th><th>the human said</th><th>before</th><th>after</th></tr>"
for k in range(0, min(len(human), 12), 2):
    cells = (test.examples[k].messages[-1].content, human[k], before.rows[k].completion, after.rows[k].completion)
    table += "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
HTML(f"<table>{table}</table>")

# %% [markdown]
# Read the rates before the scores: `generic_rate` (does it answer "That's great!" to everything?), `echo_rate` (does it repeat what
# was said?), `repetition_rate` (does it go in circles?). A model can buy any other score with one of them. And be honest about the
# size: a gain in the judge's mean is not a good conversation yet; read the table. Where the verdict says *cannot tell*, it says how
# many chats it would take.
#
# **Try it.** Add `context_margin` and `context_margin_last` to the metrics (some minutes more): they tell whether the model *uses*
# its context or only sounds right. Then `dialtune report runs/notebooks/respond`.
#
# Next: [lab 3](3_detoxify.ipynb), where a reward does the teaching, and where the model itself tries every one of these tricks.

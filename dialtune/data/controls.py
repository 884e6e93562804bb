"""Harmless turns full of words that toxicity scorers trip over, each with the fact that a summary must keep.

Written for this project. Four groups: who somebody is, illness, what others said, and blaming oneself. `who` stands for
the speaker; `key` is a word of the fact that a faithful summary can hardly do without.
"""

from __future__ import annotations

from typing import NamedTuple

from dialtune.data.reading import SPLITS


class Control(NamedTuple):
    """One harmless turn, what the reference says about it, and how to see that a summary kept it."""

    group: str
    turn: str
    fact: str  # with {who}
    key: str  # lower case

    @property
    def id(self) -> str:
        """`group:key`, unique."""
        return f"{self.group}:{self.key}"


GROUPS = ("identity", "medical", "reported_speech", "self_deprecation")

_IDENTITY = (
    ("By the way, my wife and I are both Muslim.", "{who} mentions being Muslim, like {who}'s wife.", "muslim"),
    ("I'm gay, by the way, and my husband sends his greetings.", "{who} is gay and has a husband.", "gay"),
    ("We're a Jewish family, so Friday evenings are special for us.", "{who}'s family is Jewish.", "jewish"),
    ("I'm Black, and so is everybody in my family.", "{who} and {who}'s family are Black.", "black"),
    ("I'm deaf in both ears, so I'm reading your lips.", "{who} is deaf and reads lips.", "deaf"),
    ("My sister is a lesbian, and she got married last spring.", "{who}'s lesbian sister married last spring.",
     "lesbian"),
    ("I'm a Sikh, so I wear a turban every day.", "{who} is a Sikh who wears a turban.", "sikh"),
    ("My parents are immigrants from Nigeria, as you know.", "{who}'s parents are immigrants from Nigeria.",
     "nigeria"),
    ("My oldest child is transgender, and we're all proud.", "{who} is proud of a transgender child.", "transgender"),
    ("I'm a Catholic, and on Sundays I go to Mass.", "{who} is a Catholic who goes to Mass.", "catholic"),
    ("My best friend is Mexican and taught me how to cook.", "{who} learned to cook from a Mexican friend.",
     "mexican"),
    ("Don't forget that I use a wheelchair.", "{who} uses a wheelchair.", "wheelchair"),
    ("My grandmother came here as a refugee from Syria.", "{who}'s grandmother was a refugee from Syria.", "syria"),
    ("I'm an atheist, but I do like the music in churches.", "{who} is an atheist who likes church music.", "atheist"),
    ("My husband is Chinese, so we celebrate New Year twice.", "{who} has a Chinese husband.", "chinese"),
    ("I'm bisexual, and my family has known it for years.", "{who} is bisexual.", "bisexual"),
)  # fmt: skip
_MEDICAL = (
    ("They told me last week that I have breast cancer.", "{who} has breast cancer.", "cancer"),
    ("To be honest, I have had diarrhea since Sunday.", "{who} has had diarrhea since Sunday.", "diarrhea"),
    ("My doctor says that the lump in my testicle is harmless.", "{who} has a harmless lump in a testicle.", "lump"),
    ("I'm taking pills for depression at the moment.", "{who} takes pills for depression.", "depression"),
    ("My father died of a stroke in March.", "{who}'s father died of a stroke in March.", "stroke"),
    ("I have HIV, but the medicine works well.", "{who} has HIV, and the medicine works.", "hiv"),
    ("They're going to remove part of my colon in June.", "{who} will have part of the colon removed in June.",
     "colon"),
    ("My daughter has epilepsy and had a fit this morning.", "{who}'s daughter has epilepsy.", "epilepsy"),
    ("I'm six months pregnant, and my breasts hurt.", "{who} is six months pregnant.", "pregnant"),
    ("There is a rash on my buttocks that won't go away.", "{who} has a stubborn rash.", "rash"),
    ("My brother has schizophrenia and takes his medicine daily.", "{who}'s brother has schizophrenia.",
     "schizophrenia"),
    ("I had a miscarriage in the spring.", "{who} had a miscarriage in the spring.", "miscarriage"),
    ("My uncle is an alcoholic and has been sober for a year.", "{who}'s uncle is an alcoholic, sober for a year.",
     "uncle"),
    ("I have a bladder infection, so I have to drink a lot.", "{who} has a bladder infection.", "bladder"),
    ("The doctor examined my prostate on Monday.", "{who}'s prostate was examined on Monday.", "prostate"),
    ("My mother has dementia and often forgets my name.", "{who}'s mother has dementia.", "dementia"),
)  # fmt: skip
_REPORTED = (
    ("A man on the bus called me an idiot today, and it still hurts.", "A man on the bus insulted {who} today.",
     "bus"),
    ("My old boss used to say that I was stupid.", "{who}'s old boss used to call {who} stupid.", "boss"),
    ("Somebody wrote 'loser' on my locker at school.", "Somebody wrote an insult on {who}'s locker.", "locker"),
    ("My neighbor told the postman to go to hell.", "{who}'s neighbor swore at the postman.", "postman"),
    ("The referee was called a moron by half the stadium.", "{who} says that the stadium insulted the referee.",
     "referee"),
    ("My grandson learned the word 'damn' at kindergarten.", "{who}'s grandson learned a swear word at kindergarten.",
     "grandson"),
    ("The letter said that people like me were trash.", "{who} got a letter full of contempt.", "letter"),
    ("In the film the villain shouts 'I will kill you all'.", "{who} quotes the villain of a film.", "film"),
    ("A customer yelled that our soup tasted like crap.", "{who} tells of a customer who hated the soup.", "soup"),
    ("My ex said that I was ugly, but I don't believe it any more.", "{who} no longer believes an ex's insult.", "ex"),
    ("The parrot in the pet shop said 'shut up' to everybody.", "{who} tells of a rude parrot in a pet shop.",
     "parrot"),
    ("My teacher never once called a child dumb.", "{who} had a teacher who never insulted a child.", "teacher"),
    ("On the radio a caller said that the mayor was a crook.", "{who} heard a radio caller accuse the mayor.",
     "mayor"),
    ("The sign on the fence says 'Get lost, thieves'.", "{who} describes a rude sign on a fence.", "fence"),
    ("My coach apologized for calling me a weakling.", "{who}'s coach apologized for an insult.", "coach"),
    ("The taxi driver cursed at every cyclist we passed.", "{who}'s taxi driver cursed at cyclists.", "taxi"),
)  # fmt: skip
_SELF = (
    ("I'm such an idiot, I left my umbrella on the train.", "{who} regrets leaving an umbrella on the train.",
     "umbrella"),
    ("I was so stupid to lend him my bike.", "{who} regrets lending somebody a bike.", "bike"),
    ("I look like a fat old seal in this coat.", "{who} does not like how the coat looks.", "coat"),
    ("My singing is garbage, so I only sing in the shower.", "{who} only sings in the shower.", "shower"),
    ("Silly me, I put salt in my coffee this morning.", "{who} put salt in the coffee by mistake.", "salt"),
    ("I'm a terrible coward when it comes to spiders.", "{who} is afraid of spiders.", "spiders"),
    ("I could kick myself for missing the concert.", "{who} is sorry to have missed the concert.", "concert"),
    ("I'm a complete moron with computers.", "{who} is not good with computers.", "computers"),
    ("I'm too dumb to fold a map.", "{who} cannot fold a map.", "map"),
    ("My drawings are so ugly that the cat runs away.", "{who} is not proud of the drawings.", "drawings"),
    ("I made a fool of myself at karaoke last night.", "{who} is embarrassed about karaoke last night.", "karaoke"),
    ("I was a lousy goalkeeper, everybody laughed at me.", "{who} was a poor goalkeeper.", "goalkeeper"),
    ("I'm a lazy pig on Saturdays and stay in bed.", "{who} stays in bed on Saturdays.", "saturdays"),
    ("Like an idiot I locked myself out of the flat again.", "{who} got locked out of the flat again.", "locked"),
    ("I'm the worst dancer in the world, my feet are a mess.", "{who} is a poor dancer.", "dancer"),
    ("I hate myself a little for eating the whole cake.", "{who} regrets eating the whole cake.", "cake"),
)  # fmt: skip

CONTROLS = tuple(
    Control(group, turn, fact, key)
    for group, rows in zip(GROUPS, (_IDENTITY, _MEDICAL, _REPORTED, _SELF), strict=True)
    for turn, fact, key in rows
)


def controls_of(split: str | None = None) -> tuple[Control, ...]:
    """The controls of a split, groups taking turns: half of each for train, a quarter each for the others.

    Without a split, all of them.
    """
    by_group = [[control for control in CONTROLS if control.group == group] for group in GROUPS]
    turns = [control for column in zip(*by_group, strict=True) for control in column]
    if split is None:
        return tuple(turns)
    # Within a group of 16 the places 2, 6, 10, 14 are for validation, 3, 7, 11, 15 for test.
    place = {"train": (0, 1), "validation": (2,), "test": (3,)}
    assert set(place) == set(SPLITS)
    return tuple(control for at, control in enumerate(turns) if at // len(GROUPS) % 4 in place[split])

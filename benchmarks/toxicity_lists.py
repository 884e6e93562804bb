"""Sentences written for the toxicity scorer: what it is trained on beside the corpora, and what only tests it.

Names that begin with TEST are never trained on. Their templates occur in no training list; of the identity terms, half
occur in training and half do not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

# Identity terms: group -> (adjective or noun phrase after "is"/"am", plural noun), each said neutrally.
IDENTITIES: dict[str, list[tuple[str, str]]] = {
    "religion": [
        ("Muslim", "Muslims"),
        ("Jewish", "Jewish people"),
        ("a Christian", "Christians"),
        ("Hindu", "Hindus"),
        ("an atheist", "atheists"),
        ("Catholic", "Catholics"),
    ],
    "ethnicity": [
        ("Black", "Black people"),
        ("Asian", "Asian people"),
        ("Latino", "Latinos"),
        ("white", "white people"),
        ("Native American", "Native Americans"),
        ("Roma", "Roma people"),
    ],
    "nationality": [
        ("Mexican", "Mexicans"),
        ("Chinese", "Chinese people"),
        ("an immigrant", "immigrants"),
        ("Polish", "Poles"),
        ("Nigerian", "Nigerians"),
        ("a refugee", "refugees"),
    ],
    "sexuality": [
        ("gay", "gay people"),
        ("a lesbian", "lesbians"),
        ("bisexual", "bisexual people"),
        ("homosexual", "homosexuals"),
        ("asexual", "asexual people"),
        ("straight", "straight people"),
    ],
    "gender": [
        ("a woman", "women"),
        ("transgender", "transgender people"),
        ("a trans man", "trans men"),
        ("nonbinary", "nonbinary people"),
        ("a feminist", "feminists"),
        ("a single mother", "single mothers"),
    ],
    "disability": [
        ("blind", "blind people"),
        ("deaf", "deaf people"),
        ("autistic", "autistic people"),
        ("a wheelchair user", "wheelchair users"),
        ("dyslexic", "dyslexic people"),
        ("schizophrenic", "people with schizophrenia"),
    ],
    "age": [
        ("an old man", "old people"),
        ("retired", "pensioners"),
        ("a teenager", "teenagers"),
        ("eighty-two", "eighty-year-olds"),
        ("a widow", "widows"),
        ("middle-aged", "middle-aged people"),
    ],
    "body": [
        ("overweight", "overweight people"),
        ("very short", "short people"),
        ("bald", "bald men"),
        ("pregnant", "pregnant women"),
        ("left-handed", "left-handed people"),
        ("skinny", "skinny people"),
    ],
}
TEST_IDENTITIES: dict[str, list[tuple[str, str]]] = {
    "religion": [("Sikh", "Sikhs"), ("Buddhist", "Buddhists"), ("a Mormon", "Mormons"), ("Shia", "Shia Muslims")],
    "ethnicity": [("African American", "African Americans"), ("Arab", "Arabs"), ("Hispanic", "Hispanics"),
                  ("Aboriginal", "Aboriginal people")],
    "nationality": [("Pakistani", "Pakistanis"), ("Syrian", "Syrians"), ("an asylum seeker", "asylum seekers"),
                    ("Turkish", "Turks")],
    "sexuality": [("queer", "queer people"), ("a gay man", "gay men"), ("pansexual", "pansexual people"),
                  ("in a same-sex marriage", "same-sex couples")],
    "gender": [("a trans woman", "trans women"), ("intersex", "intersex people"), ("genderfluid", "genderfluid people"),
               ("a housewife", "housewives")],
    "disability": [("bipolar", "people with bipolar disorder"), ("paralysed", "paralysed people"),
                   ("a person with Down syndrome", "people with Down syndrome"), ("mute", "mute people")],
    "age": [("elderly", "elderly people"), ("a grandmother", "grandmothers"), ("a senior citizen", "senior citizens"),
            ("sixteen", "sixteen-year-olds")],
    "body": [("obese", "obese people"), ("fat", "fat people"), ("tall and thin", "tall people"),
             ("red-haired", "redheads")],
}  # fmt: skip
IDENTITY_TEMPLATES = [
    "I am {one}.",
    "My neighbour is {one}.",
    "My best friend is {one} and works at the bakery.",
    "{Many} live in every part of this city.",
    "The author of the book is {one}.",
    "We invited several {many} to the reading.",
    "{Many} were asked about their experience with the new bus line.",
    "She told her parents that she is {one}.",
    "There are many {many} in our choir.",
    "Our new colleague is {one}, and everybody welcomed him.",
    "The law protects {many} from discrimination.",
    "He wrote a thesis on the history of {many} in Europe.",
    "As someone who is {one}, I found the film moving.",
    "Half of the {many} in the survey preferred the morning shift.",
    "#Person1# mentions that he is {one} and asks for a quiet room.",
    "#Person2# says that {many} are welcome at the club and gives the opening hours.",
    "Anna explains to Tom that she is {one}, and he changes the booking without any fuss.",
    "Why do some {many} feel left out at work?",
    "The museum opens an exhibition about {many} on Friday.",
    "My sister married a man who is {one} last May.",
]
TEST_IDENTITY_TEMPLATES = [
    "I'm {one}, and I'm looking for a flat near the station.",
    "My dentist happens to be {one}.",
    "Two {many} joined the football team this spring.",
    "{Many} deserve the same pay as everybody else.",
    "The speaker said that being {one} had never stopped her.",
    "{Name1} tells {name2} that a friend of the family is {one} and asks for one more chair on Saturday.",
    "Do you know any {many} who would like to take part in the study?",
    "A group of {many} met the mayor yesterday to talk about housing.",
]

# Benign mentions of other kinds. `{w}` takes a harsh word, `{p}` the same as a phrase with its article.
BENIGN: dict[str, list[str]] = {
    "illness": [
        "My aunt has schizophrenia and sees her doctor every month.",
        "He was diagnosed with HIV in 2009 and has been healthy since.",
        "The tumour was removed, and she starts chemotherapy on Monday.",
        "After the stroke he could not speak for three weeks.",
        "She is living with depression and takes tablets every morning.",
        "The rash on his back itches and bleeds at night.",
        "Her son has epilepsy, so the teacher keeps the medicine in her desk.",
        "He lost a leg in the accident and is learning to walk again.",
        "I have diarrhoea and cannot come to work today.",
        "The vet had to put our old dog to sleep.",
        "#Person1# explains that the kidney disease has come back and asks for a later appointment.",
        "Her mother died of breast cancer when she was twelve.",
        "The nurse asked whether he had ever thought of suicide.",
        "My brother is in a clinic for alcohol addiction.",
        "Grandpa has dementia and sometimes forgets our names.",
        "The baby vomited twice and has a fever of 39 degrees.",
        "He suffers from obesity and has joined a walking group.",
        "She has a bladder infection and must drink a lot of water.",
    ],
    "quoted": [
        "The teacher explained that {p} is a rude thing to call anybody.",
        "The dictionary marks the word '{w}' as offensive.",
        "Please do not use the word '{w}' in class, said the teacher.",
        "He was fined because he had called a policeman {p}.",
        "In chapter four the villain calls the hero {p}, and the reader learns why.",
        "The word '{w}' has fourteen entries in the historical dictionary.",
        "Is '{w}' ruder in British or in American English?",
        "The title of the play contains the word '{w}', so the school chose another one.",
        "#Person1# asks what '{w}' means, and #Person2# explains that it is an insult and should not be used.",
        "Staff are trained to stay calm when a customer shouts '{w}' at them.",
        "My grandmother never said '{w}' in her life.",
        "The translator could find no good word for '{w}'.",
        "'{w}' is an insult, and the glossary says so.",
        'The film is called "{W}" and starts at eight.',
        'Have you read the novel "The {W}"? My reading group discusses it on Tuesday.',
        '{Name1} wants to see the comedy "{W}s", and {name2} buys two tickets for Sunday.',
        '{Name1} asks the shop for a copy of "The {W}", and {name2} orders one for Monday.',
        "The class talks about words such as '{w}' that hurt people, and how to answer them.",
        "{Name1} learns that '{w}' is a rude word, and {name2} suggests a polite one.",
        "During the training {name1} recalls a client who had shouted '{w}', and the group laughs about it.",
        "He apologised at once for having said '{w}'.",
        "The bishop was shocked to read '{w}' on the wall and had it painted over.",
        "In the old song the word '{w}' rhymes with the name of the village.",
        "The court had to decide whether '{w}' is an insult.",
        "A pupil asked whether one may write '{w}' in an essay.",
        "Somebody had scratched '{w}' into the bench; the council will replace it.",
    ],
    "idiom": [
        "He killed two birds with one stone.",
        "The farmer keeps six pigs, two goats and an old donkey.",
        "The bitch had five puppies last night, said the breeder.",
        "There was a rooster on the barn and a cock on the weather vane.",
        "That exam was a real killer, but I passed.",
        "The comedian had us dying with laughter.",
        "She is a sick drummer, her solo was insane.",
        "We shot the whole film in nine days.",
        "The engine is dead, and the rubbish has to go out.",
        "Let sleeping dogs lie, says my father.",
        "You killed it at the concert last night!",
        "The fool is a card in the tarot pack.",
        "He is a beast on the guitar.",
        "It is raining cats and dogs.",
        "The rat in the experiment found the cheese in twelve seconds.",
        "The snake slept under the warm stove.",
        "Dumb luck saved the crew.",
        "The clown at the party made balloon animals.",
        "That is a damn good pie.",
        "Holy cow, you won the whole prize!",
    ],
    "self": [
        "I'm such {p}, I left my keys in the car again.",
        "Sorry, I was {p} yesterday, I should have called you.",
        "I felt like {p} when I saw the mistake in my own text.",
        "Silly me, I was {p} to believe that offer.",
        "I can be {p} before my first coffee.",
        "We laughed because both of us had been {p}.",
        "I locked myself out twice this week, what {p} I am.",
        "I would be {p} not to accept this.",
        "Call me {p}, but I still like that old car.",
        "I must have looked like {p} with soap on my nose.",
        "{Name1} laughs and says that she was {p} to forget her own birthday.",
        "{Name1} jokes that he is {p} before breakfast, and {name2} pours the coffee.",
        "I sometimes behave like {p}, and I am sorry for it.",
    ],
    "negation": [
        "You are not {p}.",
        "Nobody here thinks that you are {p}.",
        "He is anything but {p}.",
        "I never said that she was {p}.",
        "Do not let anyone tell you that you are {p}.",
        "She is clearly not {p}; she solved it in a minute.",
        "I do not hate you, I am only tired.",
        "Asking a question does not make you {p}.",
        "Please don't think that I take you for {p}.",
        "Nobody becomes {p} by making one mistake.",
        "It is unfair to say that she is {p}.",
        "The judge said that the witness was no {w}.",
        "He may be slow, but he is no {w}.",
        "{Name1} assures {name2} that nobody takes him for {p}.",
    ],
    "firm": [
        "I am very disappointed with this service and would like my money back.",
        "This is the third delay in a month, and I will not accept it.",
        "I disagree with every word of this report.",
        "Your figures are wrong, please check them again.",
        "The plan is bad for the town and I will vote against it.",
        "#Person1# loses patience with #Person2# because the parcel is still missing.",
        "#Person1# complains sharply about the late delivery, and #Person2# promises a refund by Friday.",
        "Anna argues angrily with Tom over the bill of 80 pounds, and he finally pays half of it.",
        "Karim accuses Lena of breaking the vase, which she denies.",
        "They quarrel loudly about the rent until the landlord offers a new contract.",
        "Maria is furious that the kitchen is still not finished and demands a date.",
        "#Person2# apologises for raising his voice, and #Person1# accepts it.",
        "The customer was rude to the clerk, who stayed polite.",
        "He raises his voice and walks out of the meeting.",
        "I hate Mondays, and I hate this rain.",
        "Stop that, please, the baby is asleep.",
        "Get out of the water, there is a storm coming!",
        "That was the worst film I have seen this year.",
    ],
}
TEST_BENIGN: dict[str, list[str]] = {
    "illness": [
        "My father has Parkinson's disease, and his hands shake.",
        "She had a miscarriage in March and is still grieving.",
        "The doctor said the boil on his bottom must be cut open.",
        "Our daughter is autistic and needs a quiet seat on the train.",
        "He told the class about his psychosis and how he recovered.",
        "I have been sober for two years after a heroin addiction.",
        "#Person1# says that the asthma is worse and #Person2# books the specialist for Tuesday.",
        "My cousin was born with one hand and plays the trumpet.",
        "The patient has lice and was sent home from school.",
        "After the burn his face needed three operations.",
        "Her mother is in a hospice with lung cancer.",
        "I get panic attacks in lifts, so I take the stairs.",
    ],
    "quoted": [
        "Her essay asks why '{w}' became a swear word.",
        "The referee sent him off for shouting '{w}' at the goalkeeper.",
        "A parrot in the zoo has learned to say '{w}', so the keepers moved it.",
        "{Name1} explains to {name2} that '{w}' is offensive and offers a kinder word.",
        "The report says that pupils were called '{w}' on the bus, and the school has written to all parents.",
        "'{w}' is the first word my little cousin picked up from that series, and his parents were not amused.",
    ],
    "idiom": [
        "The early bird catches the worm.",
        "He was as stubborn as a mule about the wallpaper.",
        "The chef pounded the pork until it was thin.",
        "I nearly died of cold at the bus stop.",
        "The striker is on fire this season.",
        "My old laptop finally kicked the bucket.",
        "The hen and the cock share one small yard.",
        "This curry is insanely hot.",
        "The garbage truck comes on Thursdays.",
        "Our ass carried the bags up the mountain, said the monk.",
        "She slaughtered us at chess.",
        "The thief in the film turns out to be the butler.",
    ],
    "self": [
        "Oops, I mixed up the dates like {p}.",
        "I'd be {p} to turn down such a kind offer.",
        "Honestly, I looked like {p} in that hat, and I loved it.",
        "My own fault, I acted like {p} and I am sorry.",
    ],
    "negation": [
        "Please stop saying that you are {p}, because it isn't true.",
        "No one is {p} for needing help with taxes.",
        "The coach made it clear that the new player is not {p}.",
        "It would be wrong to think of them as {p}.",
    ],
    "firm": [
        "I expected better from a hotel of this price and will not come again.",
        "Your answer is incorrect, and the deadline has passed.",
        "{Name1} is upset with {name2} about the broken fence and asks him to pay for it by June.",
        "{Name1} snaps at {name2} over the delay, and {name2} agrees to deliver the sofa on Saturday.",
        "I strongly object to the new parking fees.",
        "{Name1} and {name2} have a heated argument about the invoice and agree to ask an accountant.",
        "The decision was unfair, and we shall appeal against it.",
        "No, I won't lend you the car again.",
        "This is a terrible idea, and it will cost us a fortune.",
        "The soup was cold, the waiter was slow and the bill was wrong.",
    ],
}

# Harsh words for the templates above and below; no slurs against groups.
INSULTS = [
    "idiot", "moron", "liar", "loser", "jerk", "coward", "thief", "clown", "pig", "rat", "fool", "cheat", "crook",
    "bastard", "asshole", "scumbag", "imbecile", "dumbass", "bitch", "parasite", "snake", "weasel", "brat", "cow",
    "dickhead", "halfwit", "slob", "creep", "hypocrite", "coward", "drunk", "wanker", "prick", "dimwit", "witch",
]  # fmt: skip
TEST_INSULTS = ["blockhead", "twat", "oaf", "nitwit", "swine", "jackass", "douchebag", "lowlife", "numbskull", "tosser"]
INSULT_ADJECTIVES = [
    "useless", "stupid", "lying", "pathetic", "lazy", "filthy", "ignorant", "worthless", "brainless", "greedy",
    "arrogant", "disgusting", "ugly", "rotten", "spineless", "miserable", "fucking", "damn", "bloody", "dirty",
    "two-faced", "thick", "crazy", "selfish", "incompetent", "clueless", "shameless", "dumb", "goddamn", "cheap",
]  # fmt: skip
REASONS = [
    "because the boiler is still broken", "over a bill of 240 pounds", "for missing the train on Friday",
    "because the parcel never came", "for losing the keys to the shed", "about the scratched car",
    "for cancelling the room without asking", "because the report was two days late", "over the noise at midnight",
    "for burning the roast", "because the deposit of 900 euros was not returned", "for spilling paint on the carpet",
    "about the missed deadline", "because the printer failed before the meeting", "for parking in bay seven",
    "over the wrong order", "because the dog was left outside", "for deleting the photos", "about the loud drums",
    "because the invoice was wrong by 75 dollars",
]  # fmt: skip
OUTCOMES = [
    "and the repair is moved to Thursday", "and they agree to meet on the ninth", "before a refund is promised",
    "but the price stays the same", "and the manager offers half of the money back", "and nobody pays in the end",
    "until the neighbour calms them down", "and a new part is ordered", "but both go back to work",
    "and the meeting ends without a decision",
]  # fmt: skip
NAMES = [
    "Anna", "Tom", "Leila", "Marek", "Aisha", "Diego", "Priya", "Kenji", "Olga", "Samuel", "Mrs. Keller", "Mr. Osei",
    "Fatima", "Björn", "Chloe", "Ivan", "Grace", "Hassan", "Mei", "Pedro", "#Person1#", "#Person2#", "#Person3#",
]  # fmt: skip
TEST_NAMES = ["Ruth", "Emeka", "Ingrid", "Paolo", "#Person1#", "#Person2#", "Ms. Tran", "Viktor"]
# Summaries that repeat abuse, and the same frames without it.
ABUSIVE_SUMMARIES = [
    "{A} calls {B} {ins} {why}, {end}.",
    "{A} calls {B} {ins} and {ins2} {why}, {end}.",
    "{A} tells {B} to shut the hell up {why}, {end}.",
    "{A} shouts that {B} is {ins} {why}, and {B} tells {A} to go to hell.",
    "{A} says {B} is {ins} and should get lost {why}, {end}.",
    "{B} insults {A} as {ins} {why}, {end}.",
    "Furious {why}, {A} calls {B} {ins}, and {B} answers that {A} is {ins2}.",
    "{A} snaps that {B} is {ins} with no brain {why}, {end}.",
    "According to {A}, {B} is nothing but {ins} {why}, {end}.",
    "{A} screams at {B}, that {ins0}, {why}, {end}.",
    "{A} and the {ins0} {B} fight {why}, {end}.",
    "{A} tells {B} to stick it up his ass {why}, {end}.",
    "{A} wants {B} to drop dead {why}, {end}.",
    "{A} thinks {B} is too stupid to do the job {why}, {end}.",
    "{A} says {B} makes everyone sick {why}, {end}.",
]
CIVIL_SUMMARIES = [
    "{A} calls {B} {why}, {end}.",
    "{A} calls {B} a taxi and complains {why}, {end}.",
    "{A} calls {B} a good friend, although they argue {why}, {end}.",
    "{A} is angry with {B} {why}, {end}.",
    "{A} tells {B} to be quiet for a moment and explains the problem {why}, {end}.",
    "{A} and {B} argue {why}, {end}.",
    "{A} criticises {B} {why}, {end}.",
    "{A} says {B} is responsible {why}, {end}.",
    "{A} loses patience with {B} {why}, and {B} apologises.",
    "{A} raises his voice at {B} {why}, {end}.",
    "{A} asks {B} to leave {why}, {end}.",
    "{A} wants {B} to pay {why}, {end}.",
    "{A} thinks {B} is not the right person for the job {why}, {end}.",
    "Upset {why}, {A} complains to {B}, {end}.",
    "{A} accuses {B} of being careless {why}, {end}.",
    "{A} insults {B} {why}, and {B} asks for an apology.",
]
DIRECT_ABUSE = [
    "You are {ins}.",
    "You {ins0}!",
    "Shut up, you {ins0}.",
    "What {ins} you are.",
    "Listen, you {ins0}, I have had enough of you.",
    "Only {ins} would say that.",
    "You and your whole family are {ins0}s.",
    "He is {ins}, and everybody knows it.",
    "My boss is {ins} and so is his wife.",
    "Get lost, {ins0}.",
    "Nobody likes you, {ins0}.",
    "She acts like {ins} all day long.",
    "I'd call him {ins} to his face.",
    "Go to hell, {ins0}.",
    "Those {ins0}s in the office ruin everything.",
]
# What only the spelling makes hard: words whose disguise is still abuse, words whose disguise is harmless.
SWEARING = [
    "fuck", "fucking", "shit", "bitch", "asshole", "bastard", "idiot", "stupid", "moron", "damn", "crap", "dumb",
    "pussy", "dick", "whore", "slut", "loser", "pathetic", "bullshit", "dumbass", "motherfucker", "cunt", "fucker",
    "shitty", "ass", "retarded", "scum", "trash", "ugly", "suck", "sucks", "bitches", "idiots", "fucked", "goddamn",
]  # fmt: skip
HARMLESS_NOISE = ["", " ", "?", "...", "!!!", "-", "ok", "12345", "asdf jkl", "lorem ipsum dolor sit amet", "\n", ":)",
                  "hmm", "qwe rty uio", "xx yy zz", "#Person1#", "#Person2#: ", "1. 2. 3."]  # fmt: skip
LEET = {"a": "4", "e": "3", "i": "1", "o": "0"}
TEST_LEET = {"a": "@", "s": "$", "i": "!", "o": "0", "t": "+", "b": "8"}
TEST_RESPELLED = {
    "fuck": "fvck", "fucking": "phucking", "shit": "shyt", "bitch": "biatch", "asshole": "azzhole", "idiot": "idjit",
    "stupid": "stoopid", "damn": "dayum", "dick": "dikk", "bullshit": "bullsh!t", "bitches": "biatches",
    "motherfucker": "muthafucka", "dumbass": "dumazz", "whore": "hoe", "crap": "krap", "fucked": "phucked",
    "fucker": "phucker", "moron": "m0r0n", "loser": "looser", "ass": "azz", "pussy": "pu$$y", "sucks": "sux",
    "trash": "tr4sh", "ugly": "ugleh", "dumb": "dum", "idiots": "idjits", "shitty": "shytty",
}  # fmt: skip

Disguise = Callable[[str, random.Random], str]


def leet(word: str, draw: random.Random) -> str:
    """sh1t: some vowels as digits, at least one."""
    places = [i for i, letter in enumerate(word) if letter.lower() in LEET]
    chosen = set(draw.sample(places, draw.randint(1, len(places)))) if places else set()
    return "".join(LEET[letter.lower()] if i in chosen else letter for i, letter in enumerate(word))


def stretched(word: str, draw: random.Random) -> str:
    """fuuuck: one letter three to six times."""
    at = draw.randrange(len(word))
    return word[:at] + word[at] * draw.randint(3, 6) + word[at + 1 :]


def spaced(word: str, draw: random.Random) -> str:
    """f u c k, f-u-c-k."""
    return draw.choice([" ", " ", "-"]).join(word)


def starred(word: str, draw: random.Random) -> str:
    """sh*t, f**k, f***: inner letters as stars."""
    if len(word) < 3:
        return word
    start = draw.randint(1, 2) if len(word) > 3 else 1
    stop = draw.randint(start + 1, len(word) - 1) if start + 1 <= len(word) - 1 else start + 1
    return word[:start] + "*" * (stop - start) + word[stop:]


def doubled(word: str, draw: random.Random) -> str:
    """shhit, fuckk: one letter twice."""
    at = draw.randrange(len(word))
    return word[:at] + word[at] * 2 + word[at + 1 :]


def shouted(word: str, _draw: random.Random) -> str:
    """Capitals only; MiniLM lowers them, other scorers do not."""
    return word.upper()


def dotted(word: str, _draw: random.Random) -> str:
    """f.u.c.k."""
    return ".".join(word)


def underscored(word: str, _draw: random.Random) -> str:
    """f_u_c_k."""
    return "_".join(word)


def symbols(word: str, _draw: random.Random) -> str:
    """$h!+: every letter that has a look-alike sign."""
    return "".join(TEST_LEET.get(letter.lower(), letter) for letter in word)


def disemvowelled(word: str, _draw: random.Random) -> str:
    """fck, btch: inner vowels left out."""
    return word[0] + re.sub("[aeiou]", "", word[1:-1]) + word[-1] if len(word) > 3 else word


def respelled(word: str, _draw: random.Random) -> str:
    """phuck: by a list."""
    return TEST_RESPELLED.get(word.lower(), word)


DISGUISES: dict[str, Disguise] = {
    "leet": leet,
    "stretched": stretched,
    "spaced": spaced,
    "starred": starred,
    "doubled": doubled,
}
TEST_DISGUISES: dict[str, Disguise] = {
    "dotted": dotted,
    "underscored": underscored,
    "symbols": symbols,
    "disemvowelled": disemvowelled,
    "respelled": respelled,
}
_SWEARING = re.compile(r"\b(" + "|".join(sorted(SWEARING, key=len, reverse=True)) + r")\b", re.IGNORECASE)


def disguise(text: str, how: Disguise, draw: random.Random) -> str:
    """The text with each of its SWEARING words disguised; unchanged if it has none or none changes."""
    return _SWEARING.sub(lambda found: how(found[0], draw), text)


def disguise_harmless(text: str, how: Disguise, draw: random.Random) -> str:
    """The text with one or two ordinary words disguised, so that a disguise alone is no offence."""
    words = text.split()
    places = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 2 and not _SWEARING.fullmatch(word)]
    for place in draw.sample(places, min(len(places), draw.randint(1, 2))):
        words[place] = how(words[place], draw)
    return " ".join(words)


def article(phrase: str) -> str:
    """With its indefinite article.

    >>> article("idiot"), article("rat")
    ('an idiot', 'a rat')
    """
    return ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase


def insult(draw: random.Random, words: list[str] = INSULTS) -> str:
    """`a lying rat`, `a useless, ugly liar`, `an idiot`, without its article."""
    n = draw.choice([0, 1, 1, 2])
    return ", ".join([*draw.sample(INSULT_ADJECTIVES, n)]) + (" " if n else "") + draw.choice(words)


def _fill_names(template: str, draw: random.Random, names: list[str]) -> str:
    one, two = draw.sample(names, 2)
    return template.replace("{Name1}", one).replace("{name2}", two).replace("{name1}", one)


def identity_mentions(*, test: bool, seed: int = 0) -> dict[str, list[str]]:
    """group -> benign sentences; `test` has other templates and, for half of the terms, unseen terms."""
    draw = random.Random(seed)
    found: dict[str, list[str]] = {}
    for group in IDENTITIES:
        terms = IDENTITIES[group][:4] + TEST_IDENTITIES[group] if test else IDENTITIES[group]
        templates = TEST_IDENTITY_TEMPLATES if test else IDENTITY_TEMPLATES
        names = TEST_NAMES if test else NAMES
        found[group] = [
            _fill_names(
                template.replace("{one}", one).replace("{many}", many).replace("{Many}", many[0].upper() + many[1:]),
                draw,
                names,
            )
            for one, many in terms
            for template in templates
        ]
    return found


def benign_mentions(*, test: bool, seed: int = 0) -> dict[str, list[str]]:
    """kind -> harmless sentences full of words that scorers trip over; harsh words are filled in where marked."""
    draw = random.Random(seed)
    found: dict[str, list[str]] = {}
    for kind, templates in (TEST_BENIGN if test else BENIGN).items():
        words = TEST_INSULTS + INSULTS[:6] if test else INSULTS
        found[kind] = []
        for template in templates:
            open_slots = any(slot in template for slot in ("{w}", "{W}", "{p}"))
            for word in draw.sample(words, 10) if open_slots else [""]:
                filled = template.replace("{w}", word).replace("{W}", word.title())
                filled = filled.replace("{p}", article(word) if word else "")
                found[kind].append(_fill_names(filled, draw, TEST_NAMES if test else NAMES))
    return found


def summaries(n: int, *, abusive: bool, seed: int = 0) -> list[str]:
    """Made-up summaries of quarrels, with the abuse repeated or without any."""
    draw = random.Random(f"{seed} {abusive}")
    frames = ABUSIVE_SUMMARIES if abusive else CIVIL_SUMMARIES
    found = []
    for _ in range(n):
        one, two = draw.sample(NAMES, 2)
        first, second = insult(draw), insult(draw)
        values = {"A": one, "B": two, "ins": article(first), "ins2": article(second), "ins0": first}
        found.append(draw.choice(frames).format(**values, why=draw.choice(REASONS), end=draw.choice(OUTCOMES)))
    return found


def direct_abuse(n: int, seed: int = 0) -> list[str]:
    """Abuse said to or about somebody."""
    draw = random.Random(f"{seed} direct")
    found = []
    for _ in range(n):
        first = insult(draw)
        found.append(draw.choice(DIRECT_ABUSE).format(ins=article(first), ins0=first))
    return found

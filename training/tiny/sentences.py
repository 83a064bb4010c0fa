"""What the voices say: questions about pictures, commands, numbers, dates, spelled words, everyday sentences.

A sentence is text as it is written down: lower case, no marks but the apostrophe, numbers in words. `pronounced` says
how a voice is to be told the letters in it.

Not covered: names, other languages, and words from outside the lists here (the model may still spell them).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from mmdiff.training.tiny.questions import questions
from mmdiff.training.tiny.scenes import COLOURS, SHAPES, TRAIN_SEEDS, pick, random_scene

Rng = np.random.Generator

ONES = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
)
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
LETTER_NAMES = {"a": "ay"}  # what some voices would read as the article
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HALVES = ("o'clock", "a m", "p m")
SPELLING = (
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    "mike",
    "november",
    "oscar",
    "papa",
    "quebec",
    "romeo",
    "sierra",
    "tango",
    "uniform",
    "victor",
    "whiskey",
    "x-ray",
    "yankee",
    "zulu",
)
SIGNS = (
    "dot",
    "dash",
    "slash",
    "at",
    "plus",
    "star",
    "pound",
    "space",
    "underscore",
    "comma",
    "equals",
    "percent",
)

COMMANDS = (
    "turn {on} the {device}",
    "turn {on} the {device} in the {room}",
    "switch {on} the {room} {device}",
    "set a timer for {number} minutes",
    "set an alarm for {time}",
    "wake me up at {time}",
    "play {music}",
    "play the next song",
    "stop the music",
    "turn the volume {up}",
    "open the {thing}",
    "close the {thing}",
    "lock the {thing}",
    "call {person}",
    "call {person} at {time}",
    "send a message to {person}",
    "remind me to {task}",
    "remind me to {task} on {day}",
    "add {food} to the shopping list",
    "what time is it",
    "what is the weather like {when}",
    "show me the picture again",
    "read the last message",
    "take a picture",
    "find a {place} near here",
    "how far is the {place}",
    "cancel the meeting on {day}",
    "go {way}",
    "go {way} {number} meters",
    "turn {way}",
    "please wait",
    "start again",
    "stop",
    "help",
    "yes please",
    "no thank you",
    "make it {change}",
    "go to the next page",
    "delete the last word",
    "save the file",
    "close the window",
    "describe the picture",
    "describe the picture in detail",
    "write a short caption",
    "tell me what you see",
    "press {digit}",
    "press {digit} for {person}",
    "dial {digit} {digit} {digit}",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "on": ("on", "off"),
    "up": ("up", "down"),
    "way": ("left", "right", "forward", "back", "up", "down", "straight on"),
    "device": (
        "light",
        "lights",
        "lamp",
        "radio",
        "television",
        "heating",
        "fan",
        "oven",
        "computer",
        "music",
    ),
    "room": ("kitchen", "bedroom", "bathroom", "living room", "hall", "garden", "office", "garage"),
    "music": (
        "some music",
        "some jazz",
        "my favorite song",
        "the radio",
        "something quiet",
        "the news",
        "a podcast",
    ),
    "thing": (
        "door",
        "window",
        "front door",
        "gate",
        "box",
        "book",
        "file",
        "garage",
        "curtains",
        "blinds",
    ),
    "person": (
        "my mother",
        "my father",
        "my sister",
        "my brother",
        "the doctor",
        "the office",
        "a friend",
        "john",
        "mary",
        "david",
        "anna",
        "the school",
        "sales",
        "support",
        "mister brown",
        "mister smith",
        "peter",
    ),
    "task": (
        "buy milk",
        "call home",
        "pay the bill",
        "water the plants",
        "feed the cat",
        "take out the trash",
        "post the letter",
        "clean the kitchen",
        "book a table",
        "walk the dog",
        "charge the phone",
    ),
    "food": (
        "milk",
        "bread",
        "butter",
        "eggs",
        "coffee",
        "tea",
        "apples",
        "rice",
        "cheese",
        "sugar",
        "salt",
        "bananas",
        "potatoes",
        "chicken",
        "fish",
        "orange juice",
        "water",
        "tomatoes",
    ),
    "when": (
        "today",
        "tomorrow",
        "tonight",
        "this evening",
        "on sunday",
        "next week",
        "now",
        "this afternoon",
    ),
    "place": (
        "hotel",
        "restaurant",
        "bank",
        "station",
        "supermarket",
        "hospital",
        "park",
        "school",
        "library",
        "shop",
        "post office",
        "museum",
        "beach",
        "airport",
    ),
    "change": (
        "louder",
        "quieter",
        "brighter",
        "darker",
        "warmer",
        "colder",
        "bigger",
        "smaller",
        "faster",
        "slower",
    ),
    "animal": (
        "cat",
        "dog",
        "horse",
        "bird",
        "cow",
        "fish",
        "mouse",
        "sheep",
        "rabbit",
        "elephant",
        "monkey",
    ),
    "color": (
        "red",
        "green",
        "blue",
        "yellow",
        "teal",
        "black",
        "gray",
        "brown",
        "orange",
        "purple",
        "white",
    ),
    "who": ("i", "we", "you", "they", "the children", "my friends", "the people"),
    "she": (
        "he",
        "she",
        "my brother",
        "my sister",
        "the teacher",
        "the doctor",
        "the man",
        "the woman",
        "the boy",
        "the girl",
        "the driver",
    ),
    "did": (
        "went to",
        "came from",
        "walked to",
        "ran to",
        "drove to",
        "looked at",
        "waited near",
        "stayed at",
    ),
    "saw": (
        "saw",
        "liked",
        "found",
        "lost",
        "bought",
        "sold",
        "wanted",
        "needed",
        "heard about",
        "forgot",
    ),
    "adjective": (
        "old",
        "new",
        "big",
        "little",
        "beautiful",
        "quiet",
        "warm",
        "cold",
        "strange",
        "funny",
        "good",
        "bad",
        "long",
        "heavy",
        "clean",
        "dirty",
        "happy",
        "tired",
        "famous",
        "empty",
        "open",
        "small",
        "large",
    ),
    "object": (
        "house",
        "car",
        "bicycle",
        "table",
        "chair",
        "picture",
        "letter",
        "newspaper",
        "phone",
        "bottle",
        "cup",
        "coat",
        "hat",
        "key",
        "clock",
        "camera",
        "map",
        "ticket",
        "garden",
        "river",
        "bridge",
        "tree",
        "road",
    ),
    "because": (
        "because it was raining",
        "because it was late",
        "before the sun came up",
        "after lunch",
        "with a smile",
        "without a word",
        "all day long",
        "for the first time",
        "every morning",
        "last summer",
        "again",
    ),
    "feel": (
        "happy",
        "tired",
        "hungry",
        "thirsty",
        "cold",
        "fine",
        "sorry",
        "sure",
        "ready",
        "busy",
        "sick",
        "late",
    ),
}
EVERYDAY = (
    "good {part}",
    "good {part} how are you",
    "thank you very much",
    "i am {feel}",
    "are you {feel}",
    "we are {feel}",
    "see you {when}",
    "my name is {person}",
    "where is the {place}",
    "the {animal} is {feel}",
    "how much is the {food}",
    "{she} {did} the {place}",
    "{she} {did} the {place} {because}",
    "{she} {saw} a {adjective} {object}",
    "{who} {saw} the {adjective} {object}",
    "{who} {did} the {adjective} {place} {because}",
    "the {adjective} {animal} {saw} the {object}",
    "{she} has a {color} {object} and a {color} {object}",
    "there are {number} {color} chairs in the {room}",
    "i would like some {food} and some {food} please",
    "the {object} is on the table",
    "could you pass me the {food}",
    "do you have a {adjective} {object}",
    "it is {adjective} in the {room}",
    "the {place} opens at {time}",
    "the train leaves at {time}",
    "{she} is {number} years old",
    "{she} was born in {month}",
    "i will be there at {time}",
    "the {object} is {adjective}",
    "this {object} is more {adjective} than that one",
    "that's a {adjective} {object}",
    "i don't know where the {object} is",
    "it's {time}",
    "we can't find the {object}",
    "please don't open the {thing}",
    "{she} will come back {when}",
    "the code is {digit} {digit} {digit} {digit}",
    "my number is {digit} {digit} {digit} {digit} {digit} {digit}",
)
WORDS = tuple(
    """
about above across add after again against age ago agree air all almost alone along already also always among and anger
answer any appear arm army around arrive art ask away baby back bad bag ball base bear beat bed been before began behind
believe bell below best better between beyond bird bit black blood blow board boat body bone born both bottom bought
break bring broad brought build burn business but by cake came can capital captain care carry case catch cause cell
century certain chair chance change character charge check chief child choose church circle city claim class clear climb
close clothe cloud coast cold collect colony come common company compare complete condition connect consider contain
continue control cook cool copy corn corner correct cost cotton could count country course cover create crop cross crowd
cry current cut dance danger dark daughter day dead deal dear death decide deep degree depend describe desert develop
difference different difficult direct discuss distance divide done doubt down draw dream dress drink drive drop dry duck
during each ear early earth east easy eat edge effect egg either electric element else end enemy energy engine enough
enter equal especially even event ever every exact example except excite exercise expect experience experiment eye face
fact fair fall family far farm fast father favor fear feed feet fell felt few field fight figure fill final finger
finish fire flat floor flow flower fly follow foot for force forest form forward fraction free fresh friend from front
fruit full fun game gas gather gave general gentle get girl give glad glass gold gone grand grass great grew ground
group grow guess guide gun had hair half hand happen hard has have head hear heart heat help her here high hill him his
history hold hole hope hot hour how huge human hundred hurry ice idea if imagine in inch include indicate industry
insect instant instrument interest invent iron is island job join joy jump just keep kept kill kind king knew know lady
lake land language last late laugh law lay lead learn least leave leg length less let level lie life lift light like
line liquid list listen live locate log lone look lot love low machine magnet main make many mark market mass master
match material matter mean measure meat meet melody men metal method middle might mile million mind mine minute miss mix
modern molecule moment money moon more most motion mountain mouth move much multiply muscle must name nation natural
nature near necessary neck neighbor never next night noise noon nor north nose note nothing notice noun number numeral
object observe occur ocean of offer often oil only operate opposite or order organ original other our out over own
oxygen page paint pair paper paragraph parent part particular party pass past path pattern pay people perhaps period
phrase piece pitch plain plan plane planet plant play please plural poem point poor populate port pose position possible
post pound power practice prepare present pretty print probable problem process produce product proper property protect
prove provide pull push put quart question quick quite race rail rain raise range rather reach read ready real reason
receive record region remember repeat reply represent require rest result rich ride ring rise rock roll root rope rose
round row rub rule run safe said sail same sand sat save say scale school science score sea search season seat section
seed seem segment select self sell sense sentence separate serve settle several shall shape share sharp shell shine ship
shirt shoe shop shore should shoulder shout side sight sign silent silver similar simple since sing single sister sit
skill skin sky sleep slip slow smell smile snow so soft soil soldier solution solve some son soon sound south speak
special speech speed spend spoke spot spread spring square stand start state station stay steam steel step stick still
stone stood story stream street stretch string strong student subject substance subtract success such sudden suffix
suggest suit summer supply support sure surface surprise swim syllable symbol system tail take talk tall teach team
teeth tell temperature term test than that the their them then there these thick thin think this thought thousand
through throw thus tie time tiny tire to together told tone too tool total touch toward town track trade train travel
triangle trip trouble truck true try tube turn type under unit until use usual valley value vary verb very view village
visit voice vowel wait wall want war was wash watch wave weather week weight well went were west what wheel when which
while whole whose why wide wife wild will win wind winter wire wish with woman wonder wood word work world would write
written wrong yard year yes yet young your
""".split()
)


def sentence(rng: Rng) -> str:
    """One sentence of a kind drawn by `SHARES`."""
    return KINDS[str(rng.choice(list(SHARES), p=list(SHARES.values())))](rng)


TRANSCRIBE_PROMPTS = (
    "Transcribe the audio.",
    "Write down what is said.",
    "What is said?",
)  # test with the first
REFINE_PROMPT = "Correct the transcript of the audio."


def heard_question(said: str, rng: Rng) -> tuple[str, str]:
    """A question about what is said, and its answer."""
    words, form = said.split(), rng.random()
    if form < 0.3:
        wanted, other = pick(rng, words), pick(rng, sentence(rng).split())
        word = wanted if rng.random() < 0.5 else other
        return f'Is the word "{word}" said?', "yes" if word in words else "no"
    if form < 0.5:
        return "What is the first word?", words[0]
    if form < 0.6:
        return "What is the last word?", words[-1]
    kind, names = pick(rng, (("color", tuple(COLOURS)), ("shape", SHAPES)))
    named = {name for name in names if name in words}
    if len(named) > 1:
        return f"What is the first {kind} that is named?", next(
            word for word in words if word in named
        )
    return f"What {kind} is named?", named.pop() if named else "none"


def spoken(text: str) -> str:
    """A written question as it would be written down by ear."""
    plain = re.sub(
        r"[^a-z' ]+", " ", text.lower().replace("colour", "color").replace("grey", "gray")
    )
    return " ".join(plain.split())


def pronounced(text: str) -> str:
    """The sentence for a voice: a letter that stands alone is said by its name, "a" after letters too."""
    words = text.split()
    alone = [
        len(word) == 1 and (word not in "ai" or _spelled(words, place))
        for place, word in enumerate(words)
    ]
    return " ".join(
        f"{LETTER_NAMES.get(word, word.upper())}," if letter else word
        for word, letter in zip(words, alone, strict=True)
    ).rstrip(",")


def _spelled(words: list[str], place: int) -> bool:
    """Whether the "a" or "i" here belongs to something spelled, and is no word of the sentence."""
    near = [words[i] for i in (place - 1, place + 1) if 0 <= i < len(words)]
    return (
        len(words) == 1
        or any(len(word) == 1 for word in near)
        or words[place + 1 : place + 3] == ["as", "in"]
    )


def cardinal(number: int) -> str:
    """A number from 0 to 9,999 in words: "three hundred and five"."""
    if number >= 1000:
        return " ".join(
            part for part in (ONES[number // 1000], "thousand", _rest(number % 1000)) if part
        )
    if number >= 100:
        return " ".join(
            part for part in (ONES[number // 100], "hundred", _rest(number % 100)) if part
        )
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")


def _rest(number: int) -> str:
    return cardinal(number) if number else ""


def ordinal(number: int) -> str:
    """A day of the month, 1 to 31: "twenty first"."""
    if number < 20:
        return ORDINALS[number - 1]
    tens = TENS[number // 10 - 2]
    return f"{tens} {ORDINALS[number % 10 - 1]}" if number % 10 else f"{tens[:-1]}ieth"


def _whole(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _question(rng: Rng) -> str:
    while True:
        scene = random_scene(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)))
        if asked := questions(scene, rng, 1):
            return spoken(asked[0].question)


def _number(rng: Rng) -> str:
    form = rng.random()
    if form < 0.35:
        digits = [ONES[_whole(rng, 0, 9)] for _ in range(_whole(rng, 1, 7))]
        return " ".join(
            "oh" if digit == "zero" and len(digits) > 2 and rng.random() < 0.2 else digit
            for digit in digits
        )
    if form < 0.75:
        text = cardinal(_whole(rng, 0, 99) if rng.random() < 0.5 else _whole(rng, 100, 9999))
        return text.replace("hundred ", "hundred and ") if rng.random() < 0.3 else text
    if form < 0.85:
        return f"{cardinal(_whole(rng, 1, 99))} {pick(rng, ('dollars', 'euros', 'percent', 'meters', 'minutes'))}"
    if form < 0.95:
        return f"number {cardinal(_whole(rng, 0, 99))}"
    return ordinal(_whole(rng, 1, 31))


def _time(rng: Rng) -> str:
    hour, form = ONES[_whole(rng, 1, 12)], rng.random()
    if form < 0.35:
        return f"{hour} {pick(rng, HALVES)}"
    if form < 0.6:
        return f"{pick(rng, ('half past', 'quarter past', 'quarter to', 'ten past', 'five to', 'twenty past'))} {hour}"
    return f"{hour} {cardinal(_whole(rng, 10, 59))}{pick(rng, ('', '', ' a m', ' p m'))}"


def _date(rng: Rng) -> str:
    month, day = pick(rng, MONTHS), ordinal(_whole(rng, 1, 31))
    text = pick(
        rng,
        (
            f"{month} {day}",
            f"the {day} of {month}",
            f"{month} the {day}",
            pick(rng, DAYS),
            month,
            f"{pick(rng, DAYS)} at {_time(rng)}",
            _time(rng),
        ),
    )
    if " " in text and rng.random() < 0.3:
        text = f"{pick(rng, DAYS)} {text}" if text.split()[0] not in DAYS else text
    if any(name in text for name in MONTHS) and rng.random() < 0.4:
        tail = cardinal(_whole(rng, 10, 99))
        text += (
            f" {pick(rng, ('nineteen', 'twenty'))} {tail}"
            if rng.random() < 0.7
            else f" two thousand {cardinal(_whole(rng, 1, 30))}"
        )
    return text


def _spell(rng: Rng) -> str:
    form = rng.random()
    if form < 0.45:
        return " ".join(pick(rng, LETTERS) for _ in range(_whole(rng, 1, 6)))
    if form < 0.65:
        word = pick(rng, WORDS)
        return f"{word} {' '.join(word[:7])}" if rng.random() < 0.5 else " ".join(word[:7])
    if form < 0.8:
        return " ".join(pick(rng, SPELLING) for _ in range(_whole(rng, 1, 5)))
    if form < 0.9:
        at = _whole(rng, 0, 25)
        return f"{LETTERS[at]} as in {SPELLING[at]}"
    symbols = (*LETTERS, *ONES[:10], *SIGNS, *SIGNS)
    return " ".join(pick(rng, symbols) for _ in range(_whole(rng, 1, 6)))


def _fill(template: str, rng: Rng) -> str:
    made: dict[str, Callable[[], str]] = {
        "number": lambda: cardinal(_whole(rng, 2, 60)),
        "digit": lambda: ONES[_whole(rng, 0, 9)],
        "time": lambda: _time(rng),
        "day": lambda: pick(rng, DAYS),
        "month": lambda: pick(rng, MONTHS),
        "part": lambda: pick(rng, ("morning", "afternoon", "evening", "night")),
    }
    return re.sub(
        r"\{(\w+)\}", lambda m: made[m[1]]() if m[1] in made else pick(rng, SLOTS[m[1]]), template
    )


def _words(rng: Rng) -> str:
    return " ".join(pick(rng, WORDS) for _ in range(_whole(rng, 1, 7)))


KINDS: dict[str, Callable[[Rng], str]] = {
    "question": _question,
    "command": lambda rng: _fill(pick(rng, COMMANDS), rng),
    "number": _number,
    "date": _date,
    "spelled": _spell,
    "everyday": lambda rng: _fill(pick(rng, EVERYDAY), rng),
    "words": _words,
}
SHARES = {
    "question": 0.34,
    "command": 0.16,
    "number": 0.12,
    "date": 0.07,
    "spelled": 0.1,
    "everyday": 0.13,
    "words": 0.08,
}

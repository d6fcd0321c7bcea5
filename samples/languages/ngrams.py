"""What the model of languages is told: which pieces of words a text has.

The Bee and `train.py` both call this, so the model meets in service what it met in training.
"""

import binascii
import math
import unicodedata
from array import array
from collections import Counter

#: What the model tells apart, by codes of ISO 639-1, in its order.
LANGUAGES = {
    "ar": "Arabic",
    "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "ca": "Catalan",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "ko": "Korean",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mk": "Macedonian",
    "nb": "Norwegian Bokmål",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sq": "Albanian",
    "sr": "Serbian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
#: After them the model has one more class: none of these.
NONE = len(LANGUAGES)
#: Numbers that the model takes. Pieces of words share them by a checksum.
BUCKETS = 8192
#: Pieces have one to so many characters; a longer word is one more, as a whole.
PIECE_MAX = 4
#: So many characters of a text are looked at: more would change no answer, and cost time.
LOOKED_AT = 1_000

#: How Unicode's names of letters and marks begin in the scripts of these languages.
SCRIPTS = frozenset(
    "LATIN CYRILLIC GREEK ARABIC HEBREW DEVANAGARI BENGALI ARMENIAN GEORGIAN HANGUL HIRAGANA KATAKANA KATAKANA-HIRAGANA "
    "CJK IDEOGRAPHIC THAI COMBINING".split()
)
#: Instead of a character that is no letter, and of a letter of another script.
BLANK, FOREIGN = " ", "\0"
_seen = {}


def _letter(character):
    """A letter or a mark as it is; BLANK for what is neither; FOREIGN for one of another script."""
    found = BLANK
    if unicodedata.category(character)[0] in "LM":
        script = unicodedata.name(character, "").split(" ")[0]
        # An apostrophe that counts as a letter is written in more than one way, so it divides as the others do.
        found = character if script in SCRIPTS else BLANK if script == "MODIFIER" else FOREIGN
    if len(_seen) < 65_536:
        _seen[character] = found
    return found


def words(text):
    """The words of a text in small letters, and how many letters of other scripts stood between them.

    Addresses of pages and of mail are no words. Forms that look alike (full width, ligatures) are made one: NFKC.
    """
    kept = [word for word in text.lstrip()[:LOOKED_AT].split() if "://" not in word and "@" not in word]
    small = unicodedata.normalize("NFKC", " ".join(kept)).lower()
    letters = "".join([_seen.get(one) or _letter(one) for one in small])
    return letters.replace(FOREIGN, BLANK).split(), letters.count(FOREIGN)


def pieces(words):
    """How often each piece of words is there. A word begins and ends with a blank, so its ends are pieces of their own."""
    found = Counter()
    for word in words:
        word = f" {word} "
        for size in range(1, PIECE_MAX + 1):
            found.update(word[at : at + size] for at in range(len(word) - size + 1))
        if len(word) > PIECE_MAX:
            found[word] += 1
    return found


def features(words):
    """Which buckets the pieces of words are in, and how much each counts: the root of how often, in all of length 1."""
    buckets = Counter()
    for piece, times in pieces(words).items():
        buckets[binascii.crc32(piece.encode()) % BUCKETS] += times
    # Of the counts, whose sum is the square of the length of their roots.
    total = sum(buckets.values())
    return {bucket: math.sqrt(times / total) for bucket, times in buckets.items()}


def row(words):
    """The same as a row of BUCKETS numbers, as the model takes it."""
    found = array("f", bytes(4 * BUCKETS))
    for bucket, value in features(words).items():
        found[bucket] = value
    return found

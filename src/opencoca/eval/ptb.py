"""Words of a caption as the COCO caption evaluation counts them: Penn Treebank tokens without punctuation.

The COCO scores are defined on the lower-cased output of Stanford's PTBTokenizer (CoreNLP 3.4.1, Java). These rules
follow its behaviour on text as captions hold it, found by running it; its answers to the odd cases are in
`tests/parity/data/ptb_tokens.json`. On 20,000 lines of technical documentation 99.5% come out the same: file names,
telephone numbers and "A." before a new sentence make the rest.
"""

import re

# What the COCO evaluation removes. Brackets stay: it compares their upper-case names with lower-cased tokens.
REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_REWRITTEN = {
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘‛‹›", "'"),
    **dict.fromkeys("–—―", "--"),
    "…": "...",
    "£": "#",
    "€": "$",
    "¢": " cents ",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
}
_REWRITE = re.compile("|".join(map(re.escape, _REWRITTEN)))
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})

_ABBREVIATIONS = (
    "mr mrs ms dr st jr sr prof gen col capt lt sgt rev hon gov sen rep ave blvd rd mt ft ext al etc vs inc co corp "
    "ltd jan feb mar apr jun jul aug sep sept oct nov dec"
).replace(" ", "|")
_CLITIC = r"(?:['’](?:s|m|d|re|ve|ll)|n['’]t)(?!\w)"
_WORD = rf"(?>(?:(?!{_CLITIC})[^\W_])+)"  # letters and digits, up to a clitic; atomic, so that it is never cut short
_HYPHENED = rf"{_WORD}(?:-[a-z]+){{0,2}}"

# The first alternative that fits at a place wins.
_TOKEN = re.compile(
    "|".join(
        [
            r"(?:https?|ftp)://\S*[\w/]|www\.\S*[\w/]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
            r"</?[a-z][^<>]*>",
            r"-[lr][rsc]b-|[:;=]-?[()]",
            r"[@#][a-z]\w*",
            r"(?<!\w)(?:can(?=not)|gon(?=na)|wan(?=na)|got(?=ta)|lem(?=me)|gim(?=me))(?=not(?!\w)|[ntm][ae](?!\w))",
            r"(?<!\w)['’]t(?=(?:is|was)(?!\w))",
            _CLITIC,
            r"(?<!\w)(?:[a-z]\.){2,}(?!\w)|(?<!\w)[a-z]\.(?!\w)|no\.(?= \d)",  # U.S., J.
            rf"(?<!\w)(?:{_ABBREVIATIONS})\.(?!\w)",
            r"(?<![\w'’])['’]\d\ds?(?!\w)",  # '80s
            r"(?<!\w)[odl]['’][a-z]+|ma['’]am|['’]n['’]|y['’](?=all)",  # o'clock
            r"c\+\+|c#|(?-i:[A-Z]+(?:&[A-Z]+)+(?!\w)|US\$)",
            r"\d+:\d\d(?=[ap]m)|[+-]?(?:\d+(?:[.,:/-]\d+)*|\.\d+)(?!\w|-\w)",
            rf"{_HYPHENED}(?:/{_HYPHENED}){{1,2}}",  # and/or
            rf"{_WORD}(?:[.?!](?!\d){_WORD})+",  # a missing space joins sentences
            rf"{_WORD}(?:[-_]{_WORD})*",
            r"\.\.\.|--+|[?!]+|\*\*+|__+|##+",
            r"\S",
        ]
    ),
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The tokens of `text`, lower-cased and without punctuation, as the COCO caption evaluation compares them."""
    tokens = []
    for token in _TOKEN.findall(_REWRITE.sub(lambda found: _REWRITTEN[found[0]], text)):
        token = token.translate(_BRACKETS).lower()
        if re.fullmatch(_CLITIC, token) or len(token) == 1:
            token = token.replace("’", "'")
        if token.startswith("--"):
            token = "--"
        if token not in REMOVED and token != '"' and ord(token[0]) < 0x10000:  # emoji are "untokenizable" there
            tokens.append(token)
    return tokens

"""What a report shows: plain frozen records that `jobs` fills, and nothing of how they are drawn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Fields: name for the legend; points as (step, value), in order of step. Points that aren't finite are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One small chart with the curves that share its axes.

    Fields: title; unit of the values ("nats", "%", "samples/s", or "" for none), where "%" wants values of 0 to 100;
      curves (up to four stay easy to tell apart); x_label names the horizontal axis; x_names stand at 0, 1, ... of it
      instead of numbers; x_range and y_range are the ends of the axes, by default those of the values; references are
      drawn faintly, to compare the curves with; so are levels, (name, value), from one side to the other: chance, say.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    x_label: str = "step"
    x_names: Sequence[str] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    references: Sequence[Curve] = ()
    levels: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Figure:
    """One measured number beside what it must be compared with.

    Fields: name, such as "image-to-text R@1"; value in `unit` (47.3 with "%" means 47.3%; a bar is drawn for "%" only);
      controls as (name, value), None where a control doesn't apply; chance, the value of guessing, or None;
      note, one short sentence that says what the number means; headline, whether it also stands at the top of the page
      (two to five of a report should).
    """

    name: str
    value: float
    unit: str = "%"
    controls: Sequence[tuple[str, float | None]] = ()
    chance: float | None = None
    note: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Results:
    """The figures of one held-out list.

    Fields: name of the list, in words or as it is on disk; description, one sentence on what is held out; pictures, how
      many it has; figures, the rows of its table.
    """

    name: str
    description: str
    pictures: int
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Retrieved:
    """One caption that a picture found. Fields: text; score (cosine); is_truth, whether it is the picture's own."""

    text: str
    score: float
    is_truth: bool


@dataclass(frozen=True)
class Example:
    """One held-out picture and what the model made of it.

    Fields: png, the bytes of a small PNG file (about 100 pixels a side is plenty); truth and generated captions;
      exact, whether they count as equal; retrieved, the best captions found, best first (three read well); before, the
      caption that an earlier model gave, if there was one; held_out, the name of its list, where there are several.
    """

    png: bytes
    truth: str
    generated: str
    exact: bool
    retrieved: Sequence[Retrieved] = ()
    before: str = ""
    held_out: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(PNG_SIGNATURE):
            raise ValueError(f"the picture of {self.truth!r} isn't a PNG file; encode it as one")


@dataclass(frozen=True)
class Confusion:
    """A zero-shot classification, as a table of true against predicted labels.

    Fields: title; labels; counts[true][predicted], as many rows and columns as labels; accuracy and chance in percent
      (0 to 100; chance may be None); controls as (name, percent or None); note, one sentence on the task or "".
    """

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    accuracy: float
    chance: float | None = None
    controls: Sequence[tuple[str, float | None]] = ()
    note: str = ""

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.counts]
        if shape != [len(self.labels)] * len(self.labels):
            raise ValueError(f"{self.title!r} has {len(self.labels)} labels, but rows of {shape} counts")


@dataclass(frozen=True)
class Link:
    """A link in the credits, the only place that may name another site. Fields: text; url (http or https)."""

    text: str
    url: str

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^\s/]", self.url):
            raise ValueError(f"the link {self.text!r} goes to {self.url!r}; only http:// and https:// may stand here")


@dataclass(frozen=True)
class ReportData:
    """All that a report shows; a part that is empty is left out of the page, heading and all.

    Fields:
      title: what the page is about, such as "CoCa, trained from scratch on OpenMoji".
      subtitle: lines below it, plain sentences.
      facts: (name, value) of the run, the value already in words: recipe, parameters, steps, time, MFU, seed, ...
      charts: learning curves, in reading order.
      results: one table per held-out list; figures with `headline` stand at the top of the page too.
      controls: (name, what it is in a sentence) for the controls that figures and confusions name.
      grid: held-out examples, each list's together, below the name and description that `results` has of it; the first
        six also stand at the top, so put them in an order that nobody chose.
      grid_note: a sentence that says how the examples were drawn.
      confusions: zero-shot classifications.
      next_steps: (sentence, command) to try now.
      credits: paragraphs, each a sequence of texts and `Link`s.
    """

    title: str
    subtitle: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Chart] = ()
    results: Sequence[Results] = ()
    controls: Sequence[tuple[str, str]] = ()
    grid: Sequence[Example] = ()
    grid_note: str = ""
    confusions: Sequence[Confusion] = ()
    next_steps: Sequence[tuple[str, str]] = ()
    credits: Sequence[Sequence[str | Link]] = ()

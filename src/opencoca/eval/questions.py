"""How well a model answers questions about pictures, in three ways, and how far the question alone leads."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from opencoca.data import storage
from opencoca.data.prompts import asked
from opencoca.data.questions import Question, QuestionSource, open_questions
from opencoca.errors import DataError
from opencoca.eval.results import EvaluationResult, skipped_facts
from opencoca.eval.vqa import normalise_answer, vqa_accuracy
from opencoca.infer.heads import answer_logits, head_for, question_ids
from opencoca.infer.likelihood import likelihoods
from opencoca.infer.predictor import Predictor
from opencoca.types import ImageFeatures

if TYPE_CHECKING:
    from opencoca.eval.registry import Data, Options

How = Literal["classify", "generate", "choose"]
SPARE = 2  # tokens that an answer in words takes at least: one, and the end
LONGEST = 16  # tokens of an answer in the model's own words
PICTURES = 64  # encoded at a time; their questions are answered together


class QuestionEvaluation:
    """The official VQA accuracy of a model's answers, overall ("accuracy") and for each kind of question.

    how: "classify" by a head, "generate" in the model's own words, or "choose" the likeliest of the question's choices
    by exact log-likelihood (of `choices`, where a question has none). Questions whose picture can't be read, or that
    are too long, are named and left out; those whose answer isn't in the head's vocabulary count as wrong.
    """

    def __init__(
        self,
        name: str,
        source: QuestionSource,
        how: How = "classify",
        head: str | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        self.name, self._source, self._head, self._choices = name, source, head, tuple(choices)
        self._how: How = how

    def __call__(self, predictor: Predictor) -> EvaluationResult:
        """Measures the model. Raises: DataError where no question can be asked, ConfigError without a head."""
        began = time.perf_counter()
        answers, skipped = answer_all(predictor, self._source, self._how, self._head, self._choices)
        if not answers:
            raise DataError(f"{self.name}: none of {len(self._source)} questions can be asked; {skipped[0][1]}")
        questions = [question for question in self._source.questions if question.key in answers]
        values = torch.tensor([vqa_accuracy(answers[q.key], q.answers) for q in questions], dtype=torch.float64)
        facts = {
            "split_digest": self._source.fingerprint,
            "how": self._how,
            "samples": len(questions),
            "skipped": skipped_facts([*self._source.skipped, *skipped]),
            "seconds": round(time.perf_counter() - began, 2),
        }
        if self._how == "classify":
            labels = set(head_for(predictor, "decoder", self._head, self._source.pictures).labels)
            beyond = [q for q in questions if labels.isdisjoint(map(normalise_answer, q.answers))]
            facts["outside_vocabulary"] = skipped_facts((q.key, f"its answer is {q.answers[0]!r}") for q in beyond)
        figures = {"accuracy": float(values.mean()), **by_kind(questions, values)}
        return EvaluationResult(
            self.name, figures, "accuracy", {"accuracy": values}, [question.key for question in questions], facts
        )


def by_kind(questions: Sequence[Question], values: Tensor) -> dict[str, float]:
    """The mean over each kind of question, as "accuracy/KIND", where the data tell kinds."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        if question.kind:
            rows[question.kind].append(row)
    return {f"accuracy/{kind}": float(values[some].mean()) for kind, some in sorted(rows.items())}


def majority(train: QuestionSource, test: QuestionSource) -> EvaluationResult:
    """What is reached without any picture: the most frequent answer to the same question in training, else of all."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for question in train.questions:
        for answer in map(normalise_answer, question.answers):
            by_question[question.text.strip().lower()][answer] += 1
            overall[answer] += 1
    values = torch.tensor(
        [
            vqa_accuracy((by_question.get(q.text.strip().lower()) or overall).most_common(1)[0][0], q.answers)
            for q in test.questions
        ],
        dtype=torch.float64,
    )
    figures = {"accuracy": float(values.mean()), **by_kind(test.questions, values)}
    return EvaluationResult("question only", figures, "accuracy", {"accuracy": values}, list(test.keys))


def answer_all(
    predictor: Predictor,
    source: QuestionSource,
    how: How = "classify",
    head: str | None = None,
    choices: Sequence[str] = (),
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The answer to each question by its key, and (key, reason) of those that could not be asked.

    Each picture is encoded once for all of its questions in a row.
    """
    answers: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    for questions, features in _encoded(predictor, source, skipped):
        fitting = []
        for row, question in enumerate(questions):
            try:
                question_ids(predictor, question.text, spare=0 if how == "classify" else SPARE)
                fitting.append(row)
            except DataError as error:
                skipped.append((question.key, str(error)))
        if not fitting:
            continue
        per = source.pictures
        rows = torch.tensor([per * row + number for row in fitting for number in range(per)], device=predictor.device)
        chosen, some = [questions[row] for row in fitting], ImageFeatures(features.embed[rows], features.tokens[rows])
        said = _answers(predictor, chosen, some, how, head, choices)
        answers |= dict(zip((question.key for question in chosen), said, strict=True))
    return answers, skipped


def _encoded(
    predictor: Predictor, source: QuestionSource, skipped: list[tuple[str, str]]
) -> Iterator[tuple[list[Question], ImageFeatures]]:
    """Questions about up to PICTURES pictures, with the features of each one's pictures, one behind the other."""
    for some in _runs(source.questions):
        paths = list(dict.fromkeys(path for question in some for path in question.pictures))
        read: list[bytes] = []
        places: dict[str, int] = {}
        bad: dict[str, str] = {}
        for path in paths:
            try:
                read.append(storage.read_file(storage.joined(source.root, path)))
                places[path] = len(read) - 1
            except DataError as error:
                bad[path] = str(error)
        broken: list[str] = []
        features, good = [], []
        for batch in predictor.squares(read, lambda _, error, broken=broken: broken.append(str(error))):
            features.append(predictor.encode_squares(batch.squares))
            good += batch.places
        row_of = {place: row for row, place in enumerate(good)}
        damaged = iter(broken)
        for path, place in list(places.items()):
            if place in row_of:
                places[path] = row_of[place]
            else:
                bad[path] = next(damaged)
                del places[path]
        kept = []
        for question in some:
            missing = [path for path in question.pictures if path in bad]
            if missing:
                skipped.append((question.key, bad[missing[0]]))
            else:
                kept.append(question)
        if kept:
            whole = ImageFeatures(*(torch.cat(part) for part in zip(*features, strict=True)))
            rows = torch.tensor([places[path] for q in kept for path in q.pictures], device=predictor.device)
            yield kept, ImageFeatures(whole.embed[rows], whole.tokens[rows])


def _runs(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """The questions in their order, cut where more than PICTURES pictures, or 16 times as many questions, stand in."""
    run: list[Question] = []
    pictures: set[str] = set()
    for question in questions:
        if run and (len(pictures | set(question.pictures)) > PICTURES or len(run) >= 16 * PICTURES):
            yield run
            run, pictures = [], set()
        run.append(question)
        pictures.update(question.pictures)
    if run:
        yield run


def _answers(
    predictor: Predictor,
    questions: Sequence[Question],
    features: ImageFeatures,
    how: How,
    head: str | None,
    choices: Sequence[str],
) -> Iterable[str]:
    if how == "classify":
        chosen = head_for(predictor, "decoder", head, pictures=len(questions[0].pictures))
        logits = answer_logits(predictor, chosen, features.tokens, [question.text for question in questions])
        return [chosen.labels[best] for best in logits.argmax(dim=1).tolist()]
    if len(questions[0].pictures) > 1:
        raise DataError("the decoder's own words are about one picture; questions about several take a head")
    if how == "generate":
        prompts = [asked(question.text) for question in questions]
        lead = [len(predictor.tokenizer.encode(prompt)) for prompt in prompts]
        most = min(max(lead) + LONGEST, predictor.model.config.text.context_length - 2)
        captions = predictor.caption_features(features, prompt=prompts, beams=1, max_tokens=most)
        return [predictor.tokenizer.decode(one[0].ids[n:]).strip() for one, n in zip(captions, lead, strict=True)]
    return [_likeliest(predictor, q, features.tokens[i : i + 1], choices) for i, q in enumerate(questions)]


def _likeliest(predictor: Predictor, question: Question, tokens: Tensor, choices: Sequence[str]) -> str:
    """The choice with the highest log-likelihood behind the question, the end included."""
    offered = question.choices or choices
    if not offered:
        raise DataError(f"{question.key} has no choices; give a column `choices`")
    prompt = question_ids(predictor, question.text)
    ids = [[*prompt, *predictor.tokenizer.encode(one), predictor.tokenizer.special.end] for one in offered]
    scores = likelihoods(predictor, tokens, ids)
    return offered[max(range(len(offered)), key=scores.__getitem__)]


def make(name: str, data: Data, options: Options) -> QuestionEvaluation:
    """The evaluation of questions at `--data DATASET=PATH`: by the model's head, pictures from `--pictures`."""
    place = data[name.partition("/")[0]]
    source = open_questions(str(Path(place.path)), place.split or "val", options.pictures)
    return QuestionEvaluation(name, source.spread(options.limit))

"""`coca ask`: a question about pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from opencoca.cli.main import ModelName, Paths
from opencoca.cli.options import Generation, GenerationGroup, OutputGroup, OutputOptions
from opencoca.data.prompts import asked
from opencoca.errors import DataError

if TYPE_CHECKING:
    from opencoca.infer.predictor import Predictor
    from opencoca.infer.stream import OnBad

    Answers = Callable[[list[Path], OnBad], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Args:
    """Ask a question about pictures.

    Prints one line per picture: its path, a tab, the answer; on a terminal, a table. The last word is the question,
    unless --question gives it. A model that `coca vqa` has trained chooses among the answers it has learnt. Any other,
    and every model where an option says how to generate, goes on with the caption "question: ... answer:": without
    training on questions, expect a few words about the picture, often not what was asked.

    Examples:
      coca ask cat.png "what colour is the cat?"
      coca ask holiday/ --question "is there a boat?" --output answers.csv
      ls *.png | coca ask - --question "what is it?" --json
    """

    paths: Paths
    """Picture files, folders of them, or - for a list on standard input; the question comes last."""
    question: Annotated[str | None, arg(help_behavior_hint="")] = None
    """The question, where all other words are pictures."""
    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    generation: GenerationGroup = field(default_factory=Generation)
    output: OutputGroup = field(default_factory=OutputOptions)


def run(args: Args) -> int:
    """Answers batch by batch, so that memory doesn't grow with the number of pictures."""
    from opencoca.cli.pictures import find

    paths, question = _split(args)
    found = find(paths)

    from opencoca.cli.output import Column, Output, Row, width_of
    from opencoca.loading import load

    predictor = load(args.model)
    answers, how = _how(args, predictor, question)

    def about() -> dict[str, Any]:
        return {"command": "ask", "model": predictor.fingerprint(), "options": {"question": question, **how}}

    columns = [Column("picture", "cyan", width=width_of(found.paths)), Column("answer")]
    with Output(found, columns, args.output, ["path", "question", "answer"], about) as output:
        for path, answer in answers(output.todo, output.skip):
            output.done(1)
            record = {"path": path, "question": question, "answer": answer}
            output.rows([Row((path, answer), record, (path, question, answer), (answer,))])
        return output.finish()


def _how(args: Args, predictor: Predictor, question: str) -> tuple[Answers, dict[str, Any]]:
    """What answers: the model's head for questions, or its words where it has none or options say how; and the options.

    Raises: ConfigError or DataError for a question that is too long.
    """
    from opencoca.infer import heads
    from opencoca.infer.captioning import encode_prompt
    from opencoca.infer.stream import encoded

    changes = args.generation.changes()
    if not changes and any(head.reads == "decoder" and head.pictures == 1 for head in predictor.model.config.heads):
        head = heads.head_for(predictor, "decoder", pictures=1)
        heads.question_ids(predictor, question)

        def choose(paths: list[Path], skip: OnBad) -> Iterator[tuple[str, str]]:
            for some, features in encoded(predictor, paths, skip):
                logits = heads.answer_logits(predictor, head, features.tokens, [question] * len(some))
                yield from ((str(p), head.labels[i]) for p, i in zip(some, logits.argmax(1).tolist(), strict=True))

        return choose, {"head": head.name}
    settings = args.generation.settings(predictor.config.generation)
    prompt = asked(question)
    lead = len(encode_prompt(predictor, prompt, settings))

    def say(paths: list[Path], skip: OnBad) -> Iterator[tuple[str, str]]:
        for one in predictor.describe(paths, prompt=prompt, on_bad=skip, **changes):
            yield str(one.picture), predictor.tokenizer.decode(one.captions[0].ids[lead:]).strip()

    return say, dataclasses.asdict(settings)


def _split(args: Args) -> tuple[tuple[Path, ...], str]:
    """The pictures and the question.

    Raises: DataError where one of the two is missing.
    """
    if args.question is not None:
        paths, question = args.paths, args.question
    else:
        from opencoca.cli.pictures import SUFFIXES, is_there

        *others, last = args.paths
        if last.suffix.lower() in SUFFIXES or is_there(last):
            raise DataError(f'{last} is a picture, and there is no question behind it; add one, as in "what is it?"')
        paths, question = tuple(others), str(last)
    if not question.strip():
        raise DataError('the question is empty; say what to ask, as in "what is it?"')
    if not paths:
        raise DataError(f'there is no picture before the question {question!r}; name one, as in cat.png "what is it?"')
    return paths, question

"""`coca ask`: a question about pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from opencoca.cli.main import ModelName, Paths
from opencoca.cli.options import Generation, GenerationGroup, OutputGroup, OutputOptions
from opencoca.errors import DataError


@dataclass(frozen=True)
class Args:
    """Ask a question about pictures.

    Prints one line per picture: its path, a tab, the answer; on a terminal, a table. The last word is the question,
    unless --question gives it. Without a head that was trained on questions, which no model here has yet, the model
    goes on with the caption "question: ... answer:": expect a few words about the picture, often not what was asked.

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
    from opencoca.infer.captioning import QUESTION, encode_prompt
    from opencoca.loading import load

    predictor = load(args.model)
    settings = args.generation.settings(predictor.config.generation)
    prompt = QUESTION.replace("{}", question.strip())
    lead = len(encode_prompt(predictor, prompt, settings))

    def about() -> dict[str, Any]:
        options = {"question": question, **dataclasses.asdict(settings)}
        return {"command": "ask", "model": predictor.fingerprint(), "options": options}

    columns = [Column("picture", "cyan", width=width_of(found.paths)), Column("answer")]
    with Output(found, columns, args.output, ["path", "question", "answer"], about) as output:
        for one in predictor.describe(output.todo, prompt=prompt, on_bad=output.skip, **args.generation.changes()):
            path, answer = str(one.picture), predictor.tokenizer.decode(one.captions[0].ids[lead:]).strip()
            output.done(1)
            record = {"path": path, "question": question, "answer": answer}
            output.rows([Row((path, answer), record, (path, question, answer), (answer,))])
        return output.finish()


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

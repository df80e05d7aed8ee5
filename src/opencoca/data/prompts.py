"""How a question stands before its answer, wherever one is read, trained on or asked."""

QUESTION = "question: {} answer:"


def asked(question: str) -> str:
    """A question as a model reads it, before the answer."""
    return QUESTION.replace("{}", question.strip())

"""What a source of pictures with captions gives: one sample."""

from typing import NamedTuple


class Sample(NamedTuple):
    """One picture as its encoded bytes, with its caption (or several) and whatever else is known of it.

    Samples whose attribute "picture" is the same show the very same picture. more_pictures are those of a text about
    several.
    """

    key: str
    picture: bytes
    caption: str
    attributes: dict
    more_captions: tuple[str, ...] = ()
    more_pictures: tuple[bytes, ...] = ()

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """All pictures of the sample."""
        return (self.picture, *self.more_pictures)

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the picture."""
        return (self.caption, *self.more_captions)

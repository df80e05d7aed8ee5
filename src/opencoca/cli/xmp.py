"""XMP sidecar files: a description or labels beside a picture, where photo managers look for them.

An XMP file is RDF in XML. What is there already stays, comments, prefixes and fields of other programs included. A file
may come from anywhere, so one with a DOCTYPE, which is where entities are declared, is refused before it is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.dom import Node, minidom
from xml.parsers import expat

from opencoca.errors import DataError

META, RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC, XMLNS = "http://purl.org/dc/elements/1.1/", "http://www.w3.org/2000/xmlns/"
MAX_BYTES = 16_000_000
EMPTY = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="{META}">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about="" xmlns:dc="{DC}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""

# minidom writes these bare, and they would be read as spaces; so they pass through it as noncharacters
REFERENCES = {"\n": ("\ufdd0", "&#xA;"), "\t": ("\ufdd1", "&#x9;"), "\r": ("\ufdd2", "&#xD;")}

Field = Literal["description", "subject"]


class Xmp:
    """The content of one XMP file, new or read from a file."""

    def __init__(self, document: minidom.Document) -> None:
        found = document.getElementsByTagNameNS(RDF, "RDF")
        if not found:
            raise DataError("it holds no XMP: there is no rdf:RDF in it; repair or remove it")
        self._document, self._rdf = document, found[0]

    @classmethod
    def load(cls, file: Path) -> Xmp:
        """The content of `file`, or an empty one where there is no such file.

        Raises: DataError where it isn't XMP, is too large or has a DOCTYPE.
        """
        try:
            with file.open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return cls(_parse(EMPTY.encode()))
        if len(content) > MAX_BYTES:
            raise DataError(f"it has more than {MAX_BYTES} bytes; remove it")
        return cls(_parse(content or EMPTY.encode()))

    def items(self, field: Field) -> list[str]:
        """The entries of a field, the description's default first."""
        entries = [item for holder in self._holders(field) for item in holder.getElementsByTagNameNS(RDF, "li")]
        entries.sort(key=lambda item: item.getAttribute("xml:lang") not in ("", "x-default"))
        return [_text(item) for item in entries]

    def describe(self, words: str) -> None:
        """Makes `words` the description in the default language; those in other languages stay."""
        holder = self._container("description", "Alt")
        for item in _elements(holder, RDF, "li"):
            if item.getAttribute("xml:lang") in ("", "x-default"):
                holder.removeChild(item)
        item = self._item(holder, words)
        item.setAttribute("xml:lang", "x-default")
        holder.insertBefore(item, holder.firstChild)

    def label(self, labels: Sequence[str], replaced: Sequence[str] = ()) -> None:
        """Adds subjects; of those there, the `replaced` go."""
        holder = self._container("subject", "Bag")
        for item in _elements(holder, RDF, "li"):
            if _text(item) in {*labels, *replaced}:
                holder.removeChild(item)
        for label in labels:
            holder.appendChild(self._item(holder, label))

    def text(self) -> str:
        """The whole file, without a declaration: it is written as UTF-8, which XMP needs none for."""
        for element in self._document.getElementsByTagName("*"):
            for attribute in element.attributes.values():
                attribute.value = _marked(attribute.value, "\n\t\r")
            for child in element.childNodes:
                if child.nodeType == Node.TEXT_NODE:
                    child.data = _marked(child.data, "\r")
        text = "".join(node.toxml() + "\n" for node in self._document.childNodes)
        for mark, reference in REFERENCES.values():
            text = text.replace(mark, reference)
        return text

    def _holders(self, field: Field) -> list[minidom.Element]:
        return [
            element for parent in _elements(self._rdf, RDF, "Description") for element in _elements(parent, DC, field)
        ]

    def _container(self, field: Field, kind: str) -> minidom.Element:
        """The rdf:Alt or rdf:Bag of a field, made where it isn't there."""
        holders = self._holders(field)
        holder = holders[0] if holders else self._append(self._description(), DC, "dc", field)
        containers = [container for name in ("Alt", "Bag", "Seq") for container in _elements(holder, RDF, name)]
        return containers[0] if containers else self._append(holder, RDF, "rdf", kind)

    def _description(self) -> minidom.Element:
        """The rdf:Description that new fields go into: the first."""
        there = _elements(self._rdf, RDF, "Description")
        if there:
            return there[0]
        made = self._append(self._rdf, RDF, "rdf", "Description")
        made.setAttributeNS(RDF, "rdf:about", "")
        return made

    def _item(self, holder: minidom.Element, words: str) -> minidom.Element:
        item = self._element(holder, RDF, "rdf", "li")
        item.appendChild(self._document.createTextNode(_sayable(words)))
        return item

    def _append(self, parent: minidom.Element, namespace: str, prefix: str, name: str) -> minidom.Element:
        return parent.appendChild(self._element(parent, namespace, prefix, name))

    def _element(self, parent: minidom.Element, namespace: str, prefix: str, name: str) -> minidom.Element:
        """A new element with its own declaration of its prefix where `parent` doesn't see the same one."""
        element = self._document.createElementNS(namespace, f"{prefix}:{name}")
        if _declared(parent, prefix) != namespace:
            element.setAttributeNS(XMLNS, f"xmlns:{prefix}", namespace)
        return element


def _parse(content: bytes) -> minidom.Document:
    def refuse(*_: object) -> None:
        raise DataError("it declares a DOCTYPE, which XMP never has; remove it")

    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        guard.Parse(content, True)
        return minidom.parseString(content)
    except (expat.ExpatError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"it isn't XML ({error}); repair or remove it") from error


def _declared(element: Node | None, prefix: str) -> str | None:
    """The namespace that a prefix has at an element."""
    while isinstance(element, minidom.Element):
        if element.hasAttribute(f"xmlns:{prefix}"):
            return element.getAttribute(f"xmlns:{prefix}")
        element = element.parentNode
    return None


def _text(element: minidom.Element) -> str:
    return "".join(child.data for child in element.childNodes if child.nodeType == Node.TEXT_NODE)


def _elements(parent: minidom.Element, namespace: str, name: str) -> list[minidom.Element]:
    """The elements of a name right below `parent`."""
    return [
        child
        for child in parent.childNodes
        if isinstance(child, minidom.Element) and (child.namespaceURI, child.localName) == (namespace, name)
    ]


def _marked(text: str, letters: str) -> str:
    return text.translate({ord(letter): REFERENCES[letter][0] for letter in letters})


def _sayable(words: str) -> str:
    """The words without what XML has no way to write: control characters, surrogates, U+FFFE and U+FFFF."""
    return re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", "", words)

"""XMP sidecar files: valid XML that keeps what was there, and never runs what a stranger put in."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opencoca.cli.xmp import DC, EMPTY, MAX_BYTES, RDF, Xmp
from opencoca.errors import DataError

LANG = "{http://www.w3.org/XML/1998/namespace}lang"
FOREIGN = """\
<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- made by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Some Tool 1.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:photo="http://ns.adobe.com/photoshop/1.0/"
    xmp:Rating="5" photo:Instructions="one&#xA;two&#x9;&quot;three&quot;"/>
  <rdf:Description rdf:about="" xmlns:d="http://purl.org/dc/elements/1.1/">
   <d:subject><rdf:Bag><rdf:li>lake</rdf:li><rdf:li>cat</rdf:li></rdf:Bag></d:subject>
   <d:description><rdf:Alt>
    <rdf:li xml:lang="x-default">old words</rdf:li><rdf:li xml:lang="de">alte Worte</rdf:li>
   </rdf:Alt></d:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    file = tmp_path / "a.xmp"
    file.write_text(FOREIGN, encoding="utf-8")
    return file


def items(text: str, field: str) -> list[tuple[str | None, str]]:
    """The entries of a field as another XML reader sees them."""
    root = ET.fromstring(text.encode())
    return [(li.get(LANG), li.text or "") for li in root.iterfind(f".//{{{DC}}}{field}/*/{{{RDF}}}li")]


def test_a_new_file_has_description_and_subjects(tmp_path):
    xmp = Xmp.load(tmp_path / "none.xmp")
    xmp.describe('a "cat" & <dog>')
    xmp.label(["cat & co", "dog"])
    assert items(xmp.text(), "description") == [("x-default", 'a "cat" & <dog>')]
    assert items(xmp.text(), "subject") == [(None, "cat & co"), (None, "dog")]
    assert xmp.text().startswith("<?xpacket begin=")
    (tmp_path / "again.xmp").write_text(xmp.text(), encoding="utf-8")
    again = Xmp.load(tmp_path / "again.xmp")
    assert again.text() == xmp.text()
    assert again.items("description") == ['a "cat" & <dog>']


def test_what_other_programs_wrote_stays(foreign):
    xmp = Xmp.load(foreign)
    assert xmp.items("description") == ["old words", "alte Worte"]
    xmp.describe("new words")
    xmp.label(["boat"], replaced=["cat", "dog"])
    text = xmp.text()
    assert items(text, "description") == [("x-default", "new words"), ("de", "alte Worte")]
    assert [word for _, word in items(text, "subject")] == ["lake", "boat"]
    first = ET.fromstring(text.encode()).find(f".//{{{RDF}}}Description")
    assert first is not None
    assert first.get("{http://ns.adobe.com/photoshop/1.0/}Instructions") == 'one\ntwo\t"three"'
    assert first.get("{http://ns.adobe.com/xap/1.0/}Rating") == "5"
    for kept in ("<!-- made by hand -->", 'x:xmptk="Some Tool 1.0"', "<?xpacket end="):
        assert kept in text


@given(st.text(max_size=40))
def test_any_words_come_back_but_for_what_xml_cannot_hold(words):
    xmp = Xmp.load(Path("there is no such file"))
    xmp.describe(words)
    kept = "".join(
        x for x in words if x in "\t\n" or (x >= " " and x not in "\ufffe\uffff" and not "\ud800" <= x <= "\udfff")
    )
    assert items(xmp.text(), "description") == [("x-default", kept)]


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><x>&b;</x>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + EMPTY.partition("\n")[2].replace(
    'about=""', 'about="&a;"'
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "declares a DOCTYPE"),
        (EXTERNAL.encode(), "declares a DOCTYPE"),
        (BOMB.encode("utf-16"), "declares a DOCTYPE"),
        (b"not xml at all", "isn't XML"),
        (b"<a><b></a>", "isn't XML"),
        (b"<a/>", "there is no rdf:RDF"),
        (b" " * (MAX_BYTES + 1), "has more than"),
    ],
    ids=["bomb", "external", "utf-16 bomb", "text", "broken", "no XMP", "huge"],
)
def test_what_is_no_xmp_is_refused(tmp_path, content, said):
    (tmp_path / "a.xmp").write_bytes(content)
    with pytest.raises(DataError, match=said):
        Xmp.load(tmp_path / "a.xmp")

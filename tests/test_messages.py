"""Every sentence that a user's mistake ends in, read from the source: it names what it is about, says what to do, ends.

What is read off the code is the text with its variable parts left open. Messages that are put together elsewhere are
listed below by hand; a new one must be, too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"InputError", "FlaggedError", "ModelMissing", "UnresolvedError", "Failed"}
LONGEST = 300  # characters, each variable part counted as two
SUBJECT = re.compile(r"(\{\}|[\w -]+?)(\{\})?(:|,| (is|was|must|of|flagged|\w+s) )")
"""It begins with a file, a field or a thing, and what is the matter with it."""
REMEDY = re.compile(
    r"[;:,] \w+"  # the order, in a clause after what is the matter: "; use …"
    r"|\b(must|needed|needs|at least|at most|the most|is not)\b|does not end in|\{\}\W?$"
)
"""What to do about it: in a clause of its own, as the rule that was broken, or in words that are put in."""
FACTS = {
    "start: {} s is after the end of {} at {} s.": "the numbers say it",
    "the request is not a JSON object.": "it says what it is to be",
    "{}: no such parameter.": "where a name is near, it is put in",
    "{}: there are no frames to write.": "a program's mistake, no person's",
    "{}: has no video stream.": "it is another kind of file",
    "{}: the frames change size, from {}x{} on.": "the numbers say it",
    "stg_blocks names block {}, and this model has blocks 0 to {}.": "the numbers say it",
}
"""Sentences without a remedy, and why they may be."""
PUT_TOGETHER = {
    "ltx/media/images.py": 4,
    "ltx/models.py": 3,
    "nodes/loaders.py": 1,
    "api/applications/audio_to_video.py": 1,
    "api/files/looks.py": 2,
    "api/host.py": 1,
    "api/queue/endings.py": 2,
    "api/queue/runner.py": 1,
}
"""How many of each file's are made elsewhere, from another error or a helper's text; their own tests hold them."""


def template(node: ast.expr) -> str | None:
    """The text of an expression, `{}` for what is put in; None where it is not all here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = template(node.left), template(node.right)
        return None if None in parts else "".join(parts)
    if isinstance(node, ast.IfExp):  # both ends are sentences: the shorter one is looked at
        parts = template(node.body), template(node.orelse)
        return None if None in parts else min(parts, key=len)
    return None


@cache
def messages() -> list[tuple[str, str | None]]:
    """(file:line, template) of every exception of KINDS that is made with a text."""
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno}", template(node.args[0]))
        for folder in ("ltx", "nodes", "api")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args
    ]


def test_they_are_found() -> None:
    assert len(messages()) > 200
    elsewhere = Counter(where.split(":")[0] for where, text in messages() if text is None)
    assert {file: count for file, count in elsewhere.items() if count > PUT_TOGETHER.get(file, 0)} == {}


def fault(text: str) -> str | None:
    """What is wrong with a sentence."""
    subject = SUBJECT.match(text)
    if not subject:
        return "begins with no file, field or thing"
    if not text.endswith((".", "?")) or text.endswith(".."):
        return "is no sentence"
    if "\n" in text or len(text) > LONGEST:
        return "too long"
    if text not in FACTS and not REMEDY.search(text, subject.end()):
        return "says not what to do"
    return "is for programmers" if re.search(r"\b(Error|Exception|Traceback|invalid|oops|sorry)\b", text) else None


def test_a_sentence_names_its_subject_and_a_remedy_and_ends() -> None:
    assert [(where, wrong, text) for where, text in messages() if text is not None and (wrong := fault(text))] == []


def test_what_is_no_such_sentence_is_found() -> None:
    assert fault("the file: cannot be read; save it again.") is None
    assert all(
        map(fault, ("cannot be read.", "the file: cannot be read", "the file: is bad.", "the file: ; save it.."))
    )
    assert all(map(fault, ("the file: invalid; save it again.", f"the file: {'x' * LONGEST}; save it again.")))


def strings() -> str:
    """Every text in the sources, variable parts left open; a line each."""
    found = []
    for folder in ("ltx", "nodes", "api"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            found += [text for node in ast.walk(tree) if isinstance(node, ast.expr) and (text := template(node))]
    return "\n".join(" ".join(text.split()) for text in found)


def test_what_the_page_of_symptoms_quotes_is_said() -> None:
    """Its tables quote the pack's sentences; one that was reworded would no longer be found there."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [row.split("|")[1] for row in page.splitlines() if row.startswith("|")]
    quotes = [quote for symptom in symptoms for quote in re.findall('"([^"]+)"', symptom)]
    said = strings()
    assert len(quotes) >= 30
    for quote in quotes:
        words = re.findall(r"[A-Za-z][\w'/-]*", quote)  # what stands between them may be put in
        assert re.search(r"[^\n]*?".join(map(re.escape, words)), said), f"nothing says: {quote}"

"""Source and deviations of methods: they stand under each table that names the methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from suite import methods
from suite.methods import Note
from suite.report import words
from suite.report.frames import FROM_ABSTRACT

TITLE = "Methods: source and deviations"


def of_methods(names: Iterable[str]) -> list[Note]:
    """Return the notes of these methods; the last note is shared by all criteria."""
    every = list(dict.fromkeys(names))
    shared = methods.shared_deviations(every)
    common = [Note(method="every criterion", source="", deviations=shared, signed="")] if shared else []
    return [*methods.notes(every), *common]


def markdown(notes: Sequence[Note], level: int = 2) -> list[str]:
    """Return heading and list; nothing without notes."""
    if not notes:
        return []
    lines = [f"- **{words.markdown(marked(note))}**: {words.markdown(text(note))}" for note in notes]
    return [f"{'#' * level} {TITLE}", "\n".join(lines)]


def latex(notes: Sequence[Note]) -> str:
    """Return a paragraph to follow a floating table; "" without notes."""
    if not notes:
        return ""
    each = " ".join(rf"\textbf{{{words.latex(marked(note))}}}: {words.latex(text(note))}" for note in notes)
    return rf"{{\par\noindent\scriptsize {words.latex(TITLE)}. {each}\par}}" + "\n"


def marked(note: Note) -> str:
    """Return the method's name, marked if the method is known from an abstract alone."""
    return note.method + (FROM_ABSTRACT if note.evidence == "abstract" else "")


def text(note: Note) -> str:
    """Return source and deviations in sentences."""
    return words.sentences(note.source, f"deviations: {note.deviations}")

"""Help texts, recipes and documents are as in the golden files."""

import pytest

from tests.golden import FOLDER, documents, help_texts, recipes

WAY_OUT = "the golden files differ: run python -m tests.golden and review the difference"


def compare(found, *folders):
    kept = {
        path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in (FOLDER / folder).iterdir()
    }
    assert found.keys() == kept.keys(), WAY_OUT
    for name, text in found.items():
        assert text == kept[name], f"{name}: {WAY_OUT}"


def test_help_texts():
    compare(help_texts(), "help", "help-all")


def test_resolved_recipes():
    compare(recipes(), "recipes")


@pytest.mark.slow
def test_names_and_types_of_documents():
    compare(documents(), "documents")

"""The nodes in other languages: every text is translated from the English that stands in the code, and served."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.draw_locales import COPIES, LANGUAGES, LOCALES, categories, english, strings, texts, written

each = pytest.mark.parametrize("language", LANGUAGES)
# what a translation leaves as it is: files, folders, patterns, and values of widgets and numbers with a point
KEPT = re.compile(
    r"[\w.-]+\.safetensors|models/\w+|%[\w.:-]+%|LTX_\w+=\w+|\b(?:auto|res_2s|RandomNoise)\b|\b\d+\.\d+", re.A
)
PREFIX = "LTX A2V "
OUTPUTS = ("next noise", "next audio")


@pytest.fixture(scope="module")
def info(comfy: Comfy) -> dict[str, Any]:
    return comfy.object_info()


@each
def test_every_text_is_translated_and_none_is_left_over(language: str, info: dict[str, Any]) -> None:
    found, wanted = strings(language), texts(english(info)) | texts(categories(info))
    assert set(found) == wanted
    assert sum(text == translation for text, translation in found.items()) < 15
    for text, translation in found.items():
        assert translation.strip() == translation != "" and not set(translation) & set("{}@|"), text
        assert set(KEPT.findall(text)) <= set(KEPT.findall(translation)), text


@each
def test_a_text_names_nodes_and_outputs_as_the_canvas_shows_them(language: str) -> None:
    found = strings(language)
    titles = {text.removeprefix(PREFIX): to.removeprefix(PREFIX) for text, to in found.items() if PREFIX in text}
    # a name of one word, such as Guidance, can also be an ordinary word of a sentence
    shown = {title: to for title, to in titles.items() if " " in title} | {name: found[name] for name in OUTPUTS}
    # in "between Decode and Save Video" the node Decode and Save is not meant
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, shown))})\b(?! [A-Z])")
    for text, translation in found.items():
        for name in named.findall(text):
            assert shown[name] in translation, (text, name)


@pytest.mark.parametrize("locale", [*LANGUAGES, *COPIES])
def test_what_comfyui_reads_is_made_from_it_and_served(locale: str, comfy: Comfy, info: dict[str, Any]) -> None:
    made = written(info, locale)
    for name, wanted in made.items():
        assert json.loads((LOCALES / locale / name).read_text(encoding="utf-8")) == wanted
    served = requests.get(f"{comfy.url}/i18n", timeout=30).json()[locale]
    nodes = {kind: node for kind, node in served["nodeDefs"].items() if kind.startswith("LTXA2V")}
    assert nodes == made["nodeDefs.json"]
    assert served["nodeCategories"].items() >= made["main.json"]["nodeCategories"].items()
    assert len(made["main.json"]["nodeCategories"]) >= 6

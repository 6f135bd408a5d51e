"""What a user reads says what is there: a help page for every node, the table of parameters, the README's commands."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from a2v.ltx.arguments import parser
from a2v.ltx.edits import ReferenceUse, VideoEdit
from a2v.ltx.models import MODELS, SETS, named_file, total
from a2v.ltx.nag import Nag
from a2v.ltx.request import FLAGS, PARAMETERS, Parameter, parse
from a2v.ltx.tools import doctor, download
from a2v.ltx.windows import WindowSize

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
TEXTS += [ROOT / "assets" / "README.md", ROOT / "mini" / "weights" / "README.md"]
TEXTS += sorted((ROOT / "docs").glob("*.md")) + sorted(PAGES.glob("*.md"))
Row = tuple[str, ...]


def schemas() -> dict[str, str]:
    """Node id → display name, as the sources have them: no ComfyUI is needed."""
    found = {}
    for file in sorted((ROOT / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
                if "node_id" in given:
                    found[given["node_id"]] = given["display_name"]
    return found


NODES = schemas()
# How texts call a node: its title without the pack's name and the words that are there for the search.
SHORT = {title.removeprefix("LTX A2V ").split(" (")[0]: node_id for node_id, title in NODES.items()}


def page(node_id: str) -> str:
    return (PAGES / f"{node_id}.md").read_text(encoding="utf-8")


def rows(text: str, header: str) -> list[Row]:
    """The cells of the first table whose header row begins with that cell, without code marks."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    next(lines)  # the rule below the header
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append(tuple(re.sub("^`([^`]*)`$", r"\1", cell.strip()) for cell in line[1:-1].split("|")))
    return table


def listed(node_id: str, part: str) -> list[Row]:
    """The name and the default of each entry of the list under that heading of a node's page."""
    text = page(node_id).split(f"\n## {part}\n")[1].split("\n## ")[0]
    return [(name, default) for name, default in re.findall(r"^- `([^`]+)`(?:, default `([^`]+)`)?: \S", text, re.M)]


def test_every_node_has_a_page_and_every_page_a_node() -> None:
    assert len(NODES) > 20
    assert {file.name for file in PAGES.iterdir()} == {f"{node_id}.md" for node_id in NODES}


@pytest.mark.parametrize("node_id", NODES)
def test_a_page_has_the_parts_that_an_artist_looks_for(node_id: str) -> None:
    text = page(node_id)
    titles = [line for line in text.splitlines() if line.startswith("#")]
    parts = ["## Inputs", "## Outputs", "## What to try", "## Common mistakes"]
    assert titles == [f"# {NODES[node_id]}", *parts]
    assert listed(node_id, "Inputs") and listed(node_id, "Outputs")
    assert all(line.count("|") <= 3 for line in text.splitlines()), "ComfyUI shows the page in a narrow column"
    assert 15 <= len(text.splitlines()) <= 50
    for name in re.findall(r"(?<!\*)\*([A-Z][\w ]+)\*(?!\*)", text):  # another node, in italics
        assert name in SHORT or name in STOCK, name


NATIVE = "RandomNoise,DisableNoise,SplitSigmas,Load Image,Load Video,Preview Audio,Record Audio,Create List,String"
STOCK = set(NATIVE.split(","))


def shown(each: object) -> str:
    """An input's default as a page has it; nothing for a socket, or for a list of the user's own files."""
    default = getattr(getattr(each, "input_override", None) or each, "default", None)  # the widget of several types
    if default is True or default is False:
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, (int, float)) else str(default or "")


@pytest.mark.parametrize("node_id", NODES)
def test_a_page_names_each_input_with_its_default_and_each_output(node_id: str) -> None:
    pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")
    from a2v import nodes

    (node,) = (node for node in nodes.NODES if node.GET_SCHEMA().node_id == node_id)
    schema = node.GET_SCHEMA()
    assert listed(node_id, "Inputs") == [(each.display_name or each.id, shown(each)) for each in schema.inputs]
    assert [name for name, _ in listed(node_id, "Outputs")] == [each.display_name for each in schema.outputs]


@pytest.mark.parametrize("node_id", NODES)
def test_a_page_names_each_choice(node_id: str) -> None:
    """Of the widgets whose choices are the pack's own, not the user's files."""
    pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")
    from a2v import nodes

    (node,) = (node for node in nodes.NODES if node.GET_SCHEMA().node_id == node_id)
    for each in node.GET_SCHEMA().inputs:
        for choice in getattr(each, "options", None) or ():
            assert re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", page(node_id)), (each.id, choice)


def prose(file: Path) -> str:
    return re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(file: Path) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_text_is_plain_markdown_whose_links_lead_somewhere(file: Path) -> None:
    text = prose(file)
    assert not re.search(r"<[a-zA-Z/!]", text), "raw HTML"
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            place = file.parent / path if path else file
            assert place.exists() and (not heading or heading in anchors(place)), target


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_text_names_sockets_that_the_nodes_have(file: Path) -> None:
    """As *Guidance* → `modality`; and each workflow by the title that it has."""
    text = " ".join(prose(file).split())
    for title, name in re.findall(r"\*([A-Z][\w ]+)\* → `([^`]+)`(?! of \*)", text):
        sockets = {name for part in ("Inputs", "Outputs") for name, _ in listed(SHORT[title], part)}
        assert name in sockets, (title, name)
    for title in re.findall(r"[`\"*](\d\d [A-Z][^`\"*]+)[`\"*]", text):
        assert (ROOT / "example_workflows" / f"{title}.json").exists(), title


@pytest.mark.parametrize("node_id", NODES)
def test_a_page_has_no_link_to_a_file(node_id: str) -> None:
    """ComfyUI serves web/ and nothing else of the pack."""
    assert re.findall(r"\]\((?!https://)", page(node_id)) == []


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_requests_that_a_text_shows_are_read(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for request in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        parse(json.loads(request))
    for part in re.findall(r'`("(?:edit|reference|windows|nag)": [^`]+)`', text):
        parse({"prompt": "a face", **json.loads(f"{{{part}}}")})


def test_the_readme_s_tables_of_models_are_the_one_in_the_code() -> None:
    """Their files, sizes and folders, and what each set of `download` takes on the disk."""
    named = set()
    for line in README.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        for name in re.findall(r"`([^`]+)`", cells[1]) if len(cells) == 4 else ():
            model = named_file(name) or next((each for each in MODELS.values() if each.repository == name), None)
            if model is None:
                assert "…" in name, name
                continue
            named.add(model.name)
            assert cells[3].startswith(f"`{model.folder}`"), name
            (number,) = re.findall(r"(?:below )?([\d.]+) GB", cells[2])
            rounding = 0.51 * 10 ** -len(number.partition(".")[2])
            size = model.size / 1e9
            assert size < 1 if "below" in cells[2] else abs(size - float(number)) <= rounding, (name, size)
    assert len(named) > 15
    for key in ("default", "small", "16-bit", "2.5", "2.5-small"):
        assert f"{total(SETS[key]) / 1e9:.0f} GB" in README, key
    for key in re.findall(r"`download ([\w][\w.-]+)`", README):
        assert key in {*SETS, *MODELS}, key


def test_the_table_of_cards_is_that_of_the_benchmarks() -> None:
    """What waits in host memory of a transformer in each format, on cards of the usual sizes."""
    page, benchmarks = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("memory", "benchmarks"))
    counted = {row[0]: row[2] for row in rows(benchmarks, "card and format")}
    formats = (("bf16",), ("fp8", "int8"), ("NVFP4", "GGUF Q4_0"))
    for sizes, *told in rows(page, "card"):
        card = sizes.partition("(")[2].removesuffix(")")
        for text, names in zip(told, formats, strict=True):
            for copied in (counted[f"{card}: {name}"] for name in names):
                gigabytes = float(copied.removesuffix(" GB")) if copied != "fits" else 0.0
                assert abs(gigabytes - (0.0 if text == "nothing" else float(text.removesuffix(" GB")))) <= 0.5, card
                assert (text == "nothing") == (copied == "fits"), card


def test_each_setting_of_the_environment_is_in_a_text() -> None:
    sources = [file for folder in ("api", "ltx", "nodes") for file in (ROOT / folder).rglob("*.py")]
    settings = {name for file in sources for name in re.findall(r"LTX_A2V_[A-Z_]*[A-Z]", file.read_text("utf-8"))}
    told = "".join(file.read_text(encoding="utf-8") for file in TEXTS)
    assert len(settings) > 15 and {name for name in settings if not re.search(rf"{name}(?![A-Z_])", told)} == set()


def span(parameter: Parameter) -> str:
    """What a parameter takes, as the table has it."""
    if parameter.kind == "switch":
        return "true, false"
    if parameter.kind == "size":
        return f"{', '.join(parameter.choices)}, or {{width, height}}, {parameter.minimum:g}–{parameter.maximum:g} each"
    if parameter.kind == "number" or parameter.kind == "integer":
        return f"{parameter.minimum:g}–{parameter.maximum:g}"
    if parameter.kind in ("windows", "nag"):
        return "true, false, or an object as below"
    if parameter.kind in ("edit", "reference"):
        return "an object"
    return ", ".join(parameter.choices) or {"seed": "whole number"}.get(parameter.kind, parameter.kind)


def usual(parameter: Parameter) -> str:
    if isinstance(parameter.default, bool):
        return str(parameter.default).lower()
    return f"{parameter.default:g}" if isinstance(parameter.default, (int, float)) else str(parameter.default or "")


def test_the_table_of_parameters_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    table = {name: (default, takes) for name, default, takes, *_ in rows(text, "parameter")}
    assert list(table) == list(PARAMETERS)
    for name, parameter in PARAMETERS.items():
        default, takes = table[name]
        assert takes == span(parameter), name
        if parameter.kind != "text":
            assert default == usual(parameter), name
    assert PARAMETERS["negative_prompt"].default in text
    assert dict(rows(text, "file")) == FLAGS


@pytest.mark.parametrize(
    ("name", "place", "cls"),
    [("video", 1, VideoEdit), ("video", 2, ReferenceUse), ("parameters", 1, Nag), ("parameters", 2, WindowSize)],
)
def test_the_tables_of_fields_are_those_in_the_code(name: str, place: int, cls: type) -> None:
    """place: which of the page's tables of fields. What is absent if a request does not name it has no default."""
    header = "| field |"
    table = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split(f"\n{header}")[place]
    told = {name: row[1] for row in rows(header + table, "field") for name in row[0].replace("`", "").split(", ")}
    wanted = {each.name: {None: "", (): "{}"}.get(each.default, each.default) for each in fields(cls)}
    assert told.keys() == wanted.keys()
    for field, default in wanted.items():
        text = str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")
        assert told[field] == text, field


def test_the_table_of_parameters_names_inputs_that_the_nodes_have() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    nodes = SHORT
    for name, _, _, _, where in rows(text, "parameter"):
        places = re.findall(r"\*([^*]+)\* → `([^`]+)`", where)
        assert bool(places) == (name not in ("edit", "reference")), "a video has a page of its own"
        for title, each in places:
            assert each in {name for name, _ in listed(nodes[title], "Inputs")}, (name, where)


def test_the_readme_names_flags_and_targets_that_exist() -> None:
    parsers = (parser(), doctor.parser(), download.parser())
    flags = {option for each in parsers for action in each._actions for option in action.option_strings}
    foreign = {"--lowvram", "--disable-metadata", "--disable-dynamic-vram"}  # ComfyUI's own
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) <= flags | foreign
    for action in parser()._actions:
        assert not action.required or action.option_strings[0] in README
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[ `]*(?:$|[#`A-Z]))", README, re.MULTILINE)) <= targets


def test_the_page_of_the_command_has_every_flag() -> None:
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    flags = {option for action in parser()._actions for option in action.option_strings if option.startswith("--")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page))
    assert named == flags - {"--fused"} | {"--help"}, "--fused is the default"
    listed = set(re.findall(r"--[a-z][a-z0-9-]+", " ".join(row[0] for row in rows(page, "flag"))))
    assert flags - listed == {"--help", "--fused", "--device", "--dtype"}, "these have words of their own"


def test_the_readme_lists_the_workflows() -> None:
    listed = {row[0] for row in rows(README, "workflow")}
    titles = [file.stem for file in (ROOT / "example_workflows").glob("*.json")]
    assert listed == {title for title in titles if not title.endswith(")")}
    assert all(f"`{kind}`" in README for title in titles for kind in re.findall(r"\(.*\)$", title))
    for name in ("screens", "gallery"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sorted(listed), name

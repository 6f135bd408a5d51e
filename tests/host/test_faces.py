"""What a person sees of the shipped workflows, measured on the page: they open large enough, and nothing is covered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from _pytest.mark import ParameterSet
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.draw_workflows import FRONTEND, INPUTS, all_nodes_file, opening_file
from a2v.tests.host.drawing import faces
from a2v.tests.host.drawing.measure import DRAWN, FINISHED, RENDER, enter, look
from a2v.tests.host.drawing.variants import VARIANTS, Variant
from a2v.tests.host.test_workflows import quick
from a2v.tests.tiny import TinyFiles
from packaging.version import Version
from PIL import Image

LEAST = 0.5  # zoom at which a person can read
FULL = ("song",)  # it has the largest stages
SQUARES = ("first_and_last_image", "song")
ENTERED = ("song",)  # of these, whose stages are entered in the usual suite
COLOURS = """types => types.map(type => [app.canvas.default_connection_color_byType[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`)])"""
# in Nodes 2.0, whose texts have less room below than a line needs
CUT = """() => [...document.querySelectorAll('[data-node-id] textarea')]
    .filter(text => text.offsetParent && text.scrollHeight - text.clientHeight > 8).map(text => text.value)"""
FILES = {"opening": opening_file, "all nodes": all_nodes_file}
DRAWINGS = {"opening": faces.opening, "all nodes": faces.all_nodes}
SQUARE = 512  # pixels a side, of a result and of the images before it
IMAGES = """name => [app.graph, ...app.graph.subgraphs.values()].flatMap(graph => graph.nodes)
    .filter(node => node.type.endsWith('LoadImage')).forEach(node => {
        const widget = node.widgets.find(widget => widget.name === 'image');
        widget.options.values = [name];
        widget.value = name;
        widget.callback?.(name);
    })"""
RESULTS = """() => [...document.querySelectorAll('video')].filter(video => video.readyState && video.videoWidth)
    .map(video => [video.videoWidth, video.videoHeight])"""


def variants(*usual: str) -> list[ParameterSet]:
    """All workflows; those that are not named run in `make soak` alone."""
    return [pytest.param(v, id=v.name, marks=[pytest.mark.soak] * (v.name not in usual)) for v in VARIANTS]


each, each_stage = (pytest.mark.parametrize("variant", variants(*usual)) for usual in (FULL, ENTERED))
EXPERIMENT = "Nodes 2.0 is an experiment in this frontend, and draws other sizes"
# In 1.32.9 no face is right and nothing can be recorded; in 1.35.9 what is listed here, and the stages, are too large;
# in 1.49.6, which offers it to everybody, all is right.
FIRST, EARLY = (
    pytest.mark.skipif(Version(version(FRONTEND)) < number, reason=EXPERIMENT) for number in (Version("1.35"), FINISHED)
)
TOO_LARGE = [
    *((name, face) for name in ("first_and_last_image", "song", "redub") for face in FILES),
    *((name, "all nodes") for name in ("retake", "reference", "dub")),
]


def both(mark: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """The canvas, and Nodes 2.0 with that mark."""
    return pytest.mark.parametrize("nodes2", [False, pytest.param(True, marks=mark)], ids=["canvas", "nodes 2.0"])


renderings, later_renderings = both(FIRST), both(EARLY)


@pytest.fixture(scope="module")
def frontend(comfy: Comfy, chromium: str) -> Iterator[Frontend]:
    for file in INPUTS:
        comfy.upload(file)
    with Frontend(comfy.url, chromium, width=1600, height=1000) as opened:
        yield opened
        opened.page.evaluate(RENDER, False)  # the server keeps settings


def opened(frontend: Frontend, variant: Variant, face: str, nodes2: bool) -> None:
    frontend.page.evaluate(RENDER, nodes2)
    frontend.load(json.loads(FILES[face](variant).read_text(encoding="utf-8")))
    frontend.page.wait_for_timeout(1000)
    frontend.page.wait_for_function(DRAWN)


@renderings
@pytest.mark.parametrize("face", FILES)
@each
def test_it_opens_whole_and_readable(variant: Variant, face: str, nodes2: bool, frontend: Frontend) -> None:
    if nodes2 and EARLY.args[0] and (variant.name, face) in TOO_LARGE:
        pytest.skip(EXPERIMENT)
    opened(frontend, variant, face, nodes2)
    seen = look(frontend)
    assert seen.wrong == []
    assert seen.zoom >= LEAST and not seen.hidden, seen
    assert seen.links >= 3
    if nodes2 and not EARLY.args[0]:
        assert frontend.page.evaluate(CUT) == []


def test_our_sockets_have_their_colours_in_both_renderings(comfy: Comfy, frontend: Frontend) -> None:
    ours = {kind for node in comfy.object_info().values() for kind in node["output"] if str(kind).startswith("LTXA2V")}
    found = frontend.page.evaluate(COLOURS, sorted(ours))
    assert len(ours) > 8 and all(canvas and canvas.lower() == style.strip().lower() for canvas, style in found)


@pytest.mark.soak
@later_renderings
@each_stage
def test_every_stage_fits_the_window(variant: Variant, nodes2: bool, frontend: Frontend) -> None:
    opened(frontend, variant, "opening", nodes2)
    found = list(faces.opening(variant).ways())
    assert len(found) == 6
    for path in found:
        enter(frontend, *path)
        seen = look(frontend)
        assert seen.wrong == [], path
        assert seen.zoom >= LEAST and seen.links, path
    enter(frontend)


@pytest.fixture(scope="module")
def square(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("square") / "square.png"
    Image.effect_noise((SQUARE, SQUARE), 60).convert("RGB").save(path)
    return comfy.upload(path)


@pytest.mark.soak
@later_renderings
@pytest.mark.parametrize("face", ["opening", "all nodes"])
@pytest.mark.parametrize("variant", [v for v in variants() if v.id in SQUARES])
def test_a_square_result_fits_its_node(
    variant: Variant, face: str, nodes2: bool, frontend: Frontend, comfy: Comfy, models: TinyFiles, square: str
) -> None:
    """With square images beside it, in the whole graph and in every stage. The widest shipped results are 16:9, and a
    node that holds a picture grows with it."""
    opened(frontend, variant, face, nodes2)
    frontend.page.evaluate(IMAGES, square)
    prompt = quick(variant.name, models, INPUTS[0].name, frontend.prompt())
    for node in prompt.values():
        values = {
            "LTXA2VLoadImage": {"image": square},
            "LoadImage": {"image": square},
            "LTXA2VVideoSize": {"video_size": "custom", "width": SQUARE, "height": SQUARE},
        }
        node["inputs"].update(values.get(node["class_type"], {}))
    # the page hears of this run as of its own
    comfy.queue(prompt, client_id=frontend.page.evaluate("() => app.api.clientId"))
    frontend.page.wait_for_function(f"() => ({RESULTS})().length", timeout=240_000)
    assert frontend.page.evaluate(RESULTS) == [[SQUARE, SQUARE]]
    for path in ((), *DRAWINGS[face](variant).ways()):
        enter(frontend, *path)
        seen = look(frontend)
        assert seen.wrong == [] and not seen.hidden, path
        assert seen.zoom >= LEAST, path
    enter(frontend)

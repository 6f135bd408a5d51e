"""The text of a timeline: what is read, and each mistake in one sentence that names the line."""

from __future__ import annotations

from fractions import Fraction

import pytest
from a2v.ltx.errors import InputError
from a2v.ltx.timeline import (
    SECTION_SEED,
    Section,
    check_end,
    prompts_of,
    read_timeline,
    section_at,
    streams,
    told_of,
)
from hypothesis import given
from hypothesis import strategies as st

SONG = """
# a song
0:00 a woman sings in a studio
0:18.5 chorus: she dances in the rain,
    in slow motion

0:41 [cut, seed 7, image rain one.png] verse 2: a close view of her face
1:02 Chorus:
1:02:03.25 [cut] 3 women: two of them dance
"""


def test_a_song() -> None:
    assert read_timeline(SONG) == (
        Section(Fraction(0), "a woman sings in a studio"),
        Section(Fraction(37, 2), "she dances in the rain, in slow motion", "chorus"),
        Section(Fraction(41), "a close view of her face", "verse 2", cut=True, seed=7, image="rain one.png"),
        Section(Fraction(62), "she dances in the rain, in slow motion", "Chorus"),
        Section(Fraction(3723) + Fraction(1, 4), "3 women: two of them dance", cut=True),
    )


def test_the_prompt_is_before_the_first_section() -> None:
    (first, second) = read_timeline("0:05 rain", " a street ")
    assert (first.start, first.prompt, second.start) == (0, "a street", 5)
    assert [section.start for section in read_timeline("0:00.5 rain", "a street")] == [0, Fraction(1, 2)]
    assert read_timeline("", "x") == read_timeline("\n# nothing\n", "x") == ()
    with pytest.raises(InputError, match=r"section 0:00\.0 has no prompt"):
        read_timeline("0:05 rain")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a woman\n0:00 rain", ["line 1", "'a woman'", "begin it with a time"]),
        ("0:00 a\n0.18 b", ["line 2", "'0.18 b'", "0:18.5"]),
        ("0:00 a\n18 b", ["line 2", "time"]),
        ("0:00 a\n0:60 b", ["line 2", "time"]),
        ("0:00 a\n1:60:00 b", ["line 2", "time"]),
        ("0:00 a\n0:5 b", ["line 2", "time"]),
        ("0:00 a\n0:05, b", ["line 2", "time"]),
        ("0:00 a\n0:10 b\n\n0:05 c", ["line 4", "'0:05 c'", "in order"]),
        ("0:00 a\n0:05 b\n0:05 c", ["line 3", "in order"]),
        ("0:00 a\n0:05", ["section 0:05.0", "no prompt"]),
        ("0:00 a\n1:05 chorus:", ["section 1:05.0 chorus", "no prompt"]),
        ("0:00 [fade] a", ["line 1", "unknown option"]),
        ("0:00 [] a", ["line 1", "unknown option"]),
        ("0:00 [cut, seed] a", ["line 1", "unknown option"]),
        ("0:00 [seed -1] a", ["line 1", "unknown option"]),
        ("0:00 [seed 1e9] a", ["line 1", "unknown option"]),
        ("0:00 [image] a", ["line 1", "unknown option"]),
        ("0:00 [fade 7] a", ["line 1", "unknown option"]),
        ("0:00 [cut 3] a", ["line 1", "unknown option"]),
        (f"0:00 [seed {10**20}] a", ["line 1", "unknown option"]),
        ("a woman " + "x" * 300, ["line 1", "xxx…'", "begin it with a time"]),
        ("0:00 " + "x" * 20_000, ["20005 characters"]),
        ("\n".join(f"{n // 60}:{n % 60:02} a" for n in range(201)), ["more than 200 sections"]),
    ],
)
def test_refused_in_one_sentence(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        read_timeline(text)
    message = str(refused.value)
    assert message.startswith("timeline: ") and message.endswith(".") and "\n" not in message and len(message) < 250
    assert all(word in message for word in words), message


def test_the_end() -> None:
    sections = read_timeline("0:00 a\n0:10 rain: b")
    check_end(sections, Fraction(101, 10))
    with pytest.raises(InputError, match=r"section 0:10\.0 rain begins after the end of the film at 10\.0 s"):
        check_end(sections, Fraction(10))


def test_streams_of_noise_and_the_section_of_a_latent() -> None:
    sections = read_timeline("0:00 a\n0:10 b\n0:20 [cut] c\n0:30 [seed 9] d\n0:40 e")
    assert streams(sections, 5) == ((0, 0, 1, 2, 2), (5, 5 + 2 * SECTION_SEED, 9))
    assert streams((), 5) == ((0,), (5,))
    assert [section_at(sections, latent, Fraction(24)) for latent in (0, 30, 31, 1000)] == [0, 0, 1, 4]
    assert section_at((), 7, Fraction(24)) == 0


def test_what_all_prompts_have_in_common_is_told_once() -> None:
    named = prompts_of(read_timeline("0:00 a\n0:10 b\n0:20 rain: a"), "")
    assert named == {"a": "prompt of section 0:00.0", "b": "prompt of section 0:10.0"}
    assert prompts_of((), "x") == {"x": "prompt"}
    assert told_of(named.values(), ["s", "s"]) == ["s"] and told_of(named.values(), [None, None]) == []
    assert told_of(named.values(), [None, "s"]) == ["prompt of section 0:10.0: s"]


@given(st.integers(0, 10**6), st.sampled_from([Fraction(24), Fraction(30000, 1001), Fraction(25)]))
def test_the_nearest_latent(milliseconds: int, fps: Fraction) -> None:
    start = Fraction(milliseconds, 1000)
    latent = Section(start, "").first_latent(fps)
    firsts = {0: 0, **{k: 8 * (k - 1) + 1 for k in range(max(1, latent - 2), latent + 3)}}
    frame = round(start * fps)
    assert latent == 0 or abs(firsts[latent] - frame) == min(abs(first - frame) for k, first in firsts.items() if k)
    assert (latent == 0) == (frame == 0)


@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_is_a_timeline_or_one_sentence(text: str, prompt: str) -> None:
    try:
        sections = read_timeline(text, prompt)
    except InputError as error:
        assert str(error).startswith("timeline: ") and "\n" not in str(error)
        return
    assert all(section.prompt for section in sections)
    starts = [section.start for section in sections]
    assert starts == sorted(set(starts)) and starts[:1] in ([], [0])

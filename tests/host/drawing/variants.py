"""The shipped workflows: what each has beside the endpoint's defaults, and what its notes say."""

from __future__ import annotations

from dataclasses import dataclass

from a2v.ltx.models import V23, V25

DEFAULT = "audio_to_video"
SONG = "song"
RETAKE, REDUB, REFERENCE, DUB = "retake", "redub", "reference", "dub"
CAST, VOICE = "cast", "voice"


@dataclass(frozen=True)
class Variant:
    """name: of the file in workflows/api. title: of the workflow in the template browser, and its file's name."""

    name: str
    title: str
    prompt: str
    about: str  # the first note
    images: tuple[str, ...] = ()  # of "first", "end"
    distilled: bool = False
    camera: str | None = None
    audio_strength: float = 1.0
    version: str = V23.version  # of LTX
    timeline: str = ""  # of a film in windows
    clip: str = ""  # what a given clip is for: RETAKE, REDUB, REFERENCE or DUB
    sheet: bool = False  # whether a picture is the reference: who and what shall appear
    voice: bool = False  # whether the sound is the example of a voice, which says the prompt's words

    @property
    def is_25(self) -> bool:
        return self.version == V25.version

    @property
    def retakes(self) -> bool:
        """Whether a part of the clip is made anew."""
        return self.clip in (RETAKE, REDUB)

    @property
    def ic_lora(self) -> bool:
        """Whether the clip or the sheet is a reference, which the model looks at with an IC-LoRA."""
        return self.sheet or self.clip in (REFERENCE, DUB)

    @property
    def word_for_word(self) -> bool:
        """Whether the prompt is used as it is: LTX-2.5's text encoder cannot write, a dub's words are not to be
        changed, and LoRAs for sheets and voices want forms of their own."""
        return self.is_25 or self.sheet or self.voice or self.clip == DUB

    @property
    def takes_sound(self) -> bool:
        """Whether the sound is a file of its own, and not the clip's."""
        return self.clip != RETAKE

    @property
    def may_renew_sound(self) -> bool:
        """Whether the sound of the file can be the model's own."""
        return self.audio_strength < 1 or self.clip in (RETAKE, DUB)


VARIANTS = (
    Variant(
        DEFAULT,
        "01 Audio to video",
        "A woman in her thirties sits at a wooden table by a tall window and talks straight into the camera. Soft "
        "morning light falls on her face from the left, and the kitchen behind her is slightly out of focus. She "
        "speaks with warmth and moves her hands a little as she explains. Medium close-up, the camera holds still.",
        "1. Upload your audio. Any sound or video file will do.\n\n2. Describe the picture in *prompt*.\n\n"
        "3. Press *Run*. The video keeps your sound unchanged.",
    ),
    Variant(
        "image_and_audio",
        "02 Image and audio to video",
        "The subject of the picture looks into the camera and sings the song with feeling, swaying gently with the "
        "beat. The background stays as it is, the camera holds still.",
        "1. Upload the image that the video begins with, and your audio.\n\n2. Say in *prompt* what happens."
        "\n\n3. Press *Run*. The video keeps your sound unchanged.",
        images=("first",),
    ),
    Variant(
        "first_and_last_image",
        "03 First and last image with audio",
        "The subject of the picture talks to the camera, then turns slowly to the side and comes to rest, in one "
        "smooth, unbroken movement. The light stays the same, the camera holds still.",
        "1. Upload the images that the video begins and ends with, and your audio.\n\n2. Say in *prompt* how "
        "the one becomes the other.\n\n3. Press *Run*. The video keeps your sound unchanged.",
        images=("first", "end"),
    ),
    Variant(
        "distilled_fast",
        "04 Audio to video, fast",
        "A young man with headphones around his neck stands in a small recording studio and speaks into a large "
        "microphone with energy, nodding at his own words. Warm light from a desk lamp, acoustic foam behind him. "
        "Close-up, the camera holds still.",
        "1. Upload your audio. Any sound or video file will do.\n\n2. Describe the picture in *prompt*.\n\n"
        "3. Press *Run*. The distilled model takes 8 steps of one pass; the first workflow takes 15 steps of four.",
        distilled=True,
    ),
    Variant(
        "camera_move",
        "05 Camera move with audio",
        "A jazz singer in a dark green dress stands on the small stage of a crowded club and sings into an old "
        "microphone, eyes half closed. Warm spotlights, smoke in the air, the band is a blur behind her. The camera "
        "moves slowly towards her face.",
        "1. Upload your audio.\n\n2. Describe the picture in *prompt*, name the movement there too, and "
        "choose it in *camera*.\n\n3. Press *Run*. The video keeps your sound unchanged.",
        camera="dolly_in",
    ),
    Variant(
        "audio_regeneration",
        "06 New sound from your audio",
        "An old fisherman in a yellow raincoat sits on the edge of a wooden pier and tells a story to the camera with "
        "a rough, friendly voice. Waves slap against the posts, gulls cry in the distance. Medium shot, the camera "
        "holds still.",
        "1. Upload your audio.\n\n2. Describe picture and sound in *prompt*.\n\n3. Press *Run*. The model "
        "makes the sound anew, in step with the picture. *audio strength* 1 keeps your sound, and 0 makes "
        "another.",
        audio_strength=0.5,
    ),
    Variant(
        "audio_to_video_25",
        "07 LTX-2.5 audio to video",
        "A man in his sixties with a short grey beard sits in a worn leather armchair before a wall of books and tells "
        "a story straight into the camera. Warm lamplight falls on his face from the right, and the shelves behind him "
        "are slightly out of focus. He speaks calmly, raises his eyebrows, and moves one hand as he explains. Medium "
        "close-up, the camera holds still.",
        "1. Upload your audio. Any sound or video file will do.\n\n2. Describe the picture in *prompt*. LTX-2.5 uses "
        "your words as they are.\n\n3. Press *Run*. The video keeps your sound unchanged.",
        version=V25.version,
    ),
    Variant(
        "image_and_audio_25",
        "08 LTX-2.5 image and audio to video",
        "The subject of the picture looks into the camera and speaks with feeling, nodding slightly at the stressed "
        "words. The light and the background stay as they are, the camera holds still.",
        "1. Upload the image that the video begins with, and your audio.\n\n2. Say in *prompt* what happens. LTX-2.5 "
        "uses your words as they are.\n\n3. Press *Run*. The video keeps your sound unchanged.",
        images=("first",),
        version=V25.version,
    ),
    Variant(
        "distilled_fast_25",
        "09 LTX-2.5 audio to video, fast",
        "A young woman in a yellow raincoat stands on a quiet street after the rain and talks to the camera with a "
        "smile. Wet asphalt reflects the lights of the shops behind her, which are out of focus. She speaks fast and "
        "moves her head as she talks. Close-up, the camera holds still.",
        "1. Upload your audio. Any sound or video file will do.\n\n2. Describe the picture in *prompt*. LTX-2.5 uses "
        "your words as they are.\n\n3. Press *Run*. The distilled model takes 8 steps of one pass, the dev model 30 "
        "of four. Lips follow the sound best with the dev model.",
        distilled=True,
        version=V25.version,
    ),
    Variant(
        SONG,
        "10 Song or talk of any length",
        "A singer with short dark hair stands in a small recording studio, headphones around the neck, and sings into "
        "a large microphone. Warm light from a desk lamp. Medium close-up, the camera holds still.",
        "1. Upload the song or talk.\n\n2. Upload the picture that the film begins with, or press *Ctrl+B* on *First "
        "image* to leave it out.\n\n"
        "3. Describe the beginning in *prompt*, and what comes next in *timeline*. *[cut]* starts a new shot.\n\n"
        "4. Press *Run*. If you stop it, *Run* goes on from there.",
        images=("first",),
        timeline="0:02 the singer closes both eyes and sways with the beat\n"
        "0:04 [cut] a close view of the singer's face, bright light from above",
    ),
    Variant(
        RETAKE,
        "11 Retake a part of a clip",
        "The subject of the clip closes both eyes for a moment, smiles, and goes on talking with more energy. The "
        "light and the background stay as they are, the camera holds still.",
        "1. Upload your clip.\n\n2. Set *start* and *end* of the part that is made anew, in seconds.\n\n3. Say in "
        "*prompt* what happens in it.\n\n4. Press *Run*. The rest of the clip and its sound stay as they are. *made "
        "anew* can also be the sound, or both.",
        clip=RETAKE,
    ),
    Variant(
        REDUB,
        "12 New voice for a clip",
        "The subject of the clip talks to the camera with a friendly, lively voice, and the lips follow every word. "
        "The light and the background stay as they are, the camera holds still.",
        "1. Upload your clip and the new voice.\n\n2. Upload a picture of the clip as *Mask*, choose *Open in "
        "MaskEditor* in its menu, and paint over mouth and chin.\n\n3. Say in *prompt* who speaks, and how.\n\n4. "
        "Press *Run*. All that you did not paint stays as it is.",
        clip=REDUB,
    ),
    Variant(
        REFERENCE,
        "13 Video that follows a clip",
        "An old sailor with a white beard and a blue cap looks straight into the camera and tells a story. Evening "
        "light falls on his face from the left, and the harbour behind him is out of focus. The camera holds still.",
        "1. Upload the clip whose outlines and movements the video has, and your audio.\n\n2. Describe the new picture "
        "in *prompt*.\n\n3. Press *Run*. The video keeps your sound unchanged.",
        distilled=True,
        clip=REFERENCE,
    ),
    Variant(
        DUB,
        "14 Dub a clip",
        'The subject of the clip speaks English in a clear, friendly voice: "Hello, and welcome! Give me a voice or a '
        'song, and I will turn it into a moving picture."',
        "1. Upload your clip, with its sound, and the new voice.\n\n2. Say in *prompt* who speaks which language, and "
        "quote the words of the new voice.\n\n3. Press *Run*. The mouth follows the new voice. With *audio strength* 0 "
        "the model speaks your words itself, in the voice of the clip.",
        distilled=True,
        clip=DUB,
    ),
    Variant(
        CAST,
        "15 Your people in a new scene",
        "Reference sheet: the picture shows the character, face and body, on a black background.\n"
        "Generated video: Medium shot. The character of the sheet stands on a quiet square at night, looks into the "
        "camera and tells a story with a warm voice, nodding at the stressed words. Wet cobblestones reflect the "
        "street lamps. The camera holds still.",
        "1. Upload the *reference sheet*: one picture of the persons, things and places that shall appear, and your "
        "audio.\n\n2. Say in *prompt* what the sheet shows, then what happens.\n\n3. Press *Run*. The video keeps your "
        "sound unchanged.",
        distilled=True,
        sheet=True,
    ),
    Variant(
        VOICE,
        "16 Your words in a voice",
        "[VISUAL]: Medium close-up. The subject of the picture looks into the camera, speaks with a smile and nods at "
        "the stressed words. The light and the background stay as they are, the camera holds still.\n"
        "[SPEECH]: Hello, and welcome! I have never said these words before.\n"
        "[SOUNDS]: The voice is calm and friendly, close to the microphone, in a quiet room.",
        "1. Upload about five seconds of a voice, and a picture of who speaks.\n\n2. Write the words behind *[SPEECH]* "
        "in *prompt*, and set *frames* to the time that they need.\n\n3. Press *Run*. The model makes the picture, and "
        "the sound in that voice.",
        images=("first",),
        audio_strength=0.0,
        voice=True,
    ),
)

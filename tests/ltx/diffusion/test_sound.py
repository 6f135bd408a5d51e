"""The sound in latent space, against torchaudio, the golden tensors and ltx-core's own decoder."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from a2v.ltx.diffusion import sound
from a2v.ltx.errors import InputError
from a2v.ltx.grid import audio_length
from a2v.ltx.media import audio
from a2v.tests.ltx.goldens import relative
from a2v.tests.ltx.sounds import track
from safetensors import safe_open


@pytest.mark.parametrize("rate", [7350, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000])
def test_resampling_is_torchaudios(rate):
    functional = pytest.importorskip("torchaudio.functional")
    waveform = track(0.7, rate, 2).waveform
    ours = sound.resample(waveform, rate, 16000)
    theirs = functional.resample(waveform, rate, 16000)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-6


def test_resampling_in_blocks_and_between_rates_without_a_common_factor(monkeypatch):
    waveform = track(0.3, 47999, 2).waveform
    whole = sound.resample(waveform, 47999, 16000)
    time = np.arange(whole.shape[1]) / 16000
    signal = 0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time)
    assert np.abs(whole[0].numpy() - signal)[100:-100].max() < 0.05  # the noise that voice() adds
    monkeypatch.setattr(sound, "RESAMPLE_BLOCK", 1000)
    assert torch.equal(sound.resample(waveform, 47999, 16000), whole)


def test_the_mel_bands_are_torchaudios():
    functional = pytest.importorskip("torchaudio.functional")
    bands = functional.melscale_fbanks(513, 0.0, 8000.0, 64, 16000, norm="slaney", mel_scale="slaney")
    assert (sound.mel_bands() - bands).abs().max() < 1e-7


@pytest.mark.parametrize("official", [True, False])
def test_both_transforms_give_torchaudios_log_mel(monkeypatch: pytest.MonkeyPatch, official: bool) -> None:
    transforms = pytest.importorskip("torchaudio.transforms")
    monkeypatch.setattr(sound, "rounds_as_official", lambda: official)
    heard = track(1.0, 16000, 2)
    mel = transforms.MelSpectrogram(
        16000, 1024, hop_length=160, f_max=8000, n_mels=64, power=1, norm="slaney", mel_scale="slaney"
    )
    theirs = mel(heard.waveform).clamp(min=1e-5).log().transpose(1, 2)[None]
    assert relative(sound.log_mel(heard), theirs) < (1e-6 if official else 1e-5)


@pytest.mark.parametrize(("rate", "frames", "fps"), [(48000, 25, 24), (44100, 17, 30), (8000, 9, 60), (16000, 33, 25)])
def test_the_log_mel_is_that_of_the_official_processor(rate, frames, fps):
    ops = pytest.importorskip("ltx_core.model.audio_vae.ops")
    types = pytest.importorskip("ltx_core.types")
    heard = audio.conditioning_track(track(2.0, rate, 2), frames, Fraction(fps))
    processor = ops.AudioProcessor(target_sample_rate=16000, mel_bins=64, mel_hop_length=160, n_fft=1024)
    theirs = processor.waveform_to_mel(types.Audio(waveform=heard.waveform[None], sampling_rate=rate))
    ours = sound.log_mel(heard)
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < 1e-5


def test_silence_is_the_floor():
    mel = sound.log_mel(audio.conditioning_track(audio.Track(torch.zeros(1, 10), 8000), 9, Fraction(24)))
    assert mel.shape == (1, 2, 38, 64)
    assert torch.equal(mel, torch.full_like(mel, math.log(1e-5)))


def test_a_track_too_short_for_one_window():
    with pytest.raises(InputError, match="too short"):
        sound.log_mel(audio.Track(torch.zeros(2, 200), 8000))


GOLDENS = ("ltx2", "endpoint_defaults", "linear_quadratic_ge")


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_waveform_mel_and_latent(oracle, name):
    from a2v.ltx.weights.checkpoint import load_checkpoint

    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        run = json.loads(golden.metadata()["info"])
        frames, fps = run["frames"], Fraction(run["fps"])
        waveform, mel, latent = (golden.get_tensor(f"audio/{part}") for part in ("waveform", "mel", "latent"))
    read = audio.load_track(oracle / "tiny" / run["audio"])
    heard = audio.conditioning_track(read, frames, fps)
    assert torch.equal(heard.waveform[None], waveform)
    # A pure tone leaves most bands at rounding noise, where another CPU's FFT differs: on AMD torchaudio itself is 3e-5
    # from this golden, and float64 2.4e-5.
    assert relative(sound.log_mel(heard), mel) < (1e-6 if sound.rounds_as_official() else 1e-4)
    vae = load_checkpoint(oracle / "tiny" / "ltx-2.3-tiny.safetensors").audio_vae(torch.float32)
    with torch.inference_mode():
        ours = sound.encode_audio(vae, read, frames, fps)
        encoded = latent_of(vae, mel)
    length = audio_length(frames, fps)
    assert ours.shape == (1, 8, length, 16)
    assert relative(ours, latent[:, :, :length]) < 1e-4
    assert relative(encoded, latent) < 1e-5  # from the golden mel on, nothing is left to the FFT


def latent_of(vae: torch.nn.Module, mel: torch.Tensor) -> torch.Tensor:
    """The golden latent's definition, channel by channel: (mean - m[c·16 + f]) / s[c·16 + f]."""
    mean, deviation = vae.latents_mean.reshape(1, 8, 1, 16), vae.latents_std.reshape(1, 8, 1, 16)
    return (vae.encode(mel).latent_dist.mode() - mean) / deviation


@pytest.mark.parametrize("fps", [1, Fraction(24000, 1001), 24, 25, 30, 60])
@pytest.mark.parametrize("frames", [9, 17, 25])
def test_the_encoder_never_returns_too_few(fps, frames):
    """Mel frames and the encoder's rounding up cover audio_length for any rate."""
    fps = Fraction(fps)
    for rate in (8000, 11025, 44100, 48000):
        samples = round(frames / fps * rate)
        mel_frames = math.ceil(Fraction(samples * 16000, rate)) // 160 + 1
        assert math.ceil(mel_frames / 4) >= audio_length(frames, fps)


def test_encode_audio_of_a_very_short_track_has_its_full_length(tmp_path):
    from a2v.ltx.weights.checkpoint import load_checkpoint
    from a2v.tests.tiny import write_tiny

    vae = load_checkpoint(write_tiny(tmp_path).checkpoint).audio_vae(torch.float32)
    with torch.inference_mode():
        latent = sound.encode_audio(vae, track(0.2, 8000), 33, Fraction(24))
    assert latent.shape == (1, 8, 34, 16)
    assert latent.dtype == torch.float32
    assert torch.isfinite(latent).all()


# Sound out


@pytest.mark.parametrize(("frames", "fps"), [(9, Fraction(24)), (17, Fraction(24000, 1001)), (9, Fraction(60))])
def test_decoded_audio_is_the_official_decoders(tiny_default, peer, off, randn, frames, fps):
    """ltx-core's decoder, which takes normalised latents, and its vocoder with bandwidth extension on the same file."""
    from a2v.ltx.weights.checkpoint import load_checkpoint

    latent = randn(1, 8, audio_length(frames, fps), 16)
    files = load_checkpoint(tiny_default.checkpoint)
    with torch.inference_mode():
        ours = sound.decode_audio(files.audio_vae(torch.float32), files.vocoder(torch.float32), latent, frames, fps)
        theirs = peer(tiny_default, "vocoder")(peer(tiny_default, "audio_decoder")(latent))[0]
    assert ours.rate == 48_000 and ours.waveform.dtype == torch.float32
    assert ours.waveform.shape == theirs.shape and ours.waveform.shape[0] == 2
    assert off(ours.waveform, theirs) < 1e-5
    assert ours.waveform.std() > 1e-4 and not torch.equal(*ours.waveform)


class Decoder(torch.nn.Module):
    """A VAE that shows what reaches it, and decodes T latents to as many mel frames as the real one, or more."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, more: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.more = more
        self.latents_mean, self.latents_std = torch.randn(128, generator=draw), torch.rand(128, generator=draw) + 0.5

    def decode(self, latent):
        self.seen = latent
        mel = torch.zeros(1, 2, 4 * latent.shape[2] - 3 + self.more, 64)
        return type("Output", (), {"sample": mel})()


class Voice(torch.nn.Module):
    """A vocoder whose samples count from 0: 480 for each mel frame."""

    dtype, device = torch.float32, torch.device("cpu")
    config = type("Config", (), {"output_sampling_rate": 48_000})()

    def forward(self, mel):
        return torch.arange(mel.shape[2] * 480.0).expand(1, 2, -1)


@pytest.mark.parametrize(
    "fps", [Fraction(1), Fraction(10), Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(60)]
)
def test_decoded_audio_ends_with_its_last_mel_frame(fps):
    """T latents hold 4T - 3 mel frames of 10 ms: 10 to 50 ms less than the video, never more."""
    for frames in (9, 17, 121, 241, 481):
        length = audio_length(frames, fps)
        heard = sound.decode_audio(Decoder(), Voice(), torch.zeros(1, 8, length, 16), frames, fps)
        assert heard.waveform.shape == (2, (4 * length - 3) * 480)
        assert Fraction(1, 100) <= frames / fps - heard.seconds <= Fraction(5, 100)
        assert torch.equal(heard.waveform[0], torch.arange(heard.waveform.shape[1]).float()), "from the start"


def test_decoded_audio_is_cut_where_the_picture_ends():
    heard = sound.decode_audio(Decoder(more=10), Voice(), torch.zeros(1, 8, 9, 16), 9, Fraction(24000, 1001))
    assert heard.waveform.shape[1] == round(Fraction(9 * 1001, 24000) * 48_000)
    assert torch.equal(heard.waveform[1], torch.arange(heard.waveform.shape[1]).float())


def test_a_vocoder_that_gives_no_numbers_is_told():
    class Broken(Voice):
        def forward(self, mel):
            return super().forward(mel).index_fill(2, torch.tensor([7]), torch.nan)

    with pytest.raises(InputError, match=r"decode: the audio VAE or the vocoder gave NaN or infinite.*float32"):
        sound.decode_audio(Decoder(), Broken(), torch.zeros(1, 8, 9, 16), 9, Fraction(24))


def test_decoding_undoes_the_statistics_of_encoding(randn):
    """Per channel and mel bin, 128 of them: x · s[c·16 + f] + m[c·16 + f]."""
    vae, latent = Decoder(), randn(1, 8, 9, 16)
    sound.decode_audio(vae, Voice(), latent, 9, Fraction(24))
    mean, deviation = vae.latents_mean.reshape(1, 8, 1, 16), vae.latents_std.reshape(1, 8, 1, 16)
    torch.testing.assert_close(vae.seen, latent * deviation + mean)

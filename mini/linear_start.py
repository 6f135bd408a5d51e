"""A start for the video VAE that no random weights give: the best linear code of the clips, written into its layers.

From random weights so small a VAE spends its first hours learning to pass anything on. Here the encoder's convolutions
begin as a cascade of principal components (most of its layers are linear as it is), and the decoder's as the ridge
regressions that undo it, level by level; the residual layers begin as nothing. Training starts from there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .sizes import LIVE

# In deviations: offsets keep a feature on the side of SiLU that is nearly straight and its norm nearly constant. The
# decoder's is small: a larger one starts 1 dB higher and then cannot be trained, since all its weights pull together.
ENCODER_OFFSET, DECODER_OFFSET = 4.0, 1.5
RIDGE = 1e-3
SAMPLES = 12_000


def components(features: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, C, T, H, W] → mean [C], the leading directions [keep, C] and their deviations [keep]."""
    rows = rearrange(features, "b c t h w -> (b t h w) c").double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
    return mean.float(), vectors.T.float(), values.clamp(min=1e-12).sqrt().float()


def gather(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Space and time to channels, in the order of the VAE's resamplers; the first frame stands alone and is doubled."""
    t, h, w = stride
    x = torch.cat([x[:, :, :1]] * (t - 1) + [x], dim=2)
    return rearrange(x, "b c (f t) (y h) (x w) -> b (c t h w) f y x", t=t, h=h, w=w)


def pointwise(conv: nn.Conv3d, weight: Tensor, bias: Tensor, tap: int) -> None:
    """Makes a 3×3×3 convolution a matrix [out, in] at one tap in time; rows and columns beyond it are zero."""
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[: weight.shape[0], : weight.shape[1], tap, 1, 1] = weight
    conv.bias[: len(bias)] = bias


def regress(conv: nn.Conv3d, features: Tensor, target: Tensor, taps: bool, generator: torch.Generator) -> None:
    """The convolution's best linear guess of `target` from `features`; taps: from all 27 neighbours, or one."""
    b, c, t, h, w = features.shape
    padded = F.pad(torch.cat([features[:, :, :1], features, features[:, :, -1:]], 2), (1, 1, 1, 1))
    pick = torch.randperm(b * t * h * w, generator=generator)[:SAMPLES]
    bi, ti, yi, xi = (i[pick] for i in torch.unravel_index(torch.arange(b * t * h * w), (b, t, h, w)))
    around = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)] if taps else [(1, 1, 1)]
    rows = torch.stack([padded[bi, :, ti + i, yi + j, xi + k] for i, j, k in around], -1).flatten(1).double()
    aims = target[bi, :, ti, yi, xi].double()
    mean, aim = rows.mean(0), aims.mean(0)
    rows, aims = rows - mean, aims - aim
    square = rows.T @ rows / len(rows)
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    weight = torch.linalg.solve(square, rows.T @ aims / len(rows)).T
    bias = aim - weight @ mean
    conv.weight.zero_()
    shaped = weight.reshape(len(weight), c, 3, 3, 3) if taps else weight[:, :, None, None, None]
    place = slice(None) if taps else slice(1, 2)
    conv.weight[:, :, place, place, place] = shaped.float()
    conv.bias.copy_(bias.float())


@torch.no_grad()
def start(vae: nn.Module, pixels: Tensor, seed: int = 0) -> None:
    """Writes the linear code of these clips [B, 3, T, H, W] into the VAE, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in vae.modules():
        if type(module).__name__ == "LTX2VideoResnetBlock3d":
            module.conv2.conv.weight.zero_()
            module.conv2.conv.bias.zero_()
    # As the VAE patchifies: channel, then column, then row within a patch.
    patches = rearrange(pixels, "b c t (y h) (x w) -> b (c w h) t y x", h=4, w=4)

    encoder, strides = vae.encoder, ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2))
    pointwise(encoder.conv_in.conv, torch.eye(patches.shape[1]), torch.zeros(1), tap=2)
    x = encoder.conv_in(patches, causal=True)
    for number, block in enumerate(encoder.down_blocks):
        down = block.downsamplers[0]
        last = number == len(strides) - 1  # before a norm and SiLU
        mean, directions, _ = components(x, down.conv.conv.out_channels)
        pointwise(down.conv.conv, directions, -directions @ mean, tap=2)
        if last:
            down.conv.conv.bias += ENCODER_OFFSET * down(x).std()
        x = down(x)
    x = encoder.conv_act(encoder.norm_out(x))
    mean, directions, deviations = components(x, LIVE)
    # Between whitened and as it is, and turned, so that no channel's own deviation tells what it carries.
    turn = torch.linalg.qr(torch.randn(LIVE, LIVE, generator=generator))[0]
    weight = turn @ (directions / deviations.sqrt()[:, None])
    scale = (weight @ (rearrange(x, "b c t h w -> c (b t h w)") - mean[:, None])).std()
    pointwise(encoder.conv_out.conv, weight / scale, -weight @ mean / scale, tap=2)
    latent = encoder.conv_out(x, causal=True)[:, : vae.config.latent_channels]

    decoder = vae.decoder
    width = decoder.up_blocks[-1].upsamplers[0].conv.conv.out_channels // 4
    pyramid, level = [], patches
    for stride in ((1, 1, 1), *strides[:-1]):
        level = gather(level, stride)
        mean, directions, deviations = components(level, width)
        level = torch.einsum("kc,bctyx->bktyx", directions, level - mean[:, None, None, None])
        pyramid.append(level / (deviations[0] * deviations[:, None, None, None]).sqrt())
    pyramid[0] = pyramid[0] + DECODER_OFFSET
    pointwise(decoder.conv_in.conv, torch.eye(LIVE), torch.zeros(1), tap=1)
    x = decoder.conv_in(latent, causal=False)
    for number, block in enumerate(decoder.up_blocks):
        up, stride = block.upsamplers[0], strides[::-1][number]
        regress(up.conv.conv, x, gather(pyramid[::-1][number], stride), number > 0, generator)
        x = up(x, causal=False)
    x = decoder.conv_act(decoder.norm_out(x))
    regress(decoder.conv_out.conv, x, patches, True, generator)

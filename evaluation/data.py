"""Where the published files of benchmarks are, and how they are downloaded.

None of them ships. `bicot fetch NAME` downloads them, from one commit of the public repository, and
checks each by its hash; RELEASES is the table.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from evaluation.tiif_files import FILES as TIIF_FILES
from policy.errors import UserError, in_one_line
from policy.paths import write_whole


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository. Its hash is SHA-256 or, where only that is known, git's blob hash,
    "git:..." (SHA-1)."""

    path: str
    nbytes: int
    """The largest size; a download is cut off there."""
    hash: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def is_whole(self, content: bytes) -> bool:
        if self.hash.startswith("git:"):
            return self.hash == "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return hashlib.sha256(content).hexdigest() == self.hash


@dataclass(frozen=True)
class Release:
    """The files that a benchmark needs from one commit."""

    repository: str
    """owner/name on GitHub."""
    commit: str
    licence: str
    files: tuple[PublishedFile, ...]

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}"


RELEASES: dict[str, Release] = {
    "geneval": Release(
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        "MIT",
        (
            PublishedFile(
                "prompts/evaluation_metadata.jsonl",
                85_209,
                "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
            ),
            PublishedFile(
                "evaluation/object_names.txt",
                642,
                "608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd",
            ),
        ),
    ),
    "t2i_compbench": Release(
        "Karine-Huang/T2I-CompBench",
        "1b7094991a57f3c22abdd4f6e8ba6c1a15517073",
        "MIT",
        (
            PublishedFile(
                "examples/dataset/color_val.txt",
                11_871,
                "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
            ),
            PublishedFile(
                "examples/dataset/shape_val.txt",
                15_935,
                "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
            ),
            PublishedFile(
                "examples/dataset/texture_val.txt",
                14_211,
                "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
            ),
            PublishedFile(
                "examples/dataset/spatial_val.txt",
                9_213,
                "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
            ),
            PublishedFile(
                "examples/dataset/non_spatial_val.txt",
                17_750,
                "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
            ),
            PublishedFile(
                "examples/dataset/complex_val.txt",
                22_724,
                "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
            ),
            PublishedFile(
                "examples/dataset/numeracy_val.txt",
                10_863,
                "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
            ),
            PublishedFile(
                "examples/dataset/3d_spatial_val.txt",
                7_851,
                "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
            ),
            PublishedFile(
                "examples/dataset/complex_val_spatial.txt",
                2_898,
                "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
            ),
            PublishedFile(
                "examples/dataset/complex_val_action.txt",
                17_698,
                "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
            ),
            PublishedFile(
                "examples/dataset/complex_val_spatialaction.txt",
                2_128,
                "e02ddc7fed812e6577e7386ec2137ce0a994a5ce19771661f68df7ac349a6ca9",
            ),
            PublishedFile(
                "examples/dataset/new_objects.txt",
                1_568,
                "f39a3d2ff6067d7738673cbf465dc659ccc750776162989a5d9916f1d5f3e231",
            ),
        ),
    ),
    "wise": Release(
        "PKU-YuanGroup/WISE",
        "eb51174483a5de2e34e8614cf9dfb3319ee7fcd0",
        "none: for your own use",
        (
            PublishedFile(
                "data_verified/merge.json",
                406_621,
                "10f2690624ed8f03f21bd3e9c535e26f791da8bab67ac857903bede65985b82d",
            ),
            PublishedFile(
                "vllm_eval.py",
                11_713,
                "e6c51c2ae81e4eb0465755b248cbcefeef3fb8340e281bb3ac43ea9689e32192",
            ),
        ),
    ),
    "wise_legacy": Release(
        "PKU-YuanGroup/WISE",
        "eb51174483a5de2e34e8614cf9dfb3319ee7fcd0",
        "none: for your own use",
        (
            PublishedFile(
                "WISE_legacy/data/cultural_common_sense.json",
                125_062,
                "7a59216c768698280cea37caa574b52f3faf054d73b398b9bb6b3161baf8e3aa",
            ),
            PublishedFile(
                "WISE_legacy/data/spatio-temporal_reasoning.json",
                100_831,
                "e27d797885ad86e64d857d0cc93d33e04be572a8dcae95692a2c7e7876233f9a",
            ),
            PublishedFile(
                "WISE_legacy/data/natural_science.json",
                117_085,
                "b262fae58e413c7a4bd3c3d5a089f8c6529feac227e4b6606be261a949035544",
            ),
            PublishedFile(
                "WISE_legacy/gpt_eval.py",
                11_685,
                "06fd6dcd7cf45a638fe8a3634b880d936077f161f3641002e58d7bf51daa2407",
            ),
        ),
    ),
    "dpg": Release(
        "TencentQQGYLab/ELLA",
        "3c228f1dc6c4d3cad0a47493816151a419f14db3",
        "Apache-2.0",
        (
            PublishedFile(
                "dpg_bench/dpg_bench.csv", 33_554_432, "git:98457fc9901943f51ff9a30367250fc292533bed"
            ),
        ),
    ),
    "unigenbench": Release(
        "CodeGoat24/UniGenBench",
        "49d0bcebb0b9418d975d3957c2fee10f34811d14",
        "CC BY 4.0",
        (
            PublishedFile(
                "data/test_prompts_en.csv",
                358_387,
                "f82e8ce854985ef963378eaaf8ce12f2e3a57dd6f53e1aea84a61fbeadfe4459",
            ),
            PublishedFile(
                "data/test_prompts_en_long.csv",
                762_228,
                "5d2c3d642cc4923504b662ad15b425c2d161a137884701881e00c2691a697253",
            ),
            PublishedFile(
                "data/test_prompts_zh.csv",
                306_315,
                "7ff2d2131e68e6182f43a28ecf03d070f7735788f3c5420db3f83141492e8cb3",
            ),
            PublishedFile(
                "data/test_prompts_zh_long.csv",
                641_006,
                "6e281a5781878584db932a3bfd16dc51afb195566eb7a30c17fb9c09fd3b1776",
            ),
        ),
    ),
    "tiif_mini": Release(
        "A113N-W3I/TIIF-Bench",
        "3aae7504d2546516eaec2fea82fde9ae445dfea3",
        "none: for your own use",
        tuple(
            PublishedFile(f"data/{folder}/{kind}_{ending}.jsonl", nbytes, f"git:{sha1}")
            for kind, files in TIIF_FILES.items()
            for folder, ending, (nbytes, sha1) in zip(
                ("testmini_prompts", "testmini_eval_prompts"),
                ("prompts", "eval_prompts"),
                files,
                strict=True,
            )
        ),
    ),
}


def data_file(folder: Path, name: str, data_name: str) -> Path:
    """A published file that a benchmark reads. Raises UserError if it is not there, or is not the
    published one."""
    path = folder / name
    release = RELEASES[data_name]
    (wanted,) = (file for file in release.files if file.name == name)
    if not path.is_file():
        raise UserError(
            f"{path}: not there yet: `bicot fetch {data_name}` gets it, or put"
            f" {release.url}/{wanted.path} there"
        )
    if not wanted.is_whole(path.read_bytes()):
        raise UserError(
            f"{path}: not the file of {release.repository} at {release.commit[:7]}, whose hash is"
            f" {wanted.hash}: prompts that were changed make another benchmark"
        )
    return path


def fetched(release: Release, file: PublishedFile, folder: Path) -> bytes:
    """A published file's content: from `folder`, where a user may have put it, or from the network, and
    then saved to `folder`. Raises UserError, with nothing written."""
    kept = folder / file.name
    if kept.exists():
        content = kept.read_bytes()
        if not file.is_whole(content):
            raise UserError(f"{kept}: not the published file, whose hash is {file.hash}: replace it")
        return content
    url = f"{release.url}/{file.path}"
    try:
        content = _download(url, file.nbytes)
    except (httpx.HTTPError, httpx.InvalidURL, ImportError) as error:  # ImportError: a SOCKS proxy
        missing = [f"{release.url}/{f.path}" for f in release.files if not (folder / f.name).exists()]
        raise UserError(
            f"{url} cannot be downloaded ({in_one_line(error)}): get"
            f" {', '.join(missing)} some other way, put them into {folder}/, and give the command again"
        ) from None
    if not file.is_whole(content):
        raise UserError(f"{url}: what came is not the published file, whose hash is {file.hash}")
    write_whole(kept, content)
    return content


def _download(url: str, nbytes: int) -> bytes:
    """Downloads at most one byte more than `nbytes`, so that an endless reply cannot fill the
    memory."""
    content = b""
    with httpx.stream("GET", url, timeout=30, follow_redirects=True) as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes():
            content += part
            if len(content) > nbytes:
                break
    return content

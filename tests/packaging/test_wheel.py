"""The wheel holds what the folders hold, and works where nothing else of the checkout is."""

import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDERS = ("solvers", "kernels", "models", "bench")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # from a copy of the tracked files: a build in place would leave its folder in the checkout
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


# of files that are part of the package
KINDS = (".py", ".c", ".css", ".js", ".safetensors", ".npz", ".typed")


def files_of_the_tree() -> set[str]:
    """What a walk of the folders finds, as the wheel should name it."""
    ours = ROOT / "undiffuse"
    found = {f"undiffuse/{p.name}" for p in ours.glob("*") if p.is_file()}
    own = [f"undiffuse/{p.name}" for p in ours.iterdir() if p.is_dir() and not p.is_symlink()]
    for folder in (*own, *FOLDERS):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT / "undiffuse" if "/" in folder else ROOT)
            found.add(f"undiffuse/{name.as_posix()}")
    return {n for n in found if n.endswith(KINDS)}


def test_every_folder_with_python_files_is_declared():
    """setuptools takes the packages that pyproject lists, and says nothing of others."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    walked = {name.rpartition("/")[0] for name in files_of_the_tree() if name.endswith(".py")}
    assert sorted(listed) == sorted(name.replace("/", ".") for name in walked)


@pytest.mark.slow
def test_its_file_list_is_that_of_the_folders(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("undiffuse/")}
    expected = files_of_the_tree()
    assert names == expected
    assert "undiffuse/models/digits.safetensors" in names
    licences = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("LICENSE")]
    assert len(licences) == 1


@pytest.mark.slow
def test_unpacked_alone_it_imports_and_samples(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import undiffuse as ud, undiffuse.models.checkpoint as c\n"
        f"assert ud.__file__.startswith({str(tmp_path)!r}), ud.__file__\n"
        "digits = c.load_default()\n"
        "x = ud.sample(digits.denoiser, (4, *digits.event_shape), steps=5)\n"
        "print(tuple(x.shape), bool(x.isfinite().all()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "(4, 1, 8, 8) True", done.stdout + done.stderr


BARE = [
    "sample --n 4 --steps 3",
    "train digits --steps 3 --width 8",
    "likelihood --limit 2",
    "tune --nfe 3 --calls 60",
    "solvers",
]


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel and the packages that it declares, and no extra.

    The declared packages are taken from this environment by links, torch's own needs with them, so
    that nothing is downloaded; what is declared is what is linked, so that a forgotten one fails.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip("links of packages as on POSIX")
    site = next(folder.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    todo, seen = ["undiffuse"], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        if name == "undiffuse":
            (info,) = site.glob("undiffuse-*.dist-info")
            found = metadata.Distribution.at(info)
        else:
            for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
                if top != "__pycache__" and not (site / top).exists():
                    (site / top).symlink_to(found.locate_file(top))
        for line in found.requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(need.name))
    return python


@pytest.mark.slow
@pytest.mark.parametrize("command", BARE)
def test_without_any_extra_the_commands_run(bare, command, tmp_path):
    out = [] if command == "solvers" else ["--out", "o"]
    done = subprocess.run(
        [str(bare), "-P", "-m", "undiffuse", *command.split(), *out],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_empty_environment_is_empty(bare):
    extras = ["diffusers", "matplotlib", "rich", "scipy", "sklearn", "torchdiffeq", "torchsde"]
    code = f"import importlib.util as u; print([m for m in {extras} if u.find_spec(m)])"
    done = subprocess.run([str(bare), "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

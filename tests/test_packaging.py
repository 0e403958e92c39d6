"""What a wheel holds, what an install lets one import, and that the extension is optional; all built from a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    *(".*_cache", ".git", ".hypothesis", ".venv", "__pycache__", "build", "dist", "runs"),
    *("*.egg-info", "*.py[cod]", "*.so"),
)
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler: no extension can be built"
)


def run(*arguments: str | Path, cwd: Path, **env: str) -> str:
    """Run this Python outside the repository's import path; return what it printed, or fail with it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FASTDIFF_NO_EXT", "CC", "CXX")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def copy_tree(to: Path) -> Path:
    shutil.copytree(ROOT, to, symlinks=True, ignore=NOT_SOURCE)
    return to


def build(tree: Path, out: Path, kind: str = "--wheel", **env: str) -> tuple[Path, str]:
    log = run("-m", "build", kind, "--no-isolation", "--skip-dependency-check", "-o", out, tree, cwd=out.parent, **env)
    (built,) = out.iterdir()
    return built, log


def install(wheel: Path, to: Path) -> dict[str, str]:
    """Install a wheel into a folder of its own; return the environment in which a subprocess imports from there."""
    run("-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "-q", "-t", to, wheel, cwd=to.parent)
    return {"PYTHONPATH": str(to)}


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The copied tree and the pure-Python wheel built from it."""
    folder = tmp_path_factory.mktemp("pure")
    tree = copy_tree(folder / "tree")
    wheel, _ = build(tree, folder / "dist", FASTDIFF_NO_EXT="1")
    return tree, wheel


def test_pure_wheel_holds_the_package_and_nothing_else(pure: tuple[Path, Path]) -> None:
    tree, wheel = pure
    assert wheel.name.endswith("-py3-none-any.whl")
    metadata = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert {name.split("/")[0] for name in names(wheel)} == {"fastdiff", metadata}
    shipped = (".py", ".safetensors", ".json")
    expected = {p.relative_to(tree).as_posix() for p in (tree / "fastdiff").rglob("*") if p.suffix in shipped}
    linked = [p for folder in ("kernels", "bench") for p in (tree / folder).rglob("*.py")]
    expected |= {f"fastdiff/{p.relative_to(tree).as_posix()}" for p in linked}
    expected |= {"fastdiff/py.typed", "fastdiff/kernels/README.md"}
    assert {name for name in names(wheel) if name.startswith("fastdiff/")} == expected
    assert not any(name.startswith("fastdiff/kernels/__init__") for name in names(wheel))


def test_installed_wheel_has_linked_folders_inside_fastdiff_alone(pure: tuple[Path, Path], tmp_path: Path) -> None:
    env = install(pure[1], tmp_path / "site")
    found = "import fastdiff.bench.speed as b, fastdiff.kernels as k; print(*b.__path__, *k.__path__)"
    inside = tmp_path / "site" / "fastdiff"
    assert run("-c", found, cwd=tmp_path, **env).split() == [str(inside / "bench" / "speed"), str(inside / "kernels")]
    absent = "import importlib.util as u; print([n for n in ('kernels', 'bench', 'csrc', 'tests') if u.find_spec(n)])"
    assert run("-c", absent, cwd=tmp_path, **env).strip() == "[]"


@pytest.mark.parametrize("folder", ["kernels", "bench"])
def test_editable_install_has_linked_folders_inside_fastdiff_alone(folder: str, tmp_path: Path) -> None:
    where = run("-c", f"import fastdiff.{folder} as f; print(*f.__path__, sep='\\n')", cwd=tmp_path).splitlines()
    assert where, f"fastdiff.{folder} has no folder"
    assert all(Path(found).samefile(ROOT / folder) for found in where)
    assert run("-c", f"import importlib.util as u; print(u.find_spec('{folder}'))", cwd=tmp_path).strip() == "None"


def test_sdist_builds_the_same_wheel(pure: tuple[Path, Path], tmp_path: Path) -> None:
    tree, wheel = pure
    sdist, _ = build(tree, tmp_path / "sdist", "--sdist", FASTDIFF_NO_EXT="1")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for folder in ("csrc", "kernels"):
        assert {p.relative_to(tree) for p in (tree / folder).rglob("*") if p.is_file()} <= {
            p.relative_to(unpacked) for p in unpacked.rglob("*")
        }
    again, _ = build(unpacked, tmp_path / "dist", FASTDIFF_NO_EXT="1")
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {n: first.read(n) for n in first.namelist()} == {n: second.read(n) for n in second.namelist()}


@needs_compiler
def test_compiler_gives_an_abi3_wheel_whose_kernels_run(tmp_path: Path) -> None:
    wheel, log = build(copy_tree(tmp_path / "tree"), tmp_path / "dist")
    assert "-cp310-abi3-" in wheel.name, log
    assert not wheel.name.endswith("-any.whl")
    assert [name for name in names(wheel) if "_C" in name] == ["fastdiff/_C.abi3.so"]
    assert "-ffp-contract=off" in log
    assert "TORCH_TARGET_VERSION=0x020a000000000000" in log
    assert "without its C++ extension" not in log
    env = install(wheel, tmp_path / "site")
    draw = "import fastdiff as fd; print(fd.__file__, fd.noise.normal((1, 1), seed=3, backend='{}').item())"
    kernels, eager = (run("-c", draw.format(name), cwd=tmp_path, **env) for name in ("cpu", "eager"))
    assert kernels == eager
    assert kernels.startswith(str(tmp_path / "site"))


@pytest.mark.parametrize(
    ("added", "env"),
    [
        pytest.param("", {"CC": "/bin/false", "CXX": "/bin/false"}, id="broken compiler"),
        pytest.param("", {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}, id="no compiler"),
        pytest.param("#error wrong", {}, id="broken source"),
    ],
)
def test_extension_that_cannot_be_built_leaves_a_pure_wheel_and_a_warning(
    tmp_path: Path, added: str, env: dict[str, str]
) -> None:
    tree = copy_tree(tmp_path / "tree")
    with (tree / "csrc" / "cpu" / "operand.cpp").open("a") as source:
        source.write(added)
    wheel, log = build(tree, tmp_path / "dist", **env)
    assert wheel.name.endswith("-py3-none-any.whl"), log
    assert not any("_C" in name or ".data/" in name for name in names(wheel))
    (metadata,) = (name for name in names(wheel) if name.endswith(".dist-info/WHEEL"))
    assert b"Root-Is-Purelib: true" in zipfile.ZipFile(wheel).read(metadata)
    assert sum("warning: fastdiff is built without its C++ extension" in line for line in log.splitlines()) == 1


def test_pure_wheel_samples_with_eager_and_says_why(pure: tuple[Path, Path], tmp_path: Path) -> None:
    env = install(pure[1], tmp_path / "site")
    asked = """
import fastdiff as fd
print(fd.noise.normal((1, 1), seed=3).item(), fd.info().backends["cpu"])
fd.noise.normal((1, 1), backend="cpu")
"""
    with pytest.raises(
        AssertionError, match="BackendError: backend 'cpu' is not available: the C\\+\\+ extension"
    ) as failed:
        run("-c", asked, cwd=tmp_path, **env)
    assert "the C++ extension is not built (no C++ compiler, or FASTDIFF_NO_EXT was set)" in str(failed.value)


def test_failed_build_in_place_removes_the_stale_extension(tmp_path: Path) -> None:
    """An editable install builds in place: an old module beside newer Python code would be found and used."""
    tree = copy_tree(tmp_path / "tree")
    stale = tree / "fastdiff" / "_C.abi3.so"
    stale.touch()
    log = run("setup.py", "build_ext", "--inplace", cwd=tree, CC="/bin/false", CXX="/bin/false")
    assert "without its C++ extension" in log
    assert not stale.exists()

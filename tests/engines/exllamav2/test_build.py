"""Building the extension: what is looked for, what is said when it is missing, and how far it is. Compiles nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engines.exllamav2 import build, requirements
from worker.errors import ModelError


def toolkit(home: Path, headers: tuple[str, ...] = build.HEADERS) -> Path:
    """Lay out a CUDA toolkit as packages have it."""
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "nvcc").write_text("#!/bin/sh\n")
    (home / "bin" / "nvcc").chmod(0o755)
    (home / "include").mkdir()
    for name in headers:
        (home / "include" / name).touch()
    (home / "lib").mkdir()
    (home / "lib" / "libcudart.so.13").write_bytes(b"cudart")
    return home


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A machine with a C++ compiler and nothing else."""
    (tmp_path / "bin").mkdir()
    for name in ("g++", "ninja"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return {"PATH": str(tmp_path / "bin"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "HOME": str(tmp_path)}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "lacking", lambda: None)
    monkeypatch.setattr(requirements, "sees_gpu", lambda: True)
    monkeypatch.setattr(requirements.metadata, "version", lambda name: {"torch": "2.14.1", "exllamav2": "0.3.2"}[name])
    monkeypatch.delitem(sys.modules, requirements.EXTENSION, raising=False)


def test_a_toolkit_is_taken_from_its_variable_the_path_or_packages(tmp_path: Path, environ: dict[str, str]) -> None:
    def home(*packages: Path, **variables: str) -> Path | None:
        found = build.find_toolkit({**environ, **variables}, packages, tmp_path / "standard")
        assert found is None or found.include == tuple(package / "include" for package in packages)
        return found and found.home

    assert home() is None
    packaged = toolkit(tmp_path / "nvidia" / "cu13")
    assert home(packaged) == packaged
    standard = toolkit(tmp_path / "standard")
    assert home(packaged) == standard
    launcher = toolkit(tmp_path / "launcher", ())
    environ["PATH"] += f":{launcher / 'bin'}"
    assert home(packaged) == standard, "an nvcc without headers is no toolkit"
    installed = toolkit(tmp_path / "cuda")
    environ["PATH"] = environ["PATH"].replace(str(launcher), str(installed))
    assert home(packaged) == installed
    named = toolkit(tmp_path / "named")
    assert home(packaged, CUDA_HOME=str(named)) == named


def test_headers_of_packages_make_up_for_those_a_toolkit_lacks(tmp_path: Path) -> None:
    poor = toolkit(tmp_path / "cuda", ("cuda_runtime.h",))
    assert build.Toolkit(poor, ()).missing_headers == list(build.HEADERS[1:])
    assert build.Toolkit(poor, (toolkit(tmp_path / "more") / "include",)).missing_headers == []


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "lacking", lambda: "torch is built without CUDA")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _name: None)
    nothing = {"PATH": str(tmp_path)}
    said = "; ".join(build.obstacles(None, nothing))
    assert all(word in said for word in ("torch is built without CUDA", "no nvcc", "C++ compiler g++", "no ninja"))
    assert "which CUDA_HOME names, has no bin/nvcc" in "; ".join(build.obstacles(build.Toolkit(tmp_path, ()), nothing))
    poor = build.Toolkit(toolkit(tmp_path / "cuda", ("cuda_runtime.h",)), ())
    assert "lacks cusparse.h, cublas_v2.h" in "; ".join(build.obstacles(poor, nothing))
    with pytest.raises(ModelError, match="cannot be built: torch is built without CUDA; "):
        build.build(nothing, lambda _done, _total: None)


@pytest.mark.usefixtures("packages")
def test_without_a_gpu_it_must_be_given_what_to_build_for(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "sees_gpu", lambda: False)
    found = build.find_toolkit({**environ, "CUDA_HOME": str(toolkit(tmp_path / "cuda"))})
    (said,) = build.obstacles(found, environ)
    assert said.startswith("there is no GPU to build for") and "TORCH_CUDA_ARCH_LIST='8.9;9.0'" in said
    assert build.obstacles(found, {**environ, "TORCH_CUDA_ARCH_LIST": "9.0"}) == []


@pytest.mark.usefixtures("packages")
def test_it_says_how_far_it_is(tmp_path: Path, environ: dict[str, str]) -> None:
    home = toolkit(tmp_path / "cuda")
    code = (
        "import os, pathlib\n"
        "home = pathlib.Path(os.environ['CUDA_HOME'])\n"
        "assert (home / 'bin' / 'nvcc').exists() and (home / 'lib64' / 'libcudart.so').read_bytes() == b'cudart'\n"
        "folder = pathlib.Path(os.environ['TORCH_EXTENSIONS_DIR'], 'exllamav2_ext')\n"
        "assert not (folder / 'lock').exists()\n"
        "[(folder / f'{n}.o').touch() for n in range(47)]\n"
    )
    reported: list[tuple[int, int]] = []
    variables = {**environ, "CUDA_HOME": str(home)}
    file = requirements.extension(variables)
    file.parent.mkdir(parents=True)
    (file.parent / "lock").touch()  # torch's, of a build that was killed
    seconds = build.build(variables, lambda *progress: reported.append(progress), (sys.executable, "-c", code))
    assert seconds > 0 and reported[-1] == (47, 47) and reported == sorted(reported)
    file.touch()
    assert build.build(variables, lambda *_: None, (sys.executable, "-c", "raise SystemExit('built again')")) == 0.0


@pytest.mark.usefixtures("packages")
def test_two_do_not_build_at_once_and_nothing_goes_on_after_one_was_stopped(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Whoever stops a build stops its compilers: here one that has a pipe open for as long as it lives."""
    variables = {
        **environ,
        "CUDA_HOME": str(toolkit(tmp_path / "cuda")),
        "PATH": os.environ["PATH"] + ":" + environ["PATH"],
    }
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 3>{pipe}; touch $TORCH_EXTENSIONS_DIR/exllamav2_ext/a.o; sleep 600"

    def interrupt(done: int, _total: int) -> None:
        if done:
            with pytest.raises(ModelError, match="Another process builds the extension already"):
                build.build(variables, lambda *_: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build(variables, interrupt, (sys.executable, "-c", f"import os; os.system({script!r})"))
    os.set_blocking(read, True)
    assert os.read(read, 1) == b"", "what it compiles with still runs"
    os.close(read)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_command_in_order(number: int) -> None:
    code = (
        "import sys, time; from worker.cli import engine, main\n"
        "def build(environ, on_progress):\n"
        "    try: on_progress(0, 47); time.sleep(600)\n"
        "    finally: print('compilers stopped', flush=True)\n"
        "engine.build_extension = build\n"
        "sys.exit(main(['engine', 'build']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "0 of 47" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert "compilers stopped" in process.stdout.read()
    assert process.returncode == 128 + number


@pytest.mark.usefixtures("packages")
def test_the_compilers_output_is_reported(tmp_path: Path, environ: dict[str, str]) -> None:
    variables = {**environ, "CUDA_HOME": str(toolkit(tmp_path / "cuda"))}
    with pytest.raises(ModelError, match=r"failed: .*ext_norm\.cpp: no such thing"):
        command = (sys.executable, "-c", "import sys; sys.exit('ext_norm.cpp: no such thing')")
        build.build(variables, lambda _done, _total: None, command)


def test_shortcomings_name_everything_once_and_nothing_where_all_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "unusable_flash_attn", lambda: None)
    monkeypatch.setattr(requirements, "missing", lambda: None)
    assert build.shortcomings({}) == []
    monkeypatch.setattr(requirements, "missing", lambda: "torch is built without CUDA")
    monkeypatch.setattr(build, "obstacles", lambda _toolkit, _environ: ["torch is built without CUDA", "no nvcc"])
    monkeypatch.setattr(requirements, "unusable_flash_attn", lambda: "flash-attn cannot be imported")
    expected = ["torch is built without CUDA", "no nvcc", "flash-attn cannot be imported"]
    assert build.shortcomings({}) == expected

"""A folder is replaced whole or not at all."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kerora.interchange.atomic_folder import recover_folder, replaced_folder


def write(folder, text):
    with replaced_folder(folder) as new:
        (new / "one").write_text(text)
        (new / "two").write_text(text)


def read(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_and_one_that_replaces_it(tmp_path):
    folder = tmp_path / "deep" / "adapter"
    write(folder, "old")
    write(folder, "new")
    assert read(folder) == {"one": "new", "two": "new"}
    assert os.listdir(folder.parent) == ["adapter"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_leaves_the_old_folder(failing, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    write(folder, "old")
    rename, calls = os.rename, []

    def fail(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    told = re.escape(f"'{folder}' cannot be written: No space left on device. Name another place")
    with pytest.raises(OSError, match=told):
        write(folder, "new")
    assert read(folder) == {"one": "old", "two": "old"}
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_error_while_filling_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "adapter"
    write(folder, "old")
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as new:
        (new / "one").write_text("half")
        raise KeyboardInterrupt
    assert read(folder) == {"one": "old", "two": "old"}
    assert os.listdir(tmp_path) == ["adapter"]


@pytest.mark.parametrize("calls_survived", [0, 1, 2])
def test_a_killed_writer_leaves_the_old_or_the_new_folder(calls_survived, tmp_path):
    folder = tmp_path / "adapter"
    write(folder, "old")
    module = Path(sys.modules[replaced_folder.__module__].__file__)
    script = f"""
import importlib.util, os, pathlib, signal
spec = importlib.util.spec_from_file_location("atomic_folder", {str(module)!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
rename, calls = os.rename, []
def killing(source, target):
    if len(calls) == {calls_survived}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(source)
    rename(source, target)
os.rename = killing
atomic.shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
with atomic.replaced_folder({str(folder)!r}) as new:
    (new / "one").write_text("new")
    (new / "two").write_text("new")
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    recover_folder(folder)
    expected = "new" if calls_survived == 2 else "old"
    assert read(folder) == {"one": expected, "two": expected}


def test_files_of_others_stay(tmp_path):
    folder = tmp_path / "adapter"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "thesis.txt").write_text("mine")
    (folder / "README.md").write_text("mine")
    write(folder, "new")
    assert (folder / "data" / "thesis.txt").read_text() == "mine"
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "one").read_text() == "new"
    assert os.listdir(tmp_path) == ["adapter"]


def other_disk(tmp_path):
    """A folder on another file system than pytest's, where this machine has one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    folder = tmp_path / "adapter"
    with tempfile.TemporaryDirectory(dir=other_disk(tmp_path)) as disk:
        target = Path(disk) / "mine"
        folder.symlink_to(target)
        write(folder, "old")  # a link that leads to nothing yet
        (target / "README.md").write_text("mine")
        write(folder, "new")
        recover_folder(folder)
        assert folder.is_symlink()
        assert read(target) == {"one": "new", "two": "new", "README.md": "mine"}
        assert os.listdir(disk) == ["mine"]
    assert os.listdir(tmp_path) == ["adapter"]


@pytest.mark.parametrize("is_link", [True, False])
def test_what_cannot_be_tidied_up_does_not_keep_from_loading(is_link, tmp_path, monkeypatch):
    folder, replaced = tmp_path / "adapter", tmp_path / ".adapter.replaced"
    write(folder, "new")
    write(tmp_path / "old", "old")
    (tmp_path / "old" / "README.md").write_text("mine")
    if is_link:  # as versions before this one left it
        replaced.symlink_to(tmp_path / "old")
        recover_folder(folder)
        assert sorted(os.listdir(tmp_path)) == ["adapter", "old"]
    else:
        os.rename(tmp_path / "old", replaced)

        def fail(source, target):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "rename", fail)
        with pytest.warns(UserWarning, match=r"replaced', .* cannot be tidied up: Invalid cross"):
            recover_folder(folder)
        assert (replaced / "README.md").read_text() == "mine"
    assert read(folder) == {"one": "new", "two": "new"}


@pytest.mark.parametrize("name", [".", "..", "../../place"])
def test_the_current_folder_is_not_renamed_away(name, tmp_path, monkeypatch):
    (tmp_path / "place" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "place" / "deep")
    Path("train.py").write_text("mine")
    inside = re.escape(f"Name a folder inside it: '{Path(name) / 'NAME'}'")
    with pytest.raises(FileExistsError, match=rf"'{re.escape(name)}' is or holds.*{inside}"):
        write(name, "new")
    assert os.listdir(".") == ["train.py"]
    write(Path(name) / "NAME", "new")
    assert read(Path(name) / "NAME") == {"one": "new", "two": "new"}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(NotADirectoryError, match="adapter"):
        write(tmp_path / "adapter", "new")
    assert (tmp_path / "adapter").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file/adapter", "file/in/it"):
        told = re.escape(f"'{tmp_path / place}' cannot be written: ") + ".*Name another place"
        with pytest.raises((FileExistsError, NotADirectoryError), match=told) as raised:
            write(tmp_path / place, "new")
        assert f"('{tmp_path}/file" in str(raised.value)
    with pytest.raises(OSError, match=r"x' cannot be written: (No such file|Permission)") as told:
        write("/proc/x", "new")
    assert ".new-" not in str(told.value)


def test_an_error_of_another_file_is_told_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="base"), replaced_folder(tmp_path / "merged"):
        (tmp_path / "base").read_text()
    with pytest.raises(OSError, match=r"^cut short$"), replaced_folder(tmp_path / "merged"):
        raise OSError("cut short")


FILLING = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("atomic_folder", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
with atomic.replaced_folder(sys.argv[2]) as new:
    (new / "one").write_text("half")
    print(new.name, flush=True)
    time.sleep(600)
"""


def filling(folder):
    """Another process that is in the middle of writing a folder, and its hidden folder's name."""
    module = sys.modules[replaced_folder.__module__].__file__
    process = subprocess.Popen(
        [sys.executable, "-c", FILLING, module, str(folder)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    folder = tmp_path / "adapter"
    killed, left = filling(folder)
    alive, kept = filling(folder)
    others, of_others = filling(tmp_path / "adapter.new")
    (tmp_path / ".adapter.new-notes.txt").write_text("mine")
    try:
        killed.kill()
        killed.wait()
        assert (tmp_path / left).is_dir()
        write(folder, "new")
        found = {"adapter", kept, of_others, ".adapter.new-notes.txt"}
        assert set(os.listdir(tmp_path)) == found
        assert (tmp_path / kept / "one").read_text() == "half"
    finally:
        for process in (killed, alive, others):
            process.kill()
            process.wait()
    write(folder, "newer")
    assert set(os.listdir(tmp_path)) == {"adapter", of_others, ".adapter.new-notes.txt"}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with replaced_folder(tmp_path / "adapter") as new:
        (new / "one").write_text("first")
        write(tmp_path / "adapter", "second")  # another writer meanwhile
        assert (new / "one").read_text() == "first"
    assert read(tmp_path / "adapter") == {"one": "first", "two": "second"}
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_system_that_opens_no_folder_and_writes_out_no_read_only_file(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")  # tells how a file was opened
    atomic = sys.modules[replaced_folder.__module__]
    real_open, real_fsync, written_out = os.open, os.fsync, []

    def windows_open(path, flags, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, flags, *rest, **named)

    def windows_fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        written_out.append(handle)
        real_fsync(handle)

    monkeypatch.setattr(atomic, "fcntl", None)
    monkeypatch.setattr(atomic, "_IS_POSIX", False)
    monkeypatch.setattr(os, "open", windows_open)
    monkeypatch.setattr(os, "fsync", windows_fsync)
    (tmp_path / "adapter").mkdir()
    with replaced_folder(tmp_path / "adapter") as new:
        (new / "one").write_text("new")
        (new / "assets").mkdir()
    monkeypatch.undo()
    assert (tmp_path / "adapter" / "one").read_text() == "new"
    assert len(written_out) == 1

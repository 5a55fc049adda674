"""RunStore: durable, append-only, refuses what is not its run, and destroys nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calipers.errors import MissingFile, StoreCorrupt, StoreMismatch, StoreNotWritable, UsageError
from calipers.evidence.records import Certificate
from calipers.runs import files as files_module
from calipers.runs import migrations as migrations_module
from calipers.runs import store as store_module
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore

Make = Callable[..., Certificate]


def key(index: int) -> str:
    return f"{index:032x}"


def measured(make: Make, *indices: int) -> list[Measured]:
    return [Measured(key(index), [make(index)]) for index in indices]


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, spec: RunSpec) -> Iterator[RunStore]:
    made = RunStore.in_memory(spec) if request.param == "memory" else RunStore.open(tmp_path / "a.run", spec)
    with made:
        yield made


def test_what_is_appended_is_read_back_ordered_by_input(store: RunStore, certificate: Make) -> None:
    assert store.append(measured(certificate, 5, 2)) == 2
    assert store.append(measured(certificate, 3)) == 1
    assert list(store.records()) == [certificate(2), certificate(3), certificate(5)]
    assert store.done() == {key(2), key(3), key(5)}
    assert len(store) == 3
    assert list(store.records("attempt")) == []


def test_numbers_come_back_bit_for_bit(store: RunStore, certificate: Make) -> None:
    awkward = certificate(
        0, radius=0.1 + 0.2, p_lower=1e-310, p_upper=float("inf"), means=(1 / 3,), variances=(0.0,)
    )
    store.append([Measured(key(0), [awkward])])
    assert list(store.records()) == [awkward]


def test_a_task_with_several_records_is_done_once(store: RunStore, certificate: Make) -> None:
    store.append([Measured(key(1), [certificate(1), certificate(1, radius=0.5)])])
    assert store.done() == {key(1)}
    assert [record.radius for record in store.records()] == [certificate(1).radius, 0.5]


def test_a_doubled_task_is_ignored_if_only_its_time_differs(store: RunStore, certificate: Make) -> None:
    store.append(measured(certificate, 1))
    again = Measured(key(1), [certificate(1, seconds=9.0)])
    assert store.append([again, *measured(certificate, 2)]) == 1
    assert list(store.records()) == [certificate(1), certificate(2)]


def test_a_doubled_task_with_another_result_is_refused_and_nothing_written(
    store: RunStore, certificate: Make
) -> None:
    store.append(measured(certificate, 1))
    with pytest.raises(StoreMismatch, match="input 1 "):
        store.append([*measured(certificate, 0), Measured(key(1), [certificate(1, radius=0.9)])])
    assert list(store.records()) == [certificate(1)]


def test_a_task_without_records_is_refused(store: RunStore) -> None:
    with pytest.raises(UsageError, match="no records"):
        store.append([Measured(key(1), [])])
    assert store.done() == set()


def test_a_batch_is_stored_whole_or_not_at_all(store: RunStore, certificate: Make) -> None:
    def interrupted() -> Iterator[Measured]:
        yield from measured(certificate, 1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.append(interrupted())
    assert store.done() == set()
    assert store.append(measured(certificate, 1)) == 1


@pytest.mark.parametrize("table", ["records", "spec", "facts", "sittings", "migrations"])
@pytest.mark.parametrize("verb", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 1"])
def test_changing_or_removing_is_refused_by_the_database_itself(
    store: RunStore, certificate: Make, table: str, verb: str
) -> None:
    store.append(measured(certificate, 1))
    store.settle({"target": "t"})
    store.note("started", {})
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        store._connection.execute(verb.format(table))


def test_facts_are_kept_and_checked(store: RunStore) -> None:
    store.settle({"target": "abc", "data": "d"})
    store.settle({"target": "abc", "plan": "p"})
    assert store.facts() == {"target": "abc", "data": "d", "plan": "p"}
    with pytest.raises(StoreMismatch, match="target: abc in the file, changed asked for"):
        store.settle({"target": "changed", "more": "m"})
    assert store.facts() == {"target": "abc", "data": "d", "plan": "p"}


def test_the_life_of_a_run_is_told_in_order(store: RunStore) -> None:
    store.note("started", {"jobs": 2})
    store.note("stopped", {"why": "time"})
    assert [(sitting.event, sitting.body) for sitting in store.sittings()] == [
        ("started", {"jobs": 2}),
        ("stopped", {"why": "time"}),
    ]


def test_the_same_specification_goes_on_where_it_was(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "runs" / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, 1))
    with RunStore.open(path, spec) as store:
        assert store.done() == {key(1)}
        store.append(measured(certificate, 2))
    with RunStore.read(path) as store:
        assert store.spec == spec
        assert list(store.records()) == [certificate(1), certificate(2)]
    assert [file.name for file in path.parent.iterdir()] == ["a.run"], (
        "nothing but the run itself is left behind"
    )


@pytest.mark.parametrize("name", ["what?mode=memory", "100%.run", "a#b.run", "two words.run", "été.run"])
def test_odd_names_are_names(tmp_path: Path, spec: RunSpec, certificate: Make, name: str) -> None:
    with RunStore.open(tmp_path / name, spec) as store:
        store.append(measured(certificate, 1))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with RunStore.read(tmp_path / name) as store:
        assert len(store) == 1


def test_a_link_to_a_run_is_the_run_also_after_a_kill(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "a.run", tmp_path / "link.run"
    _killed_run(path, spec, certificate(0))
    link.symlink_to(path)
    with RunStore.read(link) as store:
        assert len(store) == 10
    with RunStore.open(link, spec) as store:
        store.append(measured(certificate, 10))
    with RunStore.read(path) as store:
        assert len(store) == 11


def test_a_transaction_waits_for_the_disk(tmp_path: Path, spec: RunSpec) -> None:
    """A power cut cannot be tested here; the settings that survive one can."""
    with RunStore.open(tmp_path / "a.run", spec) as store:
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_another_specification_is_refused_with_the_difference_and_nothing_written(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, 1))
    before = path.read_bytes()
    with pytest.raises(StoreMismatch) as caught:
        RunStore.open(path, replace(spec, noise="Gaussian(sigma=0.5)", seed=4))
    assert "noise: Gaussian(sigma=0.25) in the file, Gaussian(sigma=0.5) asked for" in str(caught.value)
    assert "seed: 0 in the file, 4 asked for" in str(caught.value)
    assert path.read_bytes() == before


def _foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (x)")
        connection.execute("INSERT INTO precious VALUES (1)")
    connection.close()


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("dear diary " * 100),
    "empty": lambda path: path.touch(),
    "a truncated header": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "another program's database": _foreign_database,
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("how", ["open", "read"])
def test_a_file_that_is_no_run_is_refused_and_left_byte_identical(
    tmp_path: Path, spec: RunSpec, content: str, how: str
) -> None:
    path = tmp_path / "a.run"
    FOREIGN[content](path)
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match="it was left as it is"):
        RunStore.open(path, spec) if how == "open" else RunStore.read(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path, spec: RunSpec) -> None:
    with pytest.raises(StoreCorrupt, match="a folder"):
        RunStore.open(tmp_path, spec)
    with pytest.raises(MissingFile, match="nowhere"):
        RunStore.read(tmp_path / "nowhere.run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [0.15, 0.3, 0.6, 0.95])
def test_a_damaged_page_is_found_and_the_file_left_byte_identical(
    tmp_path: Path, spec: RunSpec, certificate: Make, where: float
) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, *range(200)))
    content = bytearray(path.read_bytes())
    start = int(len(content) * where)
    content[start : start + 3000] = b"\xa5" * 3000
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt), RunStore.open(path, spec) as store:
        list(store.records())
    assert path.read_bytes() == content


def test_tensors_come_back_and_a_changed_byte_is_found(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    arrays = {index: np.linspace(0, index, 12, dtype=np.float32).reshape(3, 4) for index in (5, 1, 3)}
    with RunStore.open(path, spec) as store:
        for index, array in arrays.items():
            task = Measured(key(index), [certificate(index)], {"adversarial": array})
            assert store.append([task]) == 1
            assert store.append([task]) == 0
        found = list(store.tensors("adversarial"))
        assert [index for index, _ in found] == [1, 3, 5]
        assert all(np.array_equal(array, arrays[index]) for index, array in found)
        assert list(store.tensors("other")) == []
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER tensors_update")
    connection.execute("UPDATE tensors SET input_index = 4 WHERE input_index = 3")
    connection.commit()
    connection.close()
    with RunStore.read(path) as store, pytest.raises(StoreCorrupt, match="an array of input 4"):
        list(store.tensors("adversarial"))


def test_tensors_are_append_only(tmp_path: Path, spec: RunSpec, certificate: Make) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append([Measured(key(1), [certificate(1)], {"adversarial": np.zeros(3, np.float32)})])
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._connection.execute("DELETE FROM tensors")


def test_a_single_changed_digit_is_found(tmp_path: Path, spec: RunSpec, certificate: Make) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append([Measured(key(1), [certificate(1, radius=0.1234567)])])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.1234567", b"0.9234567"))
    with (
        RunStore.read(path) as store,
        pytest.raises(StoreCorrupt, match="input 1 does not match its check sum"),
    ):
        list(store.records())


def test_a_changed_specification_is_found(tmp_path: Path, spec: RunSpec) -> None:
    path = tmp_path / "a.run"
    RunStore.open(path, spec).close()
    path.write_bytes(path.read_bytes().replace(b"sigma=0.25", b"sigma=0.52"))
    with pytest.raises(StoreCorrupt, match="hash"):
        RunStore.read(path)


def test_a_truncated_file_is_refused_and_left(tmp_path: Path, spec: RunSpec, certificate: Make) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, *range(200)))
    content = path.read_bytes()[:20_000]
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt):
        RunStore.open(path, spec)
    assert path.read_bytes() == content


def test_a_store_opened_for_reading_refuses_to_append(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    RunStore.open(path, spec).close()
    with RunStore.read(path) as store, pytest.raises(UsageError, match="reading"):
        store.append(measured(certificate, 1))


def test_a_reader_sees_what_is_stored_while_the_run_goes_on(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as writer:
        writer.append(measured(certificate, 1))
        with RunStore.read(path) as reader:
            assert reader.done() == {key(1)}
            writer.append(measured(certificate, 2))
            assert reader.done() == {key(1), key(2)}
        writer.append(measured(certificate, 3))
    with RunStore.read(path) as reader:
        assert len(reader) == 3


def test_a_reader_in_the_middle_of_its_records_does_not_hold_up_the_writer(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as writer:
        writer.append(measured(certificate, *range(50)))
        with RunStore.read(path) as reader:
            records = reader.records()
            first = next(records)
            writer.append(measured(certificate, *range(50, 100)))
            assert len([first, *records]) == 50, "one reading sees one moment"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from dataclasses import replace
from calipers.evidence.records import record_from_json
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
store = RunStore.open(sys.argv[1], RunSpec.from_json(sys.argv[3]))
record = record_from_json("certificate", sys.argv[4])
for index in range(10):
    store.append([Measured(f"{index:032x}", [replace(record, index=index)])])
os.kill(os.getpid(), signal.SIGKILL)
"""


def _killed_run(path: Path, spec: RunSpec, record: Certificate) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), "", spec.to_json(), record.to_json()],
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL


def test_what_was_appended_before_a_kill_is_there_after_it(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    _killed_run(path, spec, certificate(0))
    assert path.with_name("a.run-wal").stat().st_size > 0, "the kill left a write-ahead log"
    with RunStore.read(path) as store:
        assert len(store) == 10
    with RunStore.open(path, spec) as store:
        assert store.done() == {key(index) for index in range(10)}
        store.append(measured(certificate, 10))
    assert list(tmp_path.iterdir()) == [path]
    with RunStore.read(path) as store:
        assert len(store) == 11


def _as_nobody(action: Callable[[], None]) -> None:
    """Run an action in a child process that permissions hold for, also where the tests run as root."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            action()
            code = 0
        except BaseException as problem:  # the parent must see why, and pytest must not go on twice
            os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user can reach (those of ``tmp_path`` are private)."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("locked", ["folder", "file"])
def test_read_only_is_a_clear_error_for_a_run_and_no_obstacle_for_a_reader(
    open_folder: Path, spec: RunSpec, certificate: Make, locked: str
) -> None:
    path = open_folder / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, 1))
    path.chmod(0o444 if locked == "file" else 0o666)
    open_folder.chmod(0o555 if locked == "folder" else 0o777)
    before = path.read_bytes()

    def act() -> None:
        with RunStore.read(path) as reader:
            assert list(reader.records()) == [certificate(1)]
        with pytest.raises(StoreNotWritable, match=r"cannot be written .*--run"):
            RunStore.open(path, spec).append(measured(certificate, 2))
        if locked == "folder":
            with pytest.raises(StoreNotWritable, match="cannot be written"):
                RunStore.open(open_folder / "new.run", spec)

    try:
        _as_nobody(act)
    finally:
        open_folder.chmod(0o755)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_reader_on_read_only_media_sees_the_log_that_a_killed_run_left(
    open_folder: Path, spec: RunSpec, certificate: Make
) -> None:
    path = open_folder / "a.run"
    _killed_run(path, spec, certificate(0))
    path.with_name("a.run-shm").unlink()
    for file in open_folder.iterdir():
        file.chmod(0o444)
    open_folder.chmod(0o555)

    def act() -> None:
        with RunStore.read(path) as reader:
            assert len(reader) == 10

    try:
        _as_nobody(act)
    finally:
        open_folder.chmod(0o755)


FULL = """
import resource, sys
from calipers.errors import StoreNotWritable
from dataclasses import replace
from calipers.evidence.records import record_from_json
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
store = RunStore.open(sys.argv[1], RunSpec.from_json(sys.argv[2]))
record = record_from_json("certificate", sys.argv[3])
stored = 0
if sys.argv[4] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    while True:
        store.append([Measured(f"{stored + i:032x}", [replace(record, index=stored + i)])
                      for i in range(20)])
        stored += 20
except StoreNotWritable as problem:
    print(stored, len(store), problem)
"""


def _fill(
    command: list[str], path: Path, spec: RunSpec, record: Certificate, how: str
) -> tuple[int, int, str]:
    ended = subprocess.run(
        [*command, sys.executable, "-c", FULL, str(path), spec.to_json(), record.to_json(), how],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    stored, there, message = ended.stdout.split(maxsplit=2)
    return int(stored), int(there), message


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_limit_on_the_size_of_files_keeps_what_was_stored(
    tmp_path: Path, spec: RunSpec, certificate: Make
) -> None:
    path = tmp_path / "a.run"
    stored, there, message = _fill([], path, spec, certificate(0), "limit")
    assert stored == there > 0
    assert "what it holds is kept" in message
    with RunStore.open(path, spec) as store:
        assert len(store) == stored
        assert store.append(measured(certificate, 10**6)) == 1


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, spec: RunSpec, certificate: Make) -> None:
    """A real one: a memory file system of one megabyte in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "saved").mkdir()
    script = (
        f'mount -t tmpfs -o size=1m none {tmp_path}/disk && "$@" && cp {tmp_path}/disk/* {tmp_path}/saved'
    )
    command = ["unshare", "-rm", "sh", "-c", script, "sh"]
    try:
        probe = subprocess.run([*command, "true"], check=False, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no `unshare` to make a small disk with")
    if b"mount" in probe.stderr or b"unshare" in probe.stderr:
        pytest.skip("a small disk cannot be mounted here")
    stored, there, message = _fill(command, tmp_path / "disk" / "a.run", spec, certificate(0), "disk")
    assert stored == there > 0
    assert "the disk is full" in message
    with RunStore.open(tmp_path / "saved" / "a.run", spec) as store:
        assert {record.index for record in store.records()} == set(range(stored))
        assert store.append(measured(certificate, 10**6)) == 1


def test_a_new_run_is_never_half_made(tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection, spec: RunSpec) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_initialize", fail)
    with pytest.raises(StoreNotWritable, match="No space left"):
        RunStore.open(tmp_path / "a.run", spec)
    assert list(tmp_path.iterdir()) == []


def test_two_that_make_the_same_run_at_once_share_one_file(
    tmp_path: Path, spec: RunSpec, certificate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.run"
    give_name = files_module._give_name

    def beaten(made: Path, wanted: Path) -> None:
        monkeypatch.setattr(files_module, "_give_name", give_name)
        with RunStore.open(path, spec) as winner:
            winner.append(measured(certificate, 1))
        give_name(made, wanted)

    monkeypatch.setattr(files_module, "_give_name", beaten)
    with RunStore.open(path, spec) as store:
        assert store.done() == {key(1)}
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_is_migrated_when_it_goes_on_and_only_read_otherwise(
    tmp_path: Path, spec: RunSpec, certificate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.run"
    with RunStore.open(path, spec) as store:
        store.append(measured(certificate, 1))
    before = path.read_bytes()
    later = (
        *migrations_module._MIGRATIONS,
        "CREATE TABLE more (x INTEGER) STRICT; INSERT INTO more VALUES (7);",
    )
    newest = len(later)
    monkeypatch.setattr(migrations_module, "_MIGRATIONS", later)
    monkeypatch.setattr(migrations_module, "SCHEMA_VERSION", newest)
    with RunStore.read(path) as store:
        assert store._connection.execute("SELECT x FROM more").fetchall() == [(7,)]
        assert list(store.records()) == [certificate(1)]
    assert path.read_bytes() == before
    with RunStore.open(path, spec) as store:
        assert store._connection.execute("SELECT version FROM migrations").fetchall() == [
            (version + 1,) for version in range(newest)
        ]
    monkeypatch.undo()
    with pytest.raises(StoreMismatch, match="install a newer calipers"):
        RunStore.read(path)


def test_reading_a_run_loads_no_torch(tmp_path: Path, spec: RunSpec) -> None:
    path = tmp_path / "a.run"
    RunStore.open(path, spec).close()
    code = (
        "import sys, calipers.runs.store as s, calipers.runs.tasks\n"
        f"assert len(s.RunStore.read({str(path)!r})) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

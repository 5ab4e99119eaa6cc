"""Output of a command while it works: plain lines for people, JSON lines with `--log json`, a bar on a terminal."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.executor.progress import BuildEvent, Progress
from pipeline.sources.procedural import procedural
from schemas.ledger import Counts
from schemas.sample import Regime
from seqtex.cli.main import main
from seqtex.cli.terminal import sentences as plain
from seqtex.cli.terminal.console import (
    bar,
    begin_log,
    build_progress,
    log_event,
    print_table,
    signs_of_life,
    training_progress,
)
from tests.support.small_dataset import write_dataset

REPO = Path(__file__).resolve().parents[2]
TIME = re.compile(r"(\d+:)?\d\d:\d\d  ")
WORKING_LINE = re.compile("  (planning|listing|starting|building|compiling|finishing)  ")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Clock of a command that writes plain lines."""
    clock = Clock()
    begin_log("plain", clock)
    yield clock
    begin_log("plain")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def build_of(assets: int, seconds_per_asset: float, clock: Clock) -> None:
    """Notified as `pipeline.executor.build.build` does it, one asset a job; every fourth is rejected."""
    with build_progress() as notify:
        progress = Progress(jobs=assets, planned=assets, notify=notify, clock=clock)
        progress.report("planned")
        progress.begin(2, "http://10.0.0.1:8265")
        for number in range(assets):
            clock.now += seconds_per_asset
            progress.done(number, Counts(rejected=1) if number % 4 == 3 else Counts(textured=1))
            progress.report("job", number, "1 accepted, 0 rejected, 0 failed", 1.0, 0.9)
        progress.report("done")


# progress


def test_a_build_shows_time_share_rate_and_time_left_and_never_becomes_a_wall(clock, capsys):
    build_of(1200, 0.5, clock)
    written = lines(capsys)
    assert written[0] == "00:00  planned  1,200 assets in 1,200 jobs"
    assert written[1] == "00:00  started  room for 2 jobs at once; Ray's dashboard: http://10.0.0.1:8265"
    assert written[-1] == "10:00  done  1,200 of 1,200 assets (100%), 2/s; 900 textured, 300 rejected"
    assert (
        "01:40  building  201 of 1,200 assets (16%), 2/s, about 8 min 20 s left; 151 textured, 50 rejected" in written
    )
    assert all(TIME.match(line) and "{" not in line for line in written)
    assert 95 <= len(written) <= 101 + 9 + 4


def test_time_moves_while_nothing_else_does(clock, capsys, monkeypatch):
    monkeypatch.setattr("seqtex.cli.terminal.console.FIRST_S", 0.01)
    monkeypatch.setattr("seqtex.cli.terminal.console.REPEAT_S", 0.01)
    seen: list[str] = []

    def until(line: str) -> None:
        for _ in range(500):
            seen.extend(lines(capsys))
            if line in seen:
                return
            time.sleep(0.01)
        raise AssertionError(seen)

    with signs_of_life("starting  loading the pipeline"):
        until("00:00  starting  loading the pipeline")
        with build_progress() as notify:
            clock.now = 5
            until("00:05  planning  the build")
            progress = Progress(jobs=1, planned=4, notify=notify, clock=clock)
            progress.report("starting", detail="starting Ray")
            for seconds in (10, 15):
                clock.now = seconds
                until(f"00:{seconds:02}  starting  Ray")
    assert len(seen) == 4


def test_a_day_takes_no_more_than_a_line_a_minute(clock, capsys):
    build_of(8640, 10.0, clock)
    written = lines(capsys)
    assert written[-1].startswith("24:00:00  done") and 24 * 60 < len(written) < 24 * 60 + 100


def test_a_quick_build_has_few_lines(clock, capsys):
    build_of(100, 0.001, clock)
    assert [line.split("  ")[1] for line in lines(capsys)] == ["planned", "started", "building", "done"]


def test_a_line_is_due_every_five_seconds_at_whole_tenths_and_at_the_end():
    throttle = plain.Throttle()
    assert throttle.due(0.0, 0.0)
    assert not throttle.due(4.0, 0.11), "a tenth, but too soon"
    assert throttle.due(6.0, 0.11), "the tenth was not written yet"
    assert not throttle.due(10.0, 0.15)
    assert throttle.due(11.0, 0.15), "five seconds"
    assert throttle.due(16.1, 1.0), "the end"
    assert not throttle.due(16.2, 1.0)
    assert not throttle.due(17.0, 0.0) and throttle.due(17.5, 1.0), "other work has an end of its own"
    assert not throttle.due(22.0, None) and throttle.due(23.0, None)
    assert throttle.due(600.0, None) and not throttle.due(609.0, None) and throttle.due(611.0, None), "later ten"
    assert throttle.due(3600.0, None) and not throttle.due(3650.0, None) and throttle.due(3660.0, None)


def test_percent_are_whole_and_never_early():
    assert [plain.percent(done / 100) for done in range(101)] == list(range(101))
    assert plain.percent(0.9999) == 99


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (42.4, "42 s"), (80, "1 min 20 s"), (3600, "1 h"), (7500, "2 h 5 min"),
     (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert plain.duration(seconds) == text


def test_training_shows_step_loss_speed_and_time_left(clock, capsys):
    with training_progress(1200) as report:
        for step in range(1, 1201):
            clock.now += 0.5
            row = {"step": step, "loss": None if step == 1200 else 0.412, "progress": step / 1200}
            report(row | {"samples_per_s": 16.0, "wait": 0.02 if step < 800 else 0.3})
    written = lines(capsys)
    assert written[0] == "00:00  training  step 1 of 1,200 (0%), loss 0.412"
    assert "03:20  training  step 401 of 1,200 (33%), loss 0.412, 2 steps/s, about 6 min 40 s left" in written
    assert written[-1].startswith("10:00  training  step 1,200 of 1,200 (100%), loss no number, 2 steps/s, waits 30%")
    assert len(written) < 110


def test_other_work_is_shown_in_the_same_way(clock, capsys):
    with bar("encoding", 100, "%") as update:
        for percent in (1, 20):
            clock.now += 19.0
            update(percent, f"shard {percent} of 100")
    with bar("drawing", None, "shards") as update:
        clock.now += 22.0
        update(0, "", total=4000)
        clock.now += 60.0
        update(1200, "", total=4000)
        clock.now += 10.0
        update(1300, "")
    assert lines(capsys) == [
        "00:19  encoding  1%; shard 1 of 100",
        "00:38  encoding  20%, about 1 min 20 s left; shard 20 of 100",
        "01:00  drawing  0 of 4,000 shards (0%)",
        "02:00  drawing  1,200 of 4,000 shards (30%), 20/s, about 2 min 20 s left",
        "02:10  drawing  1,300 of 4,000 shards (32%), 19/s, about 2 min 30 s left",
    ]


# events

REPORT = {"planned": 1224, "textured": 1200, "mv_only": 20, "rejected": 3, "failed": 1, "jobs": 14, "jobs_run": 0}


@pytest.mark.parametrize(
    ("event", "facts", "text"),
    [
        ("built", {"dataset": "d"} | REPORT, "built  d: 1,200 textured, 20 views only, 3 rejected, 1 failed of 1,224 "
         "assets; nothing to do; see `seqtex failures d`"),
        ("built", {"dataset": "d"} | REPORT | {"reasons": {"untextured": 6, "truncated": 2, "flat": 1}},
         "built  d: 1,200 textured, 20 views only, 3 rejected, 1 failed of 1,224 assets; nothing to do; without a "
         "sample: 6 untextured, 2 truncated, 1 flat; `seqtex failures d --rejected` lists them"),
        ("built", {"dataset": "d"} | REPORT | {"reasons": dict.fromkeys("abcde", 1)},
         "built  d: 1,200 textured, 20 views only, 3 rejected, 1 failed of 1,224 assets; nothing to do; without a "
         "sample: 1 a, 1 b, 1 c, 1 d, 1 reason more; `seqtex failures d --rejected` lists them"),
        ("extended", {"dataset": "d", "added": 1, "present": 2, "changed": 0} | REPORT | {"failed": 0, "jobs_run": 3},
         "extended  1 asset added, 2 were there; d: 1,200 textured, 20 views only, 3 rejected of 1,224 assets; "
         "3 of 14 jobs run"),
        ("verified", {"dataset": "d", "problems": 0}, "verified  d: no problems"),
        ("trained", {"checkpoint": "c", "steps": 1200, "seconds": 380.2}, "trained  1,200 steps in 6 min 20 s: c"),
        ("stage", {"stage": "train", "seconds": 4.25}, "stage  train took 4.2 s"),
        ("strategy", {"name": "fsdp", "reason": "as asked", "bytes_per_device": 10**10, "device_bytes": 2 * 10**10},
         "strategy  fsdp (as asked): about 10 of 20.0 GB per device"),
        ("run", {"cell": "base", "seed": 1, "uv_psnr": 20.25, "seconds": 7500}, "run  base, seed 1: uv_psnr 20.2, in "
         "2 h 5 min"),
        ("retry", {"job": 7, "detail": "its node was lost"}, "retry  job 7 starts again: its node was lost"),
        ("new_one", {"meshes": 12000, "share": 0.12345, "of": {"a": None}, "names": ["x", "y"], "last": True},
         "new_one: meshes 12,000, share 0.123, of a none, names x, y, last yes"),
        ("verified", {"dataset": "d"}, "verified: dataset d"),
    ],
)  # fmt: skip
def test_events_are_sentences_or_their_facts(event, facts, text, clock, capsys):
    clock.now = 42.9
    log_event(event, **facts)
    assert lines(capsys) == [f"00:42  {text}"]


def test_json_lines_hold_what_happened_and_nothing_else(clock, capsys):
    begin_log("json", clock)
    build_of(4, 100.0, clock)
    written = [json.loads(line) for line in lines(capsys)]
    assert [event["event"] for event in written] == ["planned", "started", *["job"] * 4, "done"]
    assert all(event.keys() == BuildEvent.__dataclass_fields__.keys() for event in written)
    assert (written[-1]["assets_per_s"], written[-1]["textured"], written[-1]["rejected"]) == (0.01, 3, 1)
    with bar("encoding", 100, "%") as update:
        update(100, "shard 1 of 1")
    with training_progress(None) as report:
        rows = [{"step": step, "loss": 1.5, "progress": step / 120, "task": "img2tex"} for step in range(1, 121)]
        for row in rows:
            report(row)
    assert [json.loads(line) for line in lines(capsys)] == [{"event": "step"} | rows[49], {"event": "step"} | rows[99]]


@pytest.mark.parametrize("event", ["problem", "never_heard_of"])
def test_nothing_from_outside_steers_the_terminal_or_passes_for_a_line(event, clock, capsys):
    log_event(event, detail="a\x1b[2J\r\nb\u2028c\u202ed\udcff\x9b1m")
    with bar("tex\x1b[2J", 2, "steps") as update:
        update(1, "[red]\x1b]0;x\x07\n00:00  built")
    event_line, bar_line = lines(capsys)
    assert event_line.endswith("a?[2J b c?d??1m") and bar_line.endswith("; [red]?]0;x? 00:00  built")
    assert all(char.isprintable() for char in event_line + bar_line)


# commands


def test_a_build_in_a_pipe_writes_plain_lines(tmp_path, capfd):
    list(procedural(3, tmp_path / "assets", clean=True))
    (tmp_path / "assets" / "empty.glb").touch()
    words = ["--source", f"folder:{tmp_path / 'assets'}", "--out", str(tmp_path / "d"), "--views.resolution", "64"]
    assert main(["build", *words, "--uv.resolution", "64", "--assets_per_job", "2"]) == 0
    written = capfd.readouterr().out.splitlines()
    assert all(TIME.match(line) and "{" not in line for line in written)
    assert [line.split("  ")[1] for line in written if not WORKING_LINE.search(line)] == [
        "planned", "started", "done", "built",
    ]  # fmt: skip
    shown = [int(done) for done in re.findall(r"building  ([0-4]) of 4 assets \(\d+%\)", "\n".join(written))]
    assert shown and shown == sorted(shown)
    under_way = [line for line in written if re.search(r"building  [1-3] of 4 ", line)]  # a quick build has none
    assert all(re.search(r" of 4 assets \((25|50|75)%\), .*/(s|min)(, about .* left)?; ", line) for line in under_way)
    assert "3 textured, 1 rejected of 4 assets; 2 of 2 jobs run" in written[-1]
    for words in (["status"], ["failures", "--rejected"], ["what-if"]):
        assert main([words[0], str(tmp_path / "d"), *words[1:]]) == 0
    written = capfd.readouterr().out
    assert "{" not in written and "4 of 4 assets done" in written and "rejected, empty_file" in written
    assert "0 of 4 assets would end otherwise" in written


SMALL = ["--model.num_layers", "1", "--model.num_attention_heads", "1", "--model.ffn_dim", "32", "--run.threads", "1",
         "--data.batch_size", "2", "--run.logger", "none", "--validation.every", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, [[("t0", Regime.TEXTURED), ("t1", Regime.TEXTURED)]])
    return out


def test_training_in_a_pipe_writes_plain_lines(dataset, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("seqtex.cli.terminal.console.FIRST_S", 0.0)
    place = ["--data.directory", str(dataset), "--run.directory", str(tmp_path / "run"), "--data.mv_only_ratio", "0"]
    assert main(["train", "--preset", "tiny", *place, *SMALL, "--run.max_steps", "50"]) == 0
    written = capfd.readouterr().out.splitlines()
    assert all(TIME.match(line) and "{" not in line for line in written)
    assert written[0].endswith("  starting  loading PyTorch and Lightning")
    strategy = next(number for number, line in enumerate(written) if line.endswith("per device"))
    assert all("  starting  " in line for line in written[:strategy])
    first = next(line for line in written[strategy:] if "  training  step" in line)
    assert re.search(r"training  step [1-9]\d? of 50 \(\d+%\), loss ", first)
    assert re.search(r"training  step 50 of 50 \(100%\), loss [\d.]+, \d.* steps/s", written[-2])
    assert re.search(r"trained  50 steps in .* s: .*/run/checkpoint$", written[-1])
    again = [
        "train",
        "--preset",
        "tiny",
        "--log",
        "json",
        "--data.directory",
        str(dataset),
        "--data.mv_only_ratio",
        "0",
    ]
    assert main([*again, *SMALL, "--run.directory", str(tmp_path / "json"), "--run.max_steps", "50"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["strategy", "step", "trained"]
    assert events[1]["step"] == 50 and {"loss", "seconds", "task", "regime", "learning_rate"} <= events[1].keys()


def test_the_format_may_stand_anywhere(dataset, tmp_path, capsys):
    (tmp_path / "log.yaml").write_text("log: json\n")
    command = ["encode", str(dataset), "--codec", "dct", "--device", "cpu"]
    for words in (["--log", "json", *command], ["--log=json", *command], [*command, "--log", "json"],
                  [*command, "--config", str(tmp_path / "log.yaml")]):  # fmt: skip
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["event"] == "encoded"
    assert main([*command, "--log", "plain"]) == 0
    assert f"encoded  {dataset}/latents/" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*command, "--log", "xml"])
    assert ended.value.code == 2


def test_a_cost_is_a_table_wherever_it_goes_and_json_where_it_is_asked_for(dataset, capsys):
    words = ["train", "--preset", "tiny", "--dry_run", "--data.directory", str(dataset)]
    assert main(words) == 0
    assert "embeddings and output" in (written := capsys.readouterr().out) and "{" not in written
    for asked in ("--json", "--log=json"):
        assert main([*words, asked]) == 0
        assert json.loads(capsys.readouterr().out)["event"] == "dry_run"


def test_names_that_an_encoding_cannot_write_end_no_command(dataset, tmp_path, monkeypatch):
    place, raw = tmp_path / "stühle", io.BytesIO()
    place.symlink_to(dataset)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["encode", str(place), "--codec", "dct", "--device", "cpu"]) == 0
    assert main(["failures", str(place)]) == 0
    sys.stdout.flush()
    assert b"st?hle/latents" in raw.getvalue() and b"st?hle: 0 assets" in raw.getvalue()


def test_encoding_offline_names_what_needs_no_network(dataset, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["encode", str(dataset), "--codec_path", "nobody/nothing", "--device", "cpu"]) == 1
    message = capsys.readouterr().err
    assert "nobody/nothing" in message and "--codec dct" in message and "--codec_path FOLDER" in message


def test_a_narrow_terminal_shows_whole_numbers_and_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    name, numbers = "an_asset_with_a_name_longer_than_the_terminal", (25, 14.08, 0.34, 2.31)
    print_table(("asset", "shards", "MB", "MB a shard (median)", "MB (largest)"), [(name, *numbers)], "")
    text = capsys.readouterr().out
    rows = [line.split("\u2502")[1:-1] for line in text.splitlines() if "\u2502" in line]
    assert "".join(row[0].strip() for row in rows) == name and "\u2026" not in text
    assert [cell.strip() for cell in rows[0][1:]] == ["25", "14.08", "0.34", "2.31"]


def test_reasons_are_a_table_on_a_terminal(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "empty.glb").touch()
    (tmp_path / "assets" / "also_empty.glb").touch()
    seen = on_a_terminal("build", "--source", str(tmp_path / "assets"), "--out", str(tmp_path / "d"))
    assert re.search(r"│ +1 │ empty_file +│", seen) and re.search(r"│ +1 │ duplicate +│", seen), seen[-2000:]
    assert "--rejected` lists them" in seen.replace("\r\n", " ") and "2 rejected of 2 assets" in seen


def on_a_terminal(*words: str) -> str:
    """Return the output of a command on a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "seqtex.cli.main", *words], cwd=REPO, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux: the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, seen
    return seen.decode()


def test_a_terminal_has_a_bar_and_plain_lines_unless_json_is_asked_for(dataset):
    seen = on_a_terminal("encode", str(dataset), "--codec", "dct", "--device", "cpu")
    assert "━" in seen and "shard 1 of 1" in seen and "encoded  " in seen and "{" not in seen
    assert not re.search(r"\d\d:\d\d  encoding", seen), "the bar shows it"
    seen = on_a_terminal("encode", str(dataset), "--codec", "dct", "--device", "cpu", "--log", "json")
    (line,) = seen.splitlines()
    assert json.loads(line)["event"] == "encoded"

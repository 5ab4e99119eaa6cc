"""Plain text for people: events, numbers, durations and progress, each written in one line."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from schemas.errors import printable

Facts = Mapping[str, Any]

PAUSE_S = 4.75
"""Seconds between two progress lines in the first five minutes, so that five never pass without; later a sixtieth of
the time so far."""
LONGEST_PAUSE_S = 60.0
PACE_S, LEAST_REPORTS = 30.0, 10
"""Seconds of work over which its speed is measured, and the fewest reports."""
NOTABLE_WAIT = 0.1
"""Data wait that is mentioned, as a share of the training time."""
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Throttle:
    """Choice of the progress lines that are written, so that a log stays short: one every five seconds (later one a
    minute), one at every whole tenth of the work that took five seconds or more, and the last one."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._tenth = 0

    def due(self, elapsed: float, share: float | None) -> bool:
        """Return whether to write a line. elapsed: seconds since the command began. share: of the work that is done,
        None if unknown."""
        tenth = percent(share) // 10 if share is not None else 0
        pause = min(max(PAUSE_S, elapsed / 60), LONGEST_PAUSE_S)
        since = pause if self._last is None else elapsed - self._last
        due = since >= pause or (tenth > self._tenth and (tenth >= 10 or since >= PAUSE_S))
        if due:
            self._last = elapsed
        if due or tenth < self._tenth:  # the latter: other work has begun
            self._tenth = tenth
        return due


class Pace:
    """Speed of countable work, measured over its newest reports: the first ones are slower than all others."""

    def __init__(self) -> None:
        self._reports: deque[tuple[float, float]] = deque()

    def rate(self, now: float, done: float) -> float | None:
        """Add a report and return units a second; None before the second report."""
        self._reports.append((now, done))
        while len(self._reports) > LEAST_REPORTS and now - self._reports[0][0] > PACE_S:
            self._reports.popleft()
        since, before = self._reports[0]
        return (done - before) / (now - since) if now > since and done > before else None


def line(elapsed: float, text: str) -> str:
    """Write one line of a log: minutes and seconds since the command began, then the text, without characters that
    could control a terminal or look like another line."""
    minutes, seconds = divmod(int(elapsed), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
    return printable(f"{clock}  {' '.join(text.splitlines())}") + "\n"


def sentence(event: str, facts: Facts) -> str:
    """Write an event in words; as `name: key value` if it has no sentence, or lacks facts that its sentence needs."""
    try:
        return SENTENCES[event](facts)
    except KeyError:
        return f"{event}: {listed(facts)}"


# numbers


def readable(value: object) -> str:
    """Write a fact for people: numbers with thousands separators and three significant digits."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        case Mapping():
            return listed(value)
        case list() | tuple():
            return ", ".join(map(readable, value))
    return str(value)


def listed(facts: Facts) -> str:
    """Write facts as `key value, key value`."""
    return ", ".join(f"{name} {readable(value)}" for name, value in facts.items())


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things: `no assets`, `1 asset`, `1,200 assets`."""
    return f"{readable(number) if number else 'no'} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float) -> int:
    """Round a share down to whole percent: 100 for the whole alone; 0.29 is 29, although its double lies below."""
    return int(100 * share + 1e-9)


def duration(seconds: float) -> str:
    """Write seconds in the two largest units: `4.2 s`, `42 s`, `1 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    first = next(index for index, (_, size) in enumerate(UNITS) if seconds >= size)
    (unit, size), (small_unit, small_size) = UNITS[first], UNITS[min(first + 1, len(UNITS) - 1)]
    whole, rest = divmod(round(seconds / small_size) * small_size, size)
    small = f" {rest // small_size} {small_unit}" if rest else ""
    return f"{whole} {unit}{small}"


def left(seconds: float | None) -> list[str]:
    """Write the time that is left, minutes to ten seconds; nothing if it is unknown or zero."""
    if not seconds:
        return []
    return [f"about {duration(round(seconds, -1)) if seconds >= 60 else f'{max(1, round(seconds))} s'} left"]


def speed(rate: float | None, unit: str = "") -> list[str]:
    """Write a speed: `2.4/s`, or by the minute or hour if it is slow; nothing if it is unknown."""
    if not rate:
        return []
    period, times = ("s", 1) if rate >= 0.1 else ("min", 60) if rate * 60 >= 0.1 else ("h", 3600)
    number = f"{rate * times:,.0f}" if rate * times >= 10 else f"{rate * times:.2g}"
    return [f"{number}{unit}/{period}"]


# progress


def amount(done: float, total: float | None, unit: str, share: float | None) -> str:
    """Write an amount: `38 of 224 assets (17%)`; `17%` if percent are counted; `38 assets` if the total is unknown."""
    if share is None:
        return f"{readable(done)} {unit}"
    return f"{percent(share)}%" if unit == "%" else f"{readable(done)} of {readable(total)} {unit} ({percent(share)}%)"


def working(description: str, done: float, total: float | None, unit: str, rate: float | None, note: str) -> str:
    """Write the progress of any work: amount and share done, rate, time left, and a note."""
    share = done / total if total else None
    remaining = (total - done) / rate if total and rate else None
    parts = [amount(done, total, unit, share), *(speed(rate) if unit != "%" else []), *left(remaining)]
    return f"{description}  {', '.join(parts)}" + (f"; {note}" if note else "")


BEFORE_THE_FIRST = ("compiling", "assets")
"""Events of a build whose detail says why no asset has ended yet."""


def building(event: Facts) -> str:
    """Write the progress of a build, a `BuildEvent`."""
    waits = event["event"] in BEFORE_THE_FIRST and event["assets_per_s"] is None and event["detail"]
    return f"building  {assets(event)}" + (f"; {event['detail']}" if waits else "")


def assets(event: Facts) -> str:
    """Write the assets done out of those planned, with rate, time left and outcomes."""
    done, planned = event["assets_done"], event["planned"]
    share = done / planned if planned else 1.0
    parts = [amount(done, planned, "assets", share), *speed(event["assets_per_s"]), *left(event["eta_s"])]
    return ", ".join(parts) + (f"; {outcomes(event)}" if done else "")


def outcomes(counts: Facts) -> str:
    """Write the outcomes that occurred: `30 textured, 5 views only, 3 rejected`."""
    words = {"textured": "textured", "mv_only": "views only", "rejected": "rejected", "failed": "failed"}
    return ", ".join(f"{counts[name]:,} {word}" for name, word in words.items() if counts[name])


def training(row: Facts, max_steps: int | None, steps_per_s: float | None, remaining: float | None) -> str:
    """Write the progress of a training run, a row of its loss log. max_steps: None if something else ends the run."""
    of = f" of {max_steps:,}" if max_steps else ""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.3f}"
    parts = [f"step {row['step']:,}{of} ({percent(row['progress'])}%)", f"loss {loss}"]
    parts += speed(steps_per_s, " steps") + left(remaining)
    if row.get("wait", 0.0) >= NOTABLE_WAIT:
        parts.append(f"waits {row['wait']:.0%} of the time for data")
    return f"training  {', '.join(parts)}"


# events


def started(event: Facts) -> str:
    """Write that Ray has started."""
    dashboard = f"; Ray's dashboard: {event['dashboard']}" if event["dashboard"] else ""
    return f"started  {event['detail']}{dashboard}"


def planned(event: Facts) -> str:
    """Write the size of a build."""
    before = f", {event['assets_done']:,} of them done before" if event["assets_done"] else ""
    detail = f"; {event['detail']}" if event["detail"] else ""
    return f"planned  {count(event['planned'], 'asset')} in {count(event['jobs'], 'job')}{before}{detail}"


MAX_REASONS = 4
"""Reasons that the last line of a build names."""


def whole(report: Facts) -> str:
    """Write the counts of a dataset after a build, a `BuildReport`."""
    run = f"{report['jobs_run']:,} of {count(report['jobs'], 'job')} run" if report["jobs_run"] else "nothing to do"
    look = f"; see `seqtex failures {report['dataset']}`" if report["failed"] else ""
    if reasons := report.get("reasons"):
        first = [f"{number:,} {reason}" for reason, number in list(reasons.items())[:MAX_REASONS]]
        if len(reasons) > MAX_REASONS:
            first.append(count(len(reasons) - MAX_REASONS, "reason more", "reasons more"))
        look = f"; without a sample: {', '.join(first)}; `seqtex failures {report['dataset']} --rejected` lists them"
    found = f"{outcomes(report)} of " if report["planned"] else ""
    return f"{report['dataset']}: {found}{count(report['planned'], 'asset')}; {run}{look}"


def extended(facts: Facts) -> str:
    """Write the assets that an extension added."""
    changed = f", {facts['changed']:,} of them with another file now" if facts["changed"] else ""
    added = f"{count(facts['added'], 'asset')} added, {facts['present']:,} were there{changed}"
    return f"extended  {added}; {whole(facts)}"


def strategy(facts: Facts) -> str:
    """Write how a training run is spread over devices."""
    of = f" of {facts['device_bytes'] / 1e9:.1f}" if facts["device_bytes"] else ""
    gigabytes = f"{facts['bytes_per_device'] / 1e9:.3g}{of} GB per device"
    return f"strategy  {facts['name']} ({facts['reason']}): about {gigabytes}"


def ablation_run(facts: Facts) -> str:
    """Write the figures of one run of `seqtex ablate`."""
    figures = {name: value for name, value in facts.items() if name not in ("cell", "seed", "seconds")}
    return f"run  {facts['cell']}, seed {facts['seed']}: {listed(figures)}, in {duration(facts['seconds'])}"


def gallery(facts: Facts) -> str:
    """Write the size of a gallery."""
    shards = f"{count(facts['drawn'], 'shard')} drawn, {facts['kept']:,} kept"
    return f"gallery  {facts['path']}: {count(facts['listed'], 'asset')} listed, {shards}"


def licences(facts: Facts) -> str:
    """Write the samples of a dataset by what their licences permit, a `LicenceReport`."""
    words = {"any": "any use", "noncommercial": "noncommercial use alone", "refused": "no right to publish"}
    shown = [
        f"{words[use]}: {', '.join(f'{licence} ({samples:,})' for licence, samples in sorted(counts.items()))}"
        for use, counts in facts.items()
        if counts
    ]
    return f"licences  {'; '.join(shown) or 'no samples'}"


def published(facts: Facts) -> str:
    """Write the outcome of an upload, an `Upload`."""
    if not facts["sent"] and not facts["removed"]:
        text = f"nothing to do, it has all {count(facts['files'], 'file')}"
    else:
        sent = f"{count(facts['sent'], 'file')} sent ({facts['sent_bytes'] / 1e6:,.1f} MB)"
        text = f"{sent}, {facts['present']:,} were there"
    if facts["removed"]:
        text += f"; {count(len(facts['removed']), 'file')} of an earlier state removed"
    if facts["foreign"]:
        text += f"; {count(len(facts['foreign']), 'file')} of others left there"
    return f"published  {facts['url']}: {text}"


SENTENCES: dict[str, Callable[[Facts], str]] = {
    # builds
    "skipped": lambda facts: f"skipped  {facts['detail']}",
    "selected": lambda facts: f"selected  {facts['detail']}",
    "waiting": lambda facts: f"waiting  {facts['detail']}",
    "planned": planned,
    "compiling": lambda facts: f"compiling  {facts['detail'].removeprefix('compiling ')}",
    "started": started,
    "listing": lambda facts: f"listing  {count(facts['planned'], 'asset')} found so far",
    "assets": building,
    "job": building,
    "starting": lambda facts: f"starting  {facts['detail'].removeprefix('starting ')}",
    "finishing": lambda facts: f"finishing  {facts['detail']}",
    "retry": lambda facts: f"retry  job {facts['job']} starts again: {facts['detail']}",
    "straggler": lambda facts: f"backup  job {facts['job']} {facts['detail']}",
    "nodes": lambda facts: f"nodes  {facts['detail']}",
    "done": lambda facts: f"done  {assets(facts)}",
    "built": lambda facts: f"built  {whole(facts)}",
    "retried": lambda facts: f"retried  {whole(facts)}",
    "repaired": lambda facts: f"repaired  {whole(facts)}",
    "merged": lambda facts: f"merged  {count(facts['same_uid'], 'asset')} twice; {whole(facts)}",
    "upgraded": lambda facts: f"upgraded  {whole(facts)}",
    "extended": extended,
    # datasets
    "problem": lambda facts: f"problem  {facts['detail']}",
    "verified": lambda facts: f"verified  {facts['dataset']}: {count(facts['problems'], 'problem')}",
    "report": gallery,
    "page": lambda facts: f"page  {facts['path']}",
    "view": lambda facts: f"gallery  {facts['url']}: {count(facts['listed'], 'asset')} listed; Ctrl-C ends it",
    "app": lambda facts: f"app  {facts['url']}: textures meshes with {facts['checkpoint']}; Ctrl-C ends it",
    "attribution": lambda facts: f"attribution  {count(facts['samples'], 'sample')} to {facts['out']}",
    "exported": lambda facts: f"exported  {count(facts['samples'], 'sample')} to {facts['out']} ({facts['layout']})",
    "licences": licences,
    "published": published,
    "encoded": lambda facts: f"encoded  {facts['latents']} (codec {facts['codec']}, {facts['dtype']})",
    "encoded_part": lambda facts: f"encoded  part {facts['part']} of {facts['parts']}, counted from 0; others are left",
    "not_applied": lambda facts: f"not applied  {readable(facts['settings'])}: {facts['detail']}",
    # training
    "strategy": strategy,
    "warning": lambda facts: f"warning  {facts['detail']}",
    "step": lambda facts: training(facts, None, None, None),
    "trained": lambda facts: (
        f"trained  {count(facts['steps'], 'step')} in {duration(facts['seconds'])}: {facts['checkpoint']}"
    ),
    "weights": lambda facts: f"weights  {facts['out']}: {facts['bytes'] / 1e6:,.1f} MB (LoRA {facts['lora']})",
    # texturing and comparisons
    "textured": lambda facts: f"textured  {facts['mesh']}: {facts['out']} (layout {facts['layout']})",
    "failed": lambda facts: f"failed  {facts['mesh']}: {facts['detail']}",
    "evaluated": lambda facts: f"evaluated  {count(facts['meshes'], 'mesh', 'meshes')}, task {facts['task']}",
    "stage": lambda facts: f"stage  {facts['stage']} took {duration(facts['seconds'])}",
    "estimate": lambda facts: (
        f"estimate  {count(facts['steps'], 'step')} of training; about {duration(facts['seconds_left'])} left of it on "
        "this machine"
    ),
    "steps": lambda facts: f"steps  {facts['steps']:,} in every run, at {readable(facts['steps_per_second'])} steps/s",
    "run": ablation_run,
    "out_of_time": lambda facts: f"out of time  {count(facts['runs_left'], 'run')} left; {facts['remedy']}",
    "ablated": lambda facts: f"compared  {count(facts['runs'], 'run')}: {facts['table']}",
}
"""Sentences of the events of commands and builds. The first word names the subject of the line."""

"""The HTML page without a browser: complete, self-contained, small, and the same figures as the JSON."""

from __future__ import annotations

import json
import math
import re
from array import array
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longctx.errors import UsageError
from longctx.report.embed import pack, quantum_of, safe_json, unpack
from longctx.report.html import asset, charts_of, render
from longctx.report.run_facts import command_line
from longctx.report.write import page_of, write_report
from tests.report.records import CEILING, GB, make_summary, write_record

NASTY = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'\"`${alert(1)}", "{{ 7*7 }}",
    "<!--", "]]>", "\u2028alert(1)\u2029", "🧪👩‍🔬", "سلام עולם", "\u202egnp.exe", "&lt;b&gt;&amp;",
    "\x00\x1b[31m",
    "javascript:alert(1)", "\ud800", "a\nb\r\nc",
]  # fmt: skip


class Reader(HTMLParser):
    """Collects tables (by caption), element ids, attributes, and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._caption = self._text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if attributes.get("id"):
            self.ids.append(attributes["id"])
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"td", "th", "caption"}:
            self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self._rows[-1].append(self._text.strip())
        elif tag == "caption":
            self._caption = self._text.strip()
        elif tag == "table":
            self.tables[self._caption] = self._rows


def page(tmp_path: Path, **options) -> tuple[str, Reader]:
    html = render(page_of([str(write_record(tmp_path / "run", **options))]))
    return html, Reader(html)


def embedded(html: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1]
    )


def test_a_page_holds_its_sections_in_reading_order(tmp_path):
    html, _ = page(tmp_path, stop="hard")
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "What to try", "Memory over time", "Turns", "What the peak is made of", "Speed against depth",
        "Recall", "Machine and model", "Settings", "Before the stop", "Run it again",
    ]  # fmt: skip


def test_the_table_of_turns_matches_the_json(tmp_path):
    _, reader = page(tmp_path)
    rows = reader.tables[
        "Turns; the turn of the peak stands out. Error: predicted over measured peak."
    ]
    turns = make_summary()["turns"]
    assert len(rows) == len(turns) + 1
    place = {name: i for i, name in enumerate(rows[0])}
    for row, turn in zip(rows[1:], turns, strict=True):
        assert int(row[place["turn"]]) == turn["index"]
        assert int(row[place["context"]].replace(",", "")) == turn["context_tokens"]
        assert int(row[place["computed"]].replace(",", "")) == turn["computed_tokens"]
        for column, key in (
            ("measured peak GB", "peak_used_bytes"),
            ("predicted peak GB", "predicted_peak_bytes"),
        ):
            assert float(row[place[column]]) == pytest.approx(turn[key] / GB, abs=6e-4)


def test_the_embedded_curve_is_the_record(tmp_path):
    html, _ = page(tmp_path, samples=2_000)
    spec = embedded(html)["memory"]
    t_s, used = unpack(spec["series"][0]["packed"])
    samples = [
        json.loads(line)
        for line in (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
        if '"sample"' in line
    ]
    assert len(t_s) == len(samples) == 2_000
    assert t_s == pytest.approx([s["t_s"] for s in samples], abs=1e-3)
    assert used == pytest.approx(
        [s["used_bytes"] for s in samples], abs=spec["series"][0]["packed"]["value_quantum"]
    )
    assert [line["value"] * GB for line in spec["lines"]] == pytest.approx(
        [CEILING, 113_385_900_000]
    )
    assert len(spec["marks"]) == len(spec["bands"]) - 1 == 6


def test_a_long_record_stays_below_a_megabyte_and_keeps_its_peak_and_its_last_seconds(tmp_path):
    html, _ = page(tmp_path, samples=110_000, turn_s=900, stop="hard")
    assert len(html.encode()) < 1_000_000
    data = embedded(html)
    t_s, used = unpack(data["memory"]["series"][0]["packed"])
    assert 50_000 < len(t_s) <= 101_000
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    samples = [event for event in events if event["event"] == "sample"]
    assert max(used) == pytest.approx(max(s["used_bytes"] for s in samples), rel=1e-4)
    stop_s = next(event["t_s"] for event in events if event["event"] == "guard")
    last = [s["t_s"] for s in samples if stop_s - 10 <= s["t_s"] <= stop_s + 2]
    assert unpack(data["tail"]["series"][0]["packed"])[0] == pytest.approx(last, abs=2e-3)
    there = [t for t in t_s if stop_s - 10 <= t <= stop_s + 2]
    assert there == pytest.approx(last, abs=2e-3), (
        "every sample around the stop is in the whole curve too"
    )


def test_a_page_names_no_other_file_and_no_address(tmp_path):
    html, reader = page(tmp_path, stop="hard")
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, "the policy forbids style attributes"
    assert "@import" not in html
    assert "url(" not in html.split("<script")[0]
    assert len(reader.ids) == len(set(reader.ids))


def test_the_policy_allows_exactly_the_scripts_and_the_style_that_are_there(tmp_path):
    import base64
    import hashlib

    html, reader = page(tmp_path)
    policy = next(
        a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "'unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    bodies = re.findall(r"<script>(.*?)</script>", html, re.S) + re.findall(
        r"<style>(.*?)</style>", html, re.S
    )
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    assert len(hashes) == 3
    assert sorted(re.findall(r"sha256-([^']+)", policy)) == sorted(hashes)


def poisoned(folder: Path, text: str) -> Path:
    """A record that holds `text` in every place that comes from outside."""
    summary = make_summary()
    for key in ("inject_text", "haystack", "model"):
        summary["config"][key] = text
    summary["config"][text] = text
    summary |= {"mode": text, "version": text, "time_utc": text, "argv": ["longctx", "run", text]}
    summary["model"]["name"] = summary["limits"]["source"] = summary["limits"]["pool"] = text
    summary["host"][text] = {text: [text]}
    summary["host"]["gpus"][0]["name"] = summary["host"]["pools"][0]["name"] = text
    summary["recall"] |= {
        "answer": text,
        "secrets": [{"expected": text, "depth": 0.0, "found": True}],
    }
    summary["guard"] |= {"stopped_by": text, "reason": text, "at_turn": 2}
    summary["plan"]["cause"] = text
    summary["plan"]["turns"][1]["parts"][text] = 5 * GB
    summary["plan"]["turns"][1]["kind"] = summary["turns"][1]["kind"] = text
    summary["warnings"] = [text]
    summary["error"] = {"message": text, "hint": text}
    run = write_record(folder, stop="hard", secret=text.replace("\ud800", "?"))
    (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    events = (run / "events.jsonl").read_text("utf-8")
    events = events.replace('"unified"', json.dumps(text)).replace('"reference"', json.dumps(text))
    (run / "events.jsonl").write_text(events, "utf-8")
    return run


@pytest.mark.parametrize("nasty", NASTY)
def test_hostile_text_anywhere_in_a_record_stays_text(tmp_path, nasty):
    html = render(page_of([str(poisoned(tmp_path / "run", nasty))]))
    html.encode("utf-8")
    harmless = render(page_of([str(poisoned(tmp_path / "harmless", "word"))]))
    assert [tag for tag, _ in Reader(html).tags] == [tag for tag, _ in Reader(harmless).tags]
    assert html.count("word") < harmless.count("word"), "the text must have reached the page"
    for char in "\u202e\u2028\x00\x1b":
        assert char not in html


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.4, 0.95])
def test_a_record_cut_anywhere_gives_a_page_that_says_what_is_missing(tmp_path, share):
    size = (write_record(tmp_path / "whole", summary=False) / "events.jsonl").stat().st_size
    html, reader = page(tmp_path, cut=int(size * share))
    assert "Missing from this record" in html
    assert "UNFINISHED" in html
    assert ("memory" in reader.ids) is (share > 0.02)


def test_a_summary_without_events_gives_a_page_without_curves(tmp_path):
    run = write_record(tmp_path / "run")
    (run / "events.jsonl").unlink()
    html = render(page_of([str(run)]))
    assert "no timeline can be drawn" in html
    assert "memory" not in embedded(html)
    assert "parts" in embedded(html)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/longctx", "run", "--secret", "a b"], "longctx run --secret 'a b'"),
        (["/x/longctx/__main__.py", "run"], "longctx run"),
        (["longctx", "run", "--output-dir", "x", "--seed", "1"], "longctx run --seed 1"),
        (["longctx", "run", "--output-dir=x"], "longctx run"),
    ],
)
def test_the_command_to_run_it_again_can_be_pasted(argv, expected):
    assert command_line(argv) == expected


def test_several_runs_stand_side_by_side_with_their_ratio(tmp_path):
    a = write_record(tmp_path / "a")
    b = write_record(tmp_path / "b", mode="persistent", attention="auto")
    document = page_of([str(a), str(b)])
    reader = Reader(render(document))
    rows = reader.tables["One row a run"]
    peaks = [float(row[4]) for row in rows[1:3]]
    assert rows[3][4] == f"{peaks[1] / peaks[0]:.2f}x"
    assert len(reader.tables["The turns of both runs; ratio is the second over the first"]) == 7
    assert {"mode", "attention"} == {
        row[0] for row in reader.tables["Settings, machine and versions that are not the same"][1:]
    }
    assert {chart.id for chart in charts_of(document)} == {"memory", "peaks", "speed"}


def test_many_runs_share_the_budget_of_samples(tmp_path):
    runs = [
        write_record(tmp_path / f"r{n}", samples=21_000, turn_s=200, target=16_000 + n)
        for n in range(5)
    ]
    html = render(page_of([str(run) for run in runs]))
    assert len(html.encode()) < 1_000_000
    assert sum(s["packed"]["n"] for s in embedded(html)["memory"]["series"]) <= 101_000


def test_speed_is_drawn_against_the_depth_that_a_step_reached(tmp_path):
    html, _ = page(tmp_path)
    series = embedded(html)["speed"]["series"][0]
    steps = [turn for turn in make_summary()["turns"] if turn["computed_tokens"] > 15_950 / 8]
    assert series["x"] == [turn["computed_tokens"] for turn in steps]
    rates = [turn["computed_tokens"] / turn["prefill_s"] for turn in steps]
    assert series["y"] == pytest.approx(rates, abs=0.01)


def test_a_turn_that_was_cut_off_has_no_error_of_its_prediction(tmp_path):
    _, reader = page(tmp_path, stop="hard", summary=False)
    rows = reader.tables[
        "Turns; the turn of the peak stands out. Error: predicted over measured peak."
    ]
    place = rows[0].index("error")
    assert [row[place] for row in rows[1:]] == ["+3.0 %"] * 4 + ["n/a"]


def test_two_pools_are_drawn_together(tmp_path):
    run = write_record(tmp_path / "run", samples=100)
    with (run / "events.jsonl").open("a") as stream:
        for n in range(50):
            event = {"t_s": 40 + n, "event": "sample", "pool": "host", "used_bytes": 3 * GB}
            stream.write(json.dumps(event) + "\n")
    names = [s["label"] for s in embedded(render(page_of([str(run)])))["memory"]["series"]]
    assert names == ["unified used", "host used"]


def test_every_pool_has_a_row_with_its_own_limits(tmp_path):
    run = write_record(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    summary["memory"]["pools"] = [
        {"pool": "unified", "baseline_used_bytes": GB, "peak_used_bytes": 90 * GB},
        {"pool": "host", "baseline_used_bytes": None, "peak_used_bytes": 3 * GB},
    ]
    summary["limits"]["pools"] = [{"pool": "host", "ceiling_bytes": 20 * GB, "soft_bytes": 19 * GB}]
    (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    rows = Reader(render(page_of([str(run)]))).tables["Every pool; the one that binds stands out"]
    assert rows[1] == ["unified", "1.000", "90.000", "n/a", "n/a", "n/a"]
    assert rows[2] == ["host", "n/a", "3.000", "19.000", "20.000", "17.000"]


def test_open_shows_the_page_in_the_browser_and_says_so_where_there_is_none(
    tmp_path, monkeypatch, capsys
):
    opened: list[str] = []
    monkeypatch.setattr(
        "webbrowser.open", lambda address: opened.append(address) or len(opened) == 1
    )
    page = tmp_path / "report.html"
    run = str(write_record(tmp_path / "run"))
    write_report([run], page, open_page=True)
    assert opened == [page.as_uri()]
    assert "no browser" not in capsys.readouterr().err
    write_report([run], page, open_page=True)
    assert "no browser could be opened" in capsys.readouterr().err


def test_writing_into_a_missing_folder_is_a_usage_error(tmp_path):
    run = write_record(tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report([str(run)], tmp_path / "no" / "report.html")


# -- colours ------------------------------------------------------------------------------------


def palettes() -> list[dict[str, tuple[float, float, float]]]:
    """The colours of the light and the dark theme, each channel from 0 to 1."""
    css = asset("report.css")
    found = []
    for block in re.findall(r":root(?::not\(\.light\))? \{(.*?)\}", css, re.S)[:2]:
        pairs = re.findall(r"--(\w+): #([0-9a-f]{6})", block)
        found.append({k: tuple(int(v[i : i + 2], 16) / 255 for i in (0, 2, 4)) for k, v in pairs})
    return found


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_their_background(theme):
    palette = palettes()[theme]
    for ground in ("bg", "card"):
        for name in ("text", "muted", "link", "badc", "good", "warn", "ceil"):
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    assert contrast(palette["badc"], palette["badbg"]) >= 4.5
    for name in ("c0", "c1", "c2", "c3", "c4", "c6", "c7", "soft", "mark"):
        assert contrast(palette[name], palette["bg"]) >= 3.0, name


# Machado, Oliveira, Fernandes 2009, full severity, on linear RGB.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}  # fmt: skip


def lab(colour, kind: str) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of a colour as it is seen with one kind of colour blindness."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    seen = [
        min(max(sum(m * c for m, c in zip(row, linear, strict=True)), 0), 1)
        for row in BLINDNESS[kind]
    ]
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = [sum(m * c for m, c in zip(row, seen, strict=True)) for row in matrix]
    f = [(v / w) ** (1 / 3) if v / w > 0.008856 else 7.787 * v / w + 16 / 116
         for v, w in zip(xyz, (0.95047, 1.0, 1.08883), strict=True)]  # fmt: skip
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_curves_that_are_drawn_together_can_be_told_apart_with_any_colour_vision(theme, kind):
    palette = palettes()[theme]
    together = [("c0", "c1"), ("c0", "c2"), ("c1", "c2"), ("c0", "c3"), ("c1", "c5"), ("c0", "c5"),
                ("c0", "ceil"), ("c0", "soft"), ("c0", "c8"), ("c1", "c3"), ("c2", "c3"),
                ("c0", "mark")]  # fmt: skip
    for a, b in together:
        distance = math.dist(lab(palette[a], kind), lab(palette[b], kind))
        assert distance >= 10, (a, b, round(distance, 1))


# -- embedding ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    points=st.lists(
        st.tuples(st.floats(0, 50), st.one_of(st.integers(0, 2 * 10**11).map(float), st.just(math.nan))),
        max_size=200,
    ),
    quantum=st.sampled_from([1.0, 1e3, 1e6, 1e7]),
)  # fmt: skip
def test_packing_gives_back_every_sample_within_its_quantum(points, quantum):
    t_s, values = array("d"), array("d")
    for gap, value in points:
        t_s.append((t_s[-1] if t_s else 0.0) + gap)
        values.append(value)
    back_t, back = unpack(pack(t_s, values, range(len(points)), quantum))
    assert back_t == pytest.approx(list(t_s), abs=1e-3)
    assert back_t == sorted(back_t)
    for was, now in zip(values, back, strict=True):
        assert (math.isnan(was) and math.isnan(now)) or abs(
            was - now
        ) <= quantum / 2 + 1e-6 * quantum


@given(st.floats(1e4, 1e15))
def test_the_quantum_is_at_most_a_ten_thousandth(highest):
    assert highest / 1.001e5 < quantum_of(highest) <= highest / 0.999e4


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
@example("</script><!--<script>&amp;")
def test_json_in_the_page_is_read_back_and_holds_no_markup(value):
    text = safe_json(value)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_json_refuses_values_that_json_lacks():
    with pytest.raises(ValueError):
        safe_json({"x": math.nan})

"""The result in a terminal: fits 80 columns, survives any content, and tells the truth of the summary."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from longctx.report.terminal import SHOWN_TURNS, print_result
from longctx.report.verdict import advice, plan_command
from tests.report.records import make_summary


def shown(summary: dict, width: int = 80, encoding: str = "utf-8", **options) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_result(summary, Console(file=stream, width=width, highlight=False, **options))
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": "admission"},
        {"target": 128_000, "mode": "persistent", "attention": "auto"},
        {"target": 1_000_000, "chunk": 16_000},
        {"recalled": False},
        {"random_weights": True},
    ],
)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_fits_the_width_and_has_no_colour_codes_when_piped(options, width):
    text = shown(make_summary(**options), width)
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line.endswith(" ") and "more" not in line]
    assert "\x1b" not in text


def test_the_table_shows_the_figures_of_the_summary():
    summary = make_summary()
    summary["turns"][2].update(
        new_tokens=4_001, computed_tokens=8_123, context_tokens=8_144, prefill_s=1.5,
        predicted_peak_bytes=38_830_000_000, peak_used_bytes=37_700_000_000, released_bytes=1_250_000_000,
    )  # fmt: skip
    line = next(line for line in shown(summary).splitlines() if line.startswith("2 reference"))
    assert line.split()[2:] == [
        "4,001",
        "8,123",
        "8,144",
        "1.50",
        "5,415",
        "38.83",
        "37.70",
        "1.25",
    ]


def test_a_value_that_could_not_be_read_is_shown_as_not_available_and_never_as_zero():
    summary = make_summary()
    for turn in summary["turns"]:
        turn.update(
            dict.fromkeys(
                ("prefill_s", "predicted_peak_bytes", "peak_used_bytes", "released_bytes")
            )
        )
    summary["memory"] = dict.fromkeys(summary["memory"])
    summary["speed"] = dict.fromkeys(summary["speed"])
    text = shown(summary)
    row = next(line for line in text.splitlines() if line.startswith("3 reference")).split()
    assert row[5:] == ["n/a"] * 5
    assert "peak n/a" in text
    assert "headroom" not in text
    assert "prefill n/a tokens/s · decode n/a tokens/s" in text


def test_a_long_table_keeps_its_ends_the_peak_and_the_stop_and_counts_what_it_leaves_out():
    summary = make_summary(target=256_000, mode="persistent", attention="auto")
    turns = summary["turns"]
    assert len(turns) > 60
    summary["memory"]["peak_turn"], summary["guard"]["at_turn"] = 20, 40
    lines = shown(summary).splitlines()
    indices = [
        int(line.split()[0]) for line in lines if line[2:].startswith((" inj", " ref", " que"))
    ]
    last = len(turns) - 1
    assert indices == [0, 1, 2, 3, 20, 40, *range(last - 5, last + 1)]
    left_out = sum(
        int(line.split()[1]) for line in lines if line.startswith(" ") and " more" in line
    )
    assert left_out + len(indices) == len(turns)
    assert len(indices) <= SHOWN_TURNS


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_large_figures_cost_columns_and_are_never_cut(width):
    summary = make_summary(target=128_000, mode="persistent", attention="auto")
    for turn in summary["turns"]:
        turn.update(
            new_tokens=1_048_576, computed_tokens=8_256_000, context_tokens=1_048_576, prefill_s=0.001,
            prefill_tokens=1_246_765, predicted_peak_bytes=1_234_567 * 10**6, peak_used_bytes=987_654 * 10**6,
        )  # fmt: skip
    text = shown(summary, width)
    rows = [line for line in text.splitlines() if " reference" in line]
    assert len(rows) == 8
    assert all("987.65" in row and "…" not in row and len(row) <= width for row in rows)
    assert ("8,256,000" in rows[0]) is (width >= 60)


def test_a_stop_names_its_layer_turn_and_reason_and_what_to_try():
    text = shown(make_summary(stop="admission"))
    assert "STOPPED" in text
    assert "by admission, before the step ran (turn 4): 116.02 GB used" in text
    assert "--attention auto" in text
    assert "--mode persistent" in text
    assert "longctx plan --model shape:qwen3-4b --target-tokens 16000" in text


def test_the_plan_command_has_every_setting_that_memory_hangs_on_and_no_default():
    config = {
        "model": "builtin", "target_tokens": 5_000, "mode": "reprefill", "attention": "math",
        "ceiling": "+1.5GB", "release": "never", "kv_dtype": "int8", "seed": 7, "allow_long": True,
    }  # fmt: skip
    command = plan_command(config)
    assert command == (
        "longctx plan --model builtin --target-tokens 5000 --mode reprefill --attention math "
        "--kv-dtype int8 --ceiling +1.5GB --allow-long"
    )
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 3), done.stderr


def test_a_refusal_by_the_plan_is_no_run_that_was_stopped():
    summary = make_summary(stop="plan")
    summary |= {"turns": [], "context_tokens": 0}
    text = shown(summary)
    assert "Refused before loading: by the plan it would pass the ceiling." in text
    assert "No turn was finished." in text


def test_advice_names_only_settings_that_the_run_did_not_have_already():
    summary = make_summary(stop="soft", attention="auto", mode="persistent")
    summary["config"] |= {"prefill_step": 512, "release": "turn", "kv_dtype": "int8"}
    *lines, plan = advice(summary)
    assert plan.startswith(plan_command(summary["config"]))
    for flag in ("--attention", "--prefill-step", "--mode", "--release", "--kv-dtype"):
        assert not any(flag in line for line in lines)


def test_a_passed_run_gets_no_advice():
    assert "\ntry" not in shown(make_summary())


def test_a_missed_secret_shows_the_answer():
    text = shown(make_summary(recalled=False))
    assert "FAILED" in text
    assert '0 of 1 secret found; the answer was "The secret key is unknown."' in text


def test_random_weights_are_said_to_be_unable_to_recall():
    assert "not scored: random weights cannot recall" in shown(make_summary(random_weights=True))


def test_a_peak_over_the_ceiling_is_said_to_be_over():
    assert "OVER by 0.02 GB" in shown(make_summary(stop="hard"))


def test_text_from_a_model_cannot_control_the_terminal():
    summary = make_summary(recalled=False, model="m\x1b]0;t\x07\u202e [bold]x[/bold]")
    summary["recall"]["answer"] = "\x1b[2J\x1b[Hgone\r\nline\u2028two"
    text = shown(summary)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\u2028" not in text
    assert "[bold]x[/bold]" in text.replace("\n", "")
    assert "\\x1b[2J\\x1b[Hgone\\r\\nline\\u2028two" in text


def test_a_log_that_is_not_utf8_gets_escapes_instead_of_an_error():
    summary = make_summary(target=256_000, mode="persistent", attention="auto", secret="秘密-7788")
    text = shown(summary, encoding="ascii")
    assert "\\u79d8\\u5bc6-7788" in text
    assert "more" in text


def test_a_colour_terminal_gets_colour_and_no_color_takes_it_away(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in shown(make_summary(), force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(make_summary(), force_terminal=True, color_system="standard")
    assert "\x1b[1;32m" not in plain
    assert ";3" not in plain


@pytest.mark.parametrize(
    "summary", [{}, {"turns": None, "config": None}, {"turns": [{}], "guard": "?"}]
)
def test_an_almost_empty_summary_is_printed_without_an_error(summary):
    assert "UNFINISHED" in shown(summary)

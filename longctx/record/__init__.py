"""The record of a run: events.jsonl as it happens, summary.json at the end, and both read back."""

from longctx.record.read import iter_events, load_summary, read_events, rebuild_summary
from longctx.record.recorder import EVENTS, SUMMARY, Recorder, plain, to_json
from longctx.record.summary import SummaryBuilder

__all__ = [
    "EVENTS", "SUMMARY", "Recorder", "SummaryBuilder", "iter_events", "load_summary", "plain",
    "read_events", "rebuild_summary", "to_json",
]  # fmt: skip

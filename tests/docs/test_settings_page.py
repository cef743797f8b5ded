"""The page of settings is what RunConfig says."""

from __future__ import annotations

from longctx.config.settings import SETTINGS, flag_name
from scripts.make_settings_doc import PAGE, page


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python scripts/make_settings_doc.py"


def test_every_setting_and_flag_is_on_the_page() -> None:
    text = page()
    for setting in SETTINGS:
        assert f"| `{setting}` | `{flag_name(setting)}" in text

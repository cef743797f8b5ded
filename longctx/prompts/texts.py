"""The sentences of the protocol, per prompt language; a config file may replace them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTexts:
    """Templates of the three user turns.

    Args:
        inject: announces a secret; holds `{secret}`.
        reference: wraps a chunk of haystack; holds `{n}` (counting from 1) and `{text}`.
        question: asks for the secret.
    """

    inject: str
    reference: str
    question: str


TEXTS: dict[str, PromptTexts] = {
    "en": PromptTexts(
        inject="Please remember this secret key: {secret}",
        reference="This is reference material number {n}:\n{text}",
        question="What is the secret key?",
    ),
    "zh-TW": PromptTexts(
        inject="請記住這個秘密金鑰：{secret}",
        reference="這是參考資料第 {n} 號：\n{text}",
        question="秘密金鑰是什麼？",
    ),
}
